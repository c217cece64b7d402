//! Logits of the five models in miniature, on 1, 2 and 8 chips: prompts whole
//! and in chunks, decodes of 1 and of 32 users.

use llama::{Llama3Size, Optimizations};
use mesh::Mesh;

use super::models::{Miniature, Model, Piece, tokens};

/// Pearson's correlation of all values together.
fn pcc(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f64 {
    let (found, expected) = (found.concat(), expected.concat());
    assert_eq!(found.len(), expected.len());
    let mean = |x: &[f32]| x.iter().copied().map(f64::from).sum::<f64>() / x.len() as f64;
    let (mean_a, mean_b) = (mean(&found), mean(&expected));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (a, b) in found.iter().zip(&expected) {
        let (a, b) = (f64::from(*a) - mean_a, f64::from(*b) - mean_b);
        ab += a * b;
        aa += a * a;
        bb += b * b;
    }
    ab / (aa * bb).sqrt()
}

/// A prompt of 150 tokens whole, its last 30 positions; the same in chunks; and
/// 32 users' tokens at positions of their own.
fn transcript<M: Mesh>(model: &mut Model<M>) -> [Vec<Vec<f32>>; 4] {
    let prompt = tokens(1, 150);
    let table = [9, 2, 30, 4, 17];
    let whole = [Piece { tokens: &prompt, first_position: 0, block_table: &table }];
    let whole = model.rows(&whole, (120..150).collect());

    let other_table = [1, 3, 5, 7, 11];
    let first = [Piece { tokens: &prompt[..64], first_position: 0, block_table: &other_table }];
    model.rows(&first, Vec::new());
    let second = [Piece { tokens: &prompt[64..], first_position: 64, block_table: &other_table }];
    let chunked = model.rows(&second, (56..86).collect());

    // One user goes on alone.
    let mut alone = Vec::new();
    for (i, token) in tokens(2, 6).into_iter().enumerate() {
        let piece = Piece { tokens: &[token], first_position: 150 + i, block_table: &table };
        alone.extend(model.step(&[piece]));
    }

    // 32 users: the two prompts, and 30 that have just come with one token.
    let tables: Vec<Vec<u32>> = (0..30).map(|user| vec![32 + user]).collect();
    let starts = tokens(3, 32);
    let mut users = vec![
        Piece { tokens: &starts[..1], first_position: 156, block_table: &table },
        Piece { tokens: &starts[1..2], first_position: 150, block_table: &other_table },
    ];
    for (user, table) in tables.iter().enumerate() {
        let own = &starts[user + 2..user + 3];
        users.push(Piece { tokens: own, first_position: 0, block_table: table });
    }
    let together = model.step(&users);
    [whole, chunked, alone, together]
}

fn check(size: Llama3Size, chip_counts: &[usize]) {
    let miniature = Miniature::new(size);
    for (optimizations, bar) in [
        (Optimizations::Performance, 0.995),
        (Optimizations::Accuracy, 0.995),
        (Optimizations::Bf16, 0.999),
    ] {
        // One chip's: any number gives the CPU mesh the same within rounding.
        let want = transcript(&mut miniature.on_cpu(1, optimizations));
        for &chips in chip_counts {
            let found = transcript(&mut miniature.on_ttnn(chips, optimizations));
            let parts = ["whole", "chunked", "alone", "together"];
            for ((part, found), want) in parts.iter().zip(&found).zip(&want) {
                let pcc = pcc(found, want);
                println!("{size} {chips} chips {optimizations} {part}: PCC {pcc:.6}");
                assert!(pcc >= bar, "{size} {chips} chips {optimizations} {part}: PCC {pcc:.6}");
            }
        }
    }
}

#[test]
fn llama_1b_is_the_cpu_meshs() {
    check(Llama3Size::B1, &[1, 2, 8]);
}

#[test]
fn llama_3b_is_the_cpu_meshs() {
    check(Llama3Size::B3, &[1, 2, 8]);
}

#[test]
fn llama_8b_is_the_cpu_meshs() {
    check(Llama3Size::B8, &[1, 2, 8]);
}

#[test]
fn llama_11b_is_the_cpu_meshs_in_text() {
    check(Llama3Size::B11, &[1, 2, 8]);
}

#[test]
fn llama_70b_is_the_cpu_meshs() {
    check(Llama3Size::B70, &[8]);
}
