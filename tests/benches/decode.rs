//! Decode and prefill of the packaged model on the CPU mesh, without services:
//! `cargo bench -p integration-tests --bench decode [-- THREADS [CHIPS]]`.
//!
//! Prints one JSON object of tokens a second (medians).

use std::time::Instant;

use llama::{Checkpoint, DTypePolicy, LoadOptions, Optimizations, Runner};
use mesh::{SequenceSlice, StepBatch, StepOutput};
use mesh_cpu::CpuMesh;
use serde_json::json;

const ROUNDS: usize = 5;
const DECODED: usize = 128;
const PROMPT: usize = 512;
const CHUNK: usize = 256;
const BLOCK_SIZE: usize = 32;

fn step(runner: &mut Runner<CpuMesh>, ids: &[u32], first_position: usize) {
    let num_blocks = (first_position + ids.len()).div_ceil(BLOCK_SIZE);
    let batch = StepBatch {
        token_ids: ids.to_vec(),
        sequences: vec![SequenceSlice {
            first_row: 0,
            num_tokens: ids.len(),
            first_position,
            block_table: (0..num_blocks).filter_map(|block| u32::try_from(block).ok()).collect(),
        }],
        logit_rows: vec![ids.len() - 1],
        choices: None,
    };
    let mut out = StepOutput::default();
    runner.forward(&batch, &mut out).expect("the CPU mesh does not fail");
    std::hint::black_box(out);
}

/// Median tokens a second of `run`, which computes `tokens`.
fn median(tokens: usize, mut run: impl FnMut()) -> f64 {
    let mut rates: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            run();
            tokens as f64 / start.elapsed().as_secs_f64()
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[ROUNDS / 2]
}

fn main() {
    // Cargo adds --bench.
    let mut numbers = std::env::args().skip(1).filter_map(|arg| arg.parse::<usize>().ok());
    let threads = numbers.next().unwrap_or(2);
    let chips = numbers.next().unwrap_or(1);
    let checkpoint = Checkpoint::open(&integration_tests::packaged_model()).expect("opens");
    let policy = DTypePolicy::choose(checkpoint.config(), Optimizations::Performance);
    let kv_blocks = (PROMPT + DECODED) / BLOCK_SIZE;
    let max_model_len = PROMPT + DECODED;
    let options = LoadOptions { policy, max_model_len, kv_blocks, kv_block_size: BLOCK_SIZE };
    let mesh = CpuMesh::new(chips, threads).expect("fits");
    let mut runner = Runner::load(mesh, &checkpoint, &options, &mut |_| {}).expect("loads");
    let ids: Vec<u32> = (0..40_000).step_by(37).take(PROMPT).collect();
    let prefill = median(PROMPT, || {
        for (index, chunk) in ids.chunks(CHUNK).enumerate() {
            step(&mut runner, chunk, index * CHUNK);
        }
    });
    let decode = median(DECODED, || {
        for (position, id) in (16..).zip(&ids[..DECODED]) {
            step(&mut runner, &[*id], position);
        }
    });
    let report = json!({
        "threads": threads,
        "chips": chips,
        "policy": policy.to_string(),
        "prefill_512_tokens_per_second": prefill,
        "decode_tokens_per_second": decode,
    });
    println!("{report}");
}
