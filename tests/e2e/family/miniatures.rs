//! The five models in miniature, against Meta's reference in f32.

use llama::{Checkpoint, DTypePolicy, LlamaConfig, Optimizations, RopeScaling};
use mesh::DType;

use crate::checkpoints;
use crate::compare::{pcc, relative_error, worst_pcc};
use crate::golden::Golden;
use crate::run::Model;

const CHIPS: [usize; 3] = [1, 2, 8];
const POLICIES: [Optimizations; 4] =
    [Optimizations::F32, Optimizations::Bf16, Optimizations::Accuracy, Optimizations::Performance];

/// Holds the logits of every position, on every number of chips, under every
/// policy, to the bar of that policy.
fn check(name: &str, member: &LlamaConfig) {
    assert!(member.llama3_size().is_some(), "{name} stands for a model of the family");
    let golden = Golden::load(name);
    let expected = golden.logits(name);
    let directory = tempfile::tempdir().expect("a directory");
    checkpoints::write_meta(&golden, golden.files, directory.path());
    let checkpoint = Checkpoint::open(directory.path()).expect("opens");
    let mut failures = Vec::new();
    for chips in CHIPS {
        for optimizations in POLICIES {
            // A miniature has not the sizes by which a model is recognised.
            let policy = DTypePolicy::choose(member, optimizations);
            let mut model = Model::load(&checkpoint, chips, policy);
            let found = model.logits(&golden.tokens, &[golden.prompt]);
            let in_chunks = model.logits(&golden.tokens, &[40, 1, golden.prompt - 41]);
            assert!(found == in_chunks, "{name} {chips} chips {optimizations}: chunks differ");

            let report = format!("{name} {chips} chips {optimizations}");
            if !passes(&report, optimizations, [&found, &expected], golden.prompt) {
                failures.push(report);
            }
        }
    }
    check_performance_weights(name, &golden, &checkpoint, member);
    assert!(failures.is_empty(), "below the bar: {failures:?}");
}

/// The bars. PCC is that of the prompt's logits, or that of the decoded
/// positions' where it is less.
fn passes(
    report: &str,
    optimizations: Optimizations,
    [found, expected]: [&[Vec<f32>]; 2],
    prompt: usize,
) -> bool {
    let error = relative_error(found, expected);
    let prefill = pcc(&found[..prompt], &expected[..prompt]);
    let decode = pcc(&found[prompt..], &expected[prompt..]);
    println!(
        "{report}: relative error {error:.2e}, PCC prefill {prefill:.6} decode {decode:.6} \
         worst position {:.6}",
        worst_pcc(found, expected)
    );
    let pcc = prefill.min(decode);
    match optimizations {
        Optimizations::F32 => error <= 1e-4,
        Optimizations::Bf16 => pcc >= 0.999,
        Optimizations::Accuracy => pcc >= 0.99,
        Optimizations::Performance => pcc >= 0.97,
    }
}

/// What `performance` loses, its number formats lose: Meta's code on the weights
/// as they are stored says the same. The KV cache is f32 on both sides.
fn check_performance_weights(
    name: &str,
    golden: &Golden,
    checkpoint: &Checkpoint,
    member: &LlamaConfig,
) {
    let policy = DTypePolicy::choose(member, Optimizations::Performance);
    let policy = DTypePolicy { kv_cache: DType::F32, ..policy };
    let rows = Model::load(checkpoint, 1, policy).logits(&golden.tokens, &[golden.prompt]);
    let rows: Vec<_> = rows.into_iter().step_by(8).collect();
    let error = relative_error(&rows, &golden.performance_logits(name));
    println!("{name} on performance's weights: relative error {error:.2e}");
    assert!(error <= 1e-4, "{name} on performance's weights: {error:.2e}");
}

/// The published model that a miniature stands for.
fn member(shape: [usize; 4], head_dim: usize, rope_factor: f32) -> LlamaConfig {
    let [hidden_size, num_hidden_layers, num_attention_heads, intermediate_size] = shape;
    LlamaConfig {
        hidden_size,
        intermediate_size,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads: 8,
        head_dim,
        vocab_size: 128_256,
        rms_norm_eps: 1e-5,
        rope_theta: 500_000.0,
        rope_scaling: Some(RopeScaling {
            factor: rope_factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        }),
        max_position_embeddings: 131_072,
        tie_word_embeddings: rope_factor == 32.0,
        num_cross_attention_layers: 0,
    }
}

#[test]
fn llama_1b_answers_as_metas_code() {
    check("1b", &member([2048, 16, 32, 8192], 64, 32.0));
}

#[test]
fn llama_3b_answers_as_metas_code() {
    check("3b", &member([3072, 28, 24, 8192], 128, 32.0));
}

#[test]
fn llama_8b_answers_as_metas_code() {
    check("8b", &member([4096, 32, 32, 14336], 128, 8.0));
}

#[test]
fn llama_11b_answers_to_text_as_metas_code() {
    let text = member([4096, 32, 32, 14336], 128, 8.0);
    check("11b", &LlamaConfig { num_cross_attention_layers: 8, ..text });
}

#[test]
fn llama_70b_answers_as_metas_code() {
    check("70b", &member([8192, 80, 64, 28672], 128, 8.0));
}
