//! The five models in miniature, against Meta's reference in f32.

use llama::tiny::family;
use llama::{Checkpoint, DTypePolicy, Llama3Size, LlamaConfig, Optimizations};
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
fn check(name: &str, size: Llama3Size) {
    let member = &family::config(size);
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

#[test]
fn llama_1b_answers_as_metas_code() {
    check("1b", Llama3Size::B1);
}

#[test]
fn llama_3b_answers_as_metas_code() {
    check("3b", Llama3Size::B3);
}

#[test]
fn llama_8b_answers_as_metas_code() {
    check("8b", Llama3Size::B8);
}

#[test]
fn llama_11b_answers_to_text_as_metas_code() {
    check("11b", Llama3Size::B11);
}

#[test]
fn llama_70b_answers_as_metas_code() {
    check("70b", Llama3Size::B70);
}
