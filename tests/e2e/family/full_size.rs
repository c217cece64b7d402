//! Llama 3.2 1B in its full size, in Meta's layout, with seeded weights: against
//! Meta's reference in bf16, and the memory that loading it takes.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use llama::{
    Checkpoint, DTypePolicy, LayerWeight, LlamaConfig, Optimizations, ShardPlan, WeightName,
};
use serde::Deserialize;
use serde_json::json;

use crate::checkpoints;
use crate::compare::{argmax, pcc, worst_pcc};
use crate::golden::Golden;

const NAME: &str = "full-1b";
const THREADS: usize = 2;
const KV_BLOCKS: usize = 4;
const KV_BLOCK_SIZE: usize = 32;
/// The program, its stacks and the allocator's own: what a process takes that
/// loads nothing.
const PROCESS_BYTES: u64 = 32 << 20;
/// Where the reference is surer than this, in logits, its first id must be ours.
const SURE: f32 = 0.25;

/// What the process that loaded it says.
#[derive(Debug, Deserialize)]
struct Loaded {
    /// Most memory up to the end of the load.
    peak_bytes: u64,
    load_seconds: f64,
    run_seconds: f64,
    #[serde(skip)]
    logits: Vec<Vec<f32>>,
}

#[test]
fn llama_1b_in_full_size_answers_as_metas_code_in_bf16() {
    let golden = Golden::load(NAME);
    let directory = tempfile::tempdir().expect("a directory");
    let began = Instant::now();
    checkpoints::write_meta(&golden, golden.files, directory.path());
    println!("checkpoint written in {:.1?}", began.elapsed());
    let checkpoint = Checkpoint::open(directory.path()).expect("opens");
    let config = checkpoint.config();

    for (chips, optimizations) in
        [(1, Optimizations::Bf16), (2, Optimizations::Bf16), (8, Optimizations::Performance)]
    {
        let loaded = load(&golden, directory.path(), chips, optimizations);
        let report = format!("{NAME} {chips} chips {optimizations}");
        println!(
            "{report}: loaded in {:.1} s, ran in {:.1} s",
            loaded.load_seconds, loaded.run_seconds
        );
        check_memory(&report, config, chips, optimizations, loaded.peak_bytes);
        if optimizations == Optimizations::Bf16 {
            check_logits(&report, &golden, &loaded.logits);
        }
    }
}

/// PCC over a fixed sample of the vocabulary, and the first id wherever the
/// reference is sure of it.
fn check_logits(report: &str, golden: &Golden, logits: &[Vec<f32>]) {
    let expected = golden.sampled_logits(NAME);
    let sampled: Vec<Vec<f32>> =
        logits.iter().map(|row| row.iter().copied().step_by(golden.stride).collect()).collect();
    let (pcc, worst) = (pcc(&sampled, &expected), worst_pcc(&sampled, &expected));
    let mut sure = 0;
    for (position, (row, top)) in logits.iter().zip(&golden.top).enumerate() {
        if top[0].1 - top[1].1 > SURE {
            sure += 1;
            assert_eq!(argmax(row), top[0].0, "{report}: first id at position {position}");
        }
    }
    let positions = logits.len();
    println!(
        "{report}: PCC {pcc:.6}, worst position {worst:.6}; first id equal at the {sure} of \
         {positions} positions where the reference is sure"
    );
    assert!(pcc >= 0.999, "{report}: PCC {pcc:.6}");
    assert!(sure > positions / 2, "the reference is sure at {sure} of {positions} positions");
}

/// A load takes the sharded model, and less than one tensor a thread on top.
fn check_memory(
    report: &str,
    config: &LlamaConfig,
    chips: usize,
    optimizations: Optimizations,
    peak_bytes: u64,
) {
    let policy = DTypePolicy::choose(config, optimizations);
    let plan = ShardPlan::new(config, chips).expect("fits");
    let model: f64 = plan
        .weights()
        .iter()
        .map(|weight| {
            let values: usize = weight.shape.iter().product();
            (weight.count * values) as f64 * bits(&policy, weight.name) / 8.0
        })
        .sum();
    let positions = (KV_BLOCKS * KV_BLOCK_SIZE) as f64;
    let kv_values = 2.0 * positions * (config.num_hidden_layers * config.key_value_size()) as f64;
    let sharded = (model + kv_values * policy.kv_cache.bits_per_value() / 8.0) as u64;
    // The largest weight of a layer, as the checkpoint has it.
    let tensor = 2 * (config.intermediate_size * config.hidden_size) as u64;
    let bound = sharded + THREADS as u64 * tensor + PROCESS_BYTES;
    let over = peak_bytes as i64 - sharded as i64;
    println!(
        "{report}: peak {} MiB, {} MiB over the sharded model's {}; {} are allowed",
        peak_bytes >> 20,
        over >> 20,
        sharded >> 20,
        (bound - sharded) >> 20
    );
    assert!(peak_bytes >= sharded, "{report}: {peak_bytes} bytes cannot hold {sharded}");
    assert!(peak_bytes <= bound, "{report}: {peak_bytes} bytes, at most {bound}");
}

fn bits(policy: &DTypePolicy, name: WeightName) -> f64 {
    use LayerWeight as W;
    let dtype = match name {
        WeightName::EmbedTokens => policy.embedding,
        WeightName::LmHead => policy.lm_head,
        WeightName::Layer(_, W::QProj | W::KProj | W::VProj | W::OProj) => policy.attention,
        WeightName::Layer(_, W::GateProj | W::UpProj) => policy.w1_w3,
        WeightName::Layer(_, W::DownProj) => policy.w2,
        // Gains are f32.
        WeightName::Norm | WeightName::Layer(..) => return 32.0,
    };
    dtype.bits_per_value()
}

/// Loads and runs it in a process of its own.
fn load(golden: &Golden, checkpoint: &Path, chips: usize, optimizations: Optimizations) -> Loaded {
    let logits = checkpoint.join("logits");
    let request = json!({
        "checkpoint": checkpoint,
        "chips": chips,
        "threads": THREADS,
        "optimizations": optimizations.to_string(),
        "kv_blocks": KV_BLOCKS,
        "kv_block_size": KV_BLOCK_SIZE,
        "tokens": golden.tokens,
        "prompt": golden.prompt,
        "logits": logits,
    });
    let mut child = Command::new(env!("CARGO_BIN_EXE_load-model"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(request.to_string().as_bytes()).expect("is read");
    drop(stdin);
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success(), "load-model: {}", output.status);
    let mut loaded: Loaded = serde_json::from_slice(&output.stdout).expect("a report");
    let values: Vec<f32> = std::fs::read(&logits)
        .expect("was written")
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes")))
        .collect();
    loaded.logits = values.chunks(golden.param("vocab_size")).map(<[f32]>::to_vec).collect();
    assert_eq!(loaded.logits.len(), golden.tokens.len());
    loaded
}
