//! Against llama.cpp on the same weights (`tests/golden/make_smollm2.py`).

use integration_tests::golden::Golden;
use llama::Optimizations;

use crate::run::{Feed, Model, argmax, logprob};

/// Agreement over all teacher-forced positions.
struct Agreement {
    positions: usize,
    top1: usize,
    mean_logprob_error: f64,
}

fn teacher_forced(model: &mut Model, golden: &Golden) -> Agreement {
    let (mut positions, mut top1, mut error, mut count) = (0, 0, 0.0, 0);
    for passage in &golden.forced {
        let rows = model.logits(&Feed::Whole(&passage.ids));
        for (row, expected) in rows.iter().zip(&passage.top1) {
            positions += 1;
            top1 += usize::from(argmax(row) == *expected);
        }
        let following = passage.ids[1..].iter().zip(&passage.next_logprob);
        for (row, (id, expected)) in rows.iter().zip(following) {
            error += (logprob(row, *id) - f64::from(*expected)).abs();
            count += 1;
        }
    }
    Agreement { positions, top1, mean_logprob_error: error / f64::from(count) }
}

#[test]
fn in_f32_the_answers_are_llama_cpps() {
    let golden = Golden::load();
    let mut model = Model::load(1, Optimizations::F32);
    let equal = golden
        .chats
        .iter()
        .filter(|chat| model.greedy(&chat.prompt, chat.greedy.len()) == chat.greedy)
        .count();
    println!("greedy: {equal} of {} answers equal", golden.chats.len());
    assert!(equal >= 9, "{equal} of {} answers equal, must be 9", golden.chats.len());
}

#[test]
fn in_f32_the_probabilities_are_llama_cpps() {
    let golden = Golden::load();
    let found = teacher_forced(&mut Model::load(1, Optimizations::F32), &golden);
    println!(
        "f32: top-1 {} of {}, mean log-probability error {:.2e}",
        found.top1, found.positions, found.mean_logprob_error
    );
    assert!(found.positions >= 500);
    assert!(
        found.top1 * 1000 >= found.positions * 995,
        "top-1 {} of {}",
        found.top1,
        found.positions
    );
    assert!(found.mean_logprob_error <= 1e-3, "error {}", found.mean_logprob_error);
}

#[test]
fn the_default_policy_keeps_the_top_token() {
    let golden = Golden::load();
    let found = teacher_forced(&mut Model::load(1, Optimizations::Performance), &golden);
    println!(
        "performance: top-1 {} of {}, mean log-probability error {:.2e}",
        found.top1, found.positions, found.mean_logprob_error
    );
    assert!(
        found.top1 * 100 >= found.positions * 97,
        "top-1 {} of {}",
        found.top1,
        found.positions
    );
}
