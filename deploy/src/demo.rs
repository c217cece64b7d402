//! `llama-mesh demo`: batches of prompts through a model in this process, the
//! text it writes, and how fast it is.

mod batch;
mod encode;
mod expression;
mod preset;
mod prompts;
mod report;
mod screen;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};

use self::batch::{BatchRun, Decoding};
use self::encode::{Encoded, Fit};
pub(crate) use self::preset::{Preset, select_preset};
pub(crate) use self::prompts::{LONG_TEXT, read_text};
use self::report::{BatchReport, Report};
use self::screen::Screen;
use crate::cli::{DemoArgs, DemoMode, usage_error};
use crate::driver::{Loaded, Opened, Sizes};
use crate::services;

/// What is run, after presets, flags and defaults.
#[derive(Debug, Clone, Copy)]
struct Plan {
    mode: DemoMode,
    num_batches: u32,
    long: bool,
}

/// Runs the demo.
///
/// # Errors
/// Wrong usage, a model or prompts that cannot be used, or a mesh that fails.
pub(crate) async fn run(mut args: DemoArgs) -> anyhow::Result<ExitCode> {
    let plan = plan(&mut args)?;
    let model = services::model_path(args.model.model.clone()).await?;
    let demo = move || run_blocking(&args, plan, model);
    tokio::task::spawn_blocking(demo).await.context("the demo panicked")?
}

/// Puts preset and flags together.
fn plan(args: &mut DemoArgs) -> anyhow::Result<Plan> {
    let Some(preset) = args.preset else {
        return Ok(Plan {
            mode: args.mode.unwrap_or(DemoMode::Instruct),
            num_batches: args.batches.unwrap_or(1),
            long: args.long,
        });
    };
    if let Some(named) = preset.optimizations {
        let asked = args.model.optimizations.get_or_insert_with(|| named.to_owned());
        if asked != named {
            let name = preset.name;
            return Err(usage_error(format!("-k selects {name}, --optimizations says {asked}")));
        }
    }
    Ok(Plan { mode: preset.mode, num_batches: preset.batches, long: preset.long })
}

fn run_blocking(args: &DemoArgs, plan: Plan, model: PathBuf) -> anyhow::Result<ExitCode> {
    let prompts = match &args.prompts {
        Some(file) => prompts::from_file(file)?,
        None => prompts::built_in(plan.mode, plan.long)?,
    };
    let opened = Opened::open(&model, &args.model)?;
    let model_len = opened.config.max_position_embeddings;
    let max_len = args.max_seq_len.map_or(model_len, |len| len as usize);
    ensure!(
        max_len <= model_len,
        "--max-seq-len asks for {max_len} tokens, the model was made for {model_len}"
    );
    let fit = Fit { max_len, iterations: args.iterations as usize, clip: args.clip };
    let encoded = encode::encode_all(&opened.text, &prompts, plan.mode, fit)?;
    for (number, prompt) in (1..).zip(&encoded).filter(|(_, prompt)| prompt.clipped > 0) {
        eprintln!("prompt {number}: {} tokens cut out to make it fit", prompt.clipped);
    }
    let longest = encoded.iter().map(|prompt| prompt.ids.len()).max().unwrap_or_default();
    let sizes = Sizes {
        num_sequences: args.batch_size as usize,
        max_len: longest + fit.iterations,
        block_size: args.block_size,
        num_blocks: args.max_num_blocks,
    };
    let loaded = opened.load(&sizes)?;
    let mut session = Session { args, opened, loaded, encoded, max_len: sizes.max_len };
    let report = session.run(plan)?;
    report.print(args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// A loaded model and its prompts.
struct Session<'a> {
    args: &'a DemoArgs,
    opened: Opened,
    loaded: Loaded,
    encoded: Vec<Encoded>,
    /// Positions of every sequence.
    max_len: usize,
}

impl Session<'_> {
    fn run(&mut self, plan: Plan) -> anyhow::Result<Report> {
        let decoding = self.decoding();
        eprintln!("Starting inference...");
        let warm_up = self.args.warm_up.then(|| self.warm_up(&decoding)).transpose()?;
        let mut report = Report::new(self.args, plan, &self.loaded, warm_up);
        for batch in 0..plan.num_batches {
            let run = self.batch(batch, plan, &decoding)?;
            report.batches.push(run);
        }
        Ok(report)
    }

    fn decoding(&self) -> Decoding {
        let mut stop_ids = Vec::new();
        if !self.args.ignore_eos {
            stop_ids.extend_from_slice(&self.loaded.identity.model.eos_token_ids);
            stop_ids.extend_from_slice(self.opened.text.tokenizer.eos_ids());
        }
        Decoding {
            iterations: self.args.iterations as usize,
            stop_ids,
            temperature: self.args.temperature,
            top_p: self.args.top_p,
            seed: self.args.seed,
        }
    }

    /// User `j` of batch `i` has prompt `j + i`, counted around.
    fn prompts_of(&self, batch: u32) -> Vec<usize> {
        let first = batch as usize % self.encoded.len();
        (0..self.args.batch_size as usize).map(|user| (user + first) % self.encoded.len()).collect()
    }

    fn batch(
        &mut self,
        batch: u32,
        plan: Plan,
        decoding: &Decoding,
    ) -> anyhow::Result<BatchReport> {
        let numbers = self.prompts_of(batch);
        // Other blocks for every batch: no user meets its predecessor's cache.
        let sequences = self.loaded.tables.deal(numbers.len(), self.max_len, u64::from(batch))?;
        let prompts: Vec<&Encoded> = numbers.iter().map(|&number| &self.encoded[number]).collect();
        let mut screen = Screen::new(self.args, &self.opened.text.tokenizer, batch, plan);
        screen.start();
        let driver = &mut self.loaded.driver;
        let run: BatchRun = batch::run(driver, sequences, &prompts, decoding, &mut |event| {
            screen.show(event);
        })?;
        screen.end(&prompts, &run)?;
        Ok(BatchReport::new(&numbers, &prompts, run, &self.opened.text.tokenizer))
    }

    fn warm_up(&mut self, decoding: &Decoding) -> anyhow::Result<std::time::Duration> {
        let start = std::time::Instant::now();
        let sequences = self.loaded.tables.deal(1, self.max_len, u64::MAX)?;
        let once = Decoding { iterations: decoding.iterations.min(1), ..decoding.clone() };
        let driver = &mut self.loaded.driver;
        batch::run(driver, sequences, &[&self.encoded[0]], &once, &mut |_| {})?;
        Ok(start.elapsed())
    }
}
