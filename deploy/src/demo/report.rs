//! The numbers of a run, and how they are come by.
//!
//! Everything is measured, and on real tokens. Times are those of the forward
//! passes and of sampling; printing is not in them. What the original computes
//! otherwise is under its own name, in `original`.

use std::io::Write as _;
use std::time::Duration;

use gateway::text::tokenizer::{SpecialTokens, Tokenizer};
use serde::Serialize;

use super::Plan;
use super::batch::BatchRun;
use super::encode::Encoded;
use crate::cli::{DemoArgs, DemoMode};
use crate::driver::Loaded;

/// All of a run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    model: String,
    device: String,
    num_chips: u32,
    optimizations: String,
    mode: &'static str,
    long: bool,
    batch_size: u32,
    iterations: u32,
    load_ms: f64,
    /// "hit" when the weights came packed from disk, "written" when they will
    /// the next time.
    weight_cache: String,
    /// Of `--warm-up`.
    warm_up_ms: Option<f64>,
    pub(super) batches: Vec<BatchReport>,
}

/// One batch of users.
#[derive(Debug, Serialize)]
pub(super) struct BatchReport {
    prompt_tokens: usize,
    generated_tokens: usize,
    /// Mean over all users, the first among them, of the time from the start of
    /// a user's prefill to its first token.
    ttft_ms: f64,
    /// Start of the batch to the first token of its last user.
    ttft_last_user_ms: f64,
    /// Prompt tokens by the time of all prefills.
    prefill_tokens_per_s: Option<f64>,
    decode_steps: usize,
    first_decode_step_ms: Option<f64>,
    /// Steps but the first, by their time.
    decode_tokens_per_s_per_user: Option<f64>,
    /// Tokens of answers that have not ended, of all steps but the first, by
    /// the time of these.
    decode_tokens_per_s: Option<f64>,
    /// The same with ended answers, which go on being computed.
    computed_tokens_per_s: Option<f64>,
    original: Original,
    users: Vec<UserReport>,
}

/// By the original's formulas; they leave out the first user's prefill, which
/// there includes compilation, so one user alone has none.
#[derive(Debug, Serialize)]
struct Original {
    /// (all prefills − the first) / (users − 1)
    prefill_time_to_token_ms: Option<f64>,
    /// users × padded prompt length / (all prefills − the first)
    prefill_tokens_per_s: Option<f64>,
}

/// One user.
#[derive(Debug, Serialize)]
struct UserReport {
    /// Place in the prompt file, from 0.
    prompt: usize,
    prompt_tokens: usize,
    clipped_tokens: usize,
    prefill_ms: f64,
    token_ids: Vec<u32>,
    text: String,
    finish_reason: &'static str,
}

/// `count` things in `time`, if it took any.
pub(super) fn per_second(count: f64, time: Duration) -> Option<f64> {
    (!time.is_zero() && count > 0.0).then(|| count / time.as_secs_f64())
}

fn ms(time: Duration) -> f64 {
    1e3 * time.as_secs_f64()
}

/// Prompt length as the original pads it: the next power of two from 128.
fn padded(length: usize) -> usize {
    length.max(128).next_power_of_two()
}

impl BatchReport {
    /// `numbers` are the places of `prompts` in their file.
    pub(super) fn new(
        numbers: &[usize],
        prompts: &[&Encoded],
        run: BatchRun,
        tokenizer: &Tokenizer,
    ) -> Self {
        let count = prompts.len();
        let prompt_tokens = prompts.iter().map(|prompt| prompt.ids.len()).sum();
        let prefill: Duration = run.prefill.iter().sum();
        let later = run.steps.get(1..).unwrap_or_default();
        let decode: Duration = later.iter().sum();
        let kept: usize = run.kept.get(1..).unwrap_or_default().iter().sum();
        let per_user = per_second(later.len() as f64, decode);
        let users = (0..count).map(|user| {
            let answer = &run.answers[user];
            UserReport {
                prompt: numbers[user],
                prompt_tokens: prompts[user].ids.len(),
                clipped_tokens: prompts[user].clipped,
                prefill_ms: ms(run.prefill[user]),
                token_ids: answer.ids.clone(),
                text: tokenizer.decode(&answer.ids, SpecialTokens::Skip),
                finish_reason: if answer.stopped_by.is_some() { "stop" } else { "length" },
            }
        });
        Self {
            prompt_tokens,
            generated_tokens: run.answers.iter().map(|answer| answer.ids.len()).sum(),
            ttft_ms: ms(prefill) / count.max(1) as f64,
            ttft_last_user_ms: ms(prefill),
            prefill_tokens_per_s: per_second(prompt_tokens as f64, prefill),
            decode_steps: run.steps.len(),
            first_decode_step_ms: run.steps.first().copied().map(ms),
            decode_tokens_per_s_per_user: per_user,
            decode_tokens_per_s: per_second(kept as f64, decode),
            computed_tokens_per_s: per_user.map(|speed| speed * count as f64),
            original: Original::new(&run.prefill, prompts),
            users: users.collect(),
        }
    }
}

impl Original {
    fn new(prefill: &[Duration], prompts: &[&Encoded]) -> Self {
        let (Some(first), Some(last)) = (prefill.first(), prompts.last()) else {
            return Self { prefill_time_to_token_ms: None, prefill_tokens_per_s: None };
        };
        let rest = prefill.iter().sum::<Duration>() - *first;
        let others = prefill.len() - 1;
        let tokens = (prefill.len() * padded(last.ids.len())) as f64;
        Self {
            prefill_time_to_token_ms: (others > 0).then(|| ms(rest) / others as f64),
            prefill_tokens_per_s: per_second(tokens, rest),
        }
    }
}

impl Report {
    pub(super) fn new(
        args: &DemoArgs,
        plan: Plan,
        loaded: &Loaded,
        warm_up: Option<Duration>,
    ) -> Self {
        let identity = &loaded.identity;
        Self {
            model: identity.model.name.clone(),
            device: identity.device.name.clone(),
            num_chips: identity.device.num_chips,
            optimizations: identity.device.optimizations.clone(),
            mode: match plan.mode {
                DemoMode::Instruct => "instruct",
                DemoMode::General => "general",
            },
            long: plan.long,
            batch_size: args.batch_size,
            iterations: args.iterations,
            load_ms: ms(loaded.load_time),
            weight_cache: loaded.weight_cache.to_string(),
            warm_up_ms: warm_up.map(ms),
            batches: Vec::new(),
        }
    }

    /// Prints the table, or one JSON object.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub(super) fn print(&self, as_json: bool) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        if as_json {
            writeln!(out, "{}", serde_json::to_string(self)?)?;
            return Ok(());
        }
        writeln!(out)?;
        for (name, cells) in self.rows() {
            writeln!(out, "{name:24}{}", cells.join("  ").trim_end())?;
        }
        out.flush()?;
        eprintln!(
            "TTFT is the mean over all users, the first included, of each one's own prefill, \
             which others' may delay: they are prefilled one by one; decode speed leaves out the first step, and counts tokens of unfinished answers"
        );
        Ok(())
    }

    /// The table: a name, and one cell for the run or for each batch.
    fn rows(&self) -> Vec<(&'static str, Vec<String>)> {
        let Self { model, device, num_chips, optimizations, .. } = self;
        let chips = if *num_chips == 1 { "chip" } else { "chips" };
        let each = |cell: &dyn Fn(&BatchReport) -> String| -> Vec<String> {
            self.batches.iter().map(|batch| format!("{:>22}", cell(batch))).collect()
        };
        let number = |value: Option<f64>, unit: &str| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1} {unit}"))
        };
        let users = self.batch_size;
        let mut rows = vec![
            ("model", vec![format!("{model} on {device}, {num_chips} {chips}, {optimizations}")]),
            ("prompts", vec![format!("{}{}", self.mode, if self.long { ", long" } else { "" })]),
            (
                "load",
                vec![format!("{:.2} s, weight cache {}", self.load_ms / 1e3, self.weight_cache)],
            ),
        ];
        if device == "CPU" {
            rows.push(("compile", vec!["nothing to compile on the CPU mesh".to_owned()]));
        }
        if let Some(warm_up) = self.warm_up_ms {
            rows.push(("warm-up", vec![format!("{warm_up:.1} ms")]));
        }
        let index = (1..=self.batches.len()).map(|batch| format!("{:>22}", format!("{batch}")));
        rows.push(("batch", index.collect()));
        rows.push(("users", each(&|_| users.to_string())));
        rows.push(("prompt tokens", each(&|batch| batch.prompt_tokens.to_string())));
        rows.push(("generated tokens", each(&|batch| batch.generated_tokens.to_string())));
        rows.push(("TTFT, mean", each(&|batch| number(Some(batch.ttft_ms), "ms"))));
        rows.push(("TTFT, last user", each(&|batch| number(Some(batch.ttft_last_user_ms), "ms"))));
        rows.push(("prefill", each(&|batch| number(batch.prefill_tokens_per_s, "tok/s"))));
        rows.push(("first decode step", each(&|batch| number(batch.first_decode_step_ms, "ms"))));
        let speed = |batch: &BatchReport| number(batch.decode_tokens_per_s_per_user, "tok/s/user");
        rows.push(("decode, one user", each(&speed)));
        rows.push(("decode, all users", each(&|batch| number(batch.decode_tokens_per_s, "tok/s"))));
        if users > 1 {
            let original = |batch: &BatchReport| batch.original.prefill_time_to_token_ms;
            let name = "prefill_time_to_token";
            rows.push((name, each(&|batch| number(original(batch), "ms"))));
        }
        rows
    }
}

#[cfg(test)]
mod tests;
