//! The same request gives the same bits however it is run.

use integration_tests::golden::Golden;
use llama::Optimizations;

use crate::run::{Feed, Model};

/// Chips add their partial sums in rank order, which is another order than one
/// chip's: f32 rounding through 30 layers stays below this on logits that span
/// about 40 (8e-5 was measured).
const CHIPS_TOLERANCE: f32 = 5e-4;

#[test]
fn three_chips_answer_as_one() {
    let golden = Golden::load();
    let mut one = Model::load(1, Optimizations::F32);
    let mut three = Model::load(3, Optimizations::F32);
    for chat in &golden.chats[..3] {
        let answer = one.greedy(&chat.prompt, 32);
        assert_eq!(three.greedy(&chat.prompt, 32), answer, "{}", chat.question);
    }
    let ids = &golden.forced[0].ids;
    let expected = one.logits(&Feed::Whole(ids));
    let found = three.logits(&Feed::Whole(ids));
    let worst = expected
        .iter()
        .flatten()
        .zip(found.iter().flatten())
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    println!("largest logit difference between 1 and 3 chips: {worst:.2e}");
    assert!(worst <= CHIPS_TOLERANCE, "logits differ by {worst}");
    assert!(worst > 0.0, "three chips that round exactly as one are not three chips");
}

#[test]
fn three_chips_answer_as_one_in_the_default_policy() {
    let golden = Golden::load();
    let mut one = Model::load(1, Optimizations::Performance);
    let mut three = Model::load(3, Optimizations::Performance);
    for chat in &golden.chats[..3] {
        let answer = one.greedy(&chat.prompt, 32);
        assert_eq!(three.greedy(&chat.prompt, 32), answer, "{}", chat.question);
    }
}

#[test]
fn chunks_do_not_change_a_bit() {
    let golden = Golden::load();
    let ids = &golden.forced[1].ids;
    for chips in [1, 3] {
        let mut model = Model::load(chips, Optimizations::Performance);
        let whole = model.logits(&Feed::Whole(ids));
        for chunk in [1, 7, 32, 50] {
            assert!(model.logits(&Feed::Chunks(ids, chunk)) == whole, "chunks of {chunk}");
        }
    }
}
