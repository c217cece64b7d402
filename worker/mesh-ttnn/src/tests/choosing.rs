//! Tokens chosen on the chips are those that the logits say.

use llama::{Llama3Size, Optimizations};
use mesh::{Choice, StepBatch};

use super::models::{Miniature, Piece, batch, tokens};

/// Ids by logit, largest first; of equal ones the lowest first.
fn ranked(row: &[f32]) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..row.len() as u32).collect();
    ids.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b)));
    ids
}

fn draw(top_k: u32, seed: u64) -> Choice {
    Choice::Sampled { temperature: 0.8, top_k, top_p: 1.0, seed }
}

#[test]
fn the_largest_logit_is_chosen_and_draws_are_among_the_top() {
    let miniature = Miniature::new(Llama3Size::B3);
    for chips in [1, 2, 8] {
        let mut model = miniature.on_ttnn(chips, Optimizations::Performance);
        let tables: Vec<Vec<u32>> = (0..32).map(|user| vec![user]).collect();
        let ids = tokens(7, 32);
        let pieces: Vec<_> = (0..32)
            .map(|user| Piece {
                tokens: &ids[user..=user],
                first_position: 0,
                block_table: &tables[user],
            })
            .collect();
        let logits = model.step(&pieces);
        let step = |choices: Vec<Choice>| StepBatch {
            logit_rows: (0..32).collect(),
            choices: Some(choices),
            ..batch(&pieces)
        };
        // Compiled, recorded and replayed.
        for _ in 0..3 {
            let out = model.run(step(vec![Choice::Greedy; 32]));
            assert!(out.logits.is_empty());
            let want: Vec<u32> = logits.iter().map(|row| ranked(row)[0]).collect();
            assert_eq!(out.token_ids, want, "{chips} chips");
        }
        let mut drawn = Vec::new();
        for seed in 0..4 {
            // Every other row draws; of one candidate there is no choice.
            let choices = (0..32).map(|user| match user % 4 {
                0 => Choice::Greedy,
                1 => draw(1, seed),
                _ => draw(5, seed),
            });
            let out = model.run(step(choices.collect()));
            for (user, (id, row)) in out.token_ids.iter().zip(&logits).enumerate() {
                let candidates = if user % 4 < 2 { 1 } else { 5 };
                assert!(ranked(row)[..candidates].contains(id), "{chips} chips, user {user}");
            }
            drawn.push(out.token_ids);
        }
        assert!(drawn.iter().any(|ids| *ids != drawn[0]), "seeds matter");
    }
}

#[test]
fn a_prompts_token_is_chosen_of_its_last_row() {
    let miniature = Miniature::new(Llama3Size::B11);
    let prompt = tokens(9, 77);
    for chips in [1, 8] {
        let mut model = miniature.on_ttnn(chips, Optimizations::Performance);
        let piece = || [Piece { tokens: &prompt, first_position: 0, block_table: &[3, 1, 2] }];
        let logits = model.rows(&piece(), vec![76]);
        for choice in [Choice::Greedy, draw(1, 3)] {
            let choices = Some(vec![choice]);
            let out = model.run(StepBatch { logit_rows: vec![76], choices, ..batch(&piece()) });
            assert_eq!(out.token_ids, [ranked(&logits[0])[0]], "{chips} chips {choice:?}");
        }
    }
}
