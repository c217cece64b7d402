//! Loads a checkpoint in a process of its own, so that the peak of its memory
//! can be told; then runs tokens through it.
//!
//! Started by `e2e/family/full_size.rs`. Reads a [`Request`] as JSON from stdin,
//! writes the logits of every token to its `logits` file, f32, and a line of
//! JSON to stdout: `{"peak_bytes": …, "load_seconds": …, "run_seconds": …}`.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use llama::{Checkpoint, DTypePolicy, LoadOptions, Optimizations, Runner};
use mesh::{SequenceSlice, StepBatch, StepOutput};
use mesh_cpu::CpuMesh;
use serde::Deserialize;

/// What to do.
#[derive(Debug, Deserialize)]
struct Request {
    checkpoint: PathBuf,
    chips: usize,
    threads: usize,
    optimizations: String,
    kv_blocks: usize,
    kv_block_size: usize,
    tokens: Vec<u32>,
    /// How many of them are one step; the rest are a step each.
    prompt: usize,
    logits: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let request: Request = serde_json::from_reader(std::io::stdin())?;
    let began = Instant::now();
    let checkpoint = Checkpoint::open(&request.checkpoint)?;
    let optimizations: Optimizations = request.optimizations.parse()?;
    let options = LoadOptions {
        policy: DTypePolicy::choose(checkpoint.config(), optimizations),
        max_model_len: request.kv_blocks * request.kv_block_size,
        kv_blocks: request.kv_blocks,
        kv_block_size: request.kv_block_size,
    };
    let mesh = CpuMesh::new(request.chips, request.threads)?;
    let mut runner = Runner::load(mesh, &checkpoint, &options, &mut |_| {})?;
    let load_seconds = began.elapsed().as_secs_f64();
    // Before anything runs: the load's own.
    let peak_bytes = peak_bytes()?;
    let began = Instant::now();
    run(&mut runner, &request)?;
    let run_seconds = began.elapsed().as_secs_f64();
    let report = serde_json::json!({
        "peak_bytes": peak_bytes, "load_seconds": load_seconds, "run_seconds": run_seconds,
    });
    writeln!(std::io::stdout(), "{report}")?;
    Ok(())
}

fn run(runner: &mut Runner<CpuMesh>, request: &Request) -> anyhow::Result<()> {
    let mut out = BufWriter::new(File::create(&request.logits)?);
    let (mut first_position, mut output) = (0, StepOutput::default());
    while first_position < request.tokens.len() {
        let num_tokens = if first_position == 0 { request.prompt } else { 1 };
        let token_ids = request.tokens[first_position..first_position + num_tokens].to_vec();
        let block_table = (0..request.kv_blocks as u32).collect();
        let batch = StepBatch {
            token_ids,
            sequences: vec![SequenceSlice {
                first_row: 0,
                num_tokens,
                first_position,
                block_table,
            }],
            logit_rows: (0..num_tokens).collect(),
            choices: None,
        };
        runner.forward(&batch, &mut output)?;
        for logit in &output.logits {
            out.write_all(&logit.to_le_bytes())?;
        }
        first_position += num_tokens;
    }
    Ok(out.flush()?)
}

/// The most memory that this process has had at once.
fn peak_bytes() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("VmHWM is missing")?;
    Ok(kib.parse::<u64>()? * 1024)
}
