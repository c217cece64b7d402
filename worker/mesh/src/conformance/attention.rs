//! Attention: the reference, and the ways to reach the same result by pages,
//! chunks and batches.

use super::Strength;
use super::attention_rig::{AttentionRig, Piece};
use super::probe::{assert_close, assert_same};
use super::reference::Sequence;
use crate::{AttentionShape, DType, KvCacheShape, Mesh};

const BLOCK_SIZE: usize = 32;
const NUM_BLOCKS: usize = 16;
const KV_DTYPES: [DType; 3] = [DType::F32, DType::Bf16, DType::Bfp8];

/// Prefill of two sequences over shuffled blocks, then decode steps of both:
/// every row is what textbook attention gives.
///
/// # Panics
/// When the law is broken.
pub fn attention_matches_the_reference<M: Mesh>(mesh: &mut M, strength: Strength) {
    for (dtype, rounding) in [(DType::F32, 1e-6), (DType::Bf16, 0.01), (DType::Bfp8, 0.03)] {
        let mut rig = rig(mesh, dtype);
        let long = Sequence::new(60, 73, rig.shape());
        let short = Sequence::new(61, 9, rig.shape());
        let (long_table, short_table) = (vec![11, 2, 7], vec![5, 0]);
        let mut got = [Vec::new(), Vec::new()];
        // The last three tokens of each come one by one.
        let mut pieces = vec![(0..70, 0..6)];
        pieces.extend((0..3).map(|i| (70 + i..71 + i, 6 + i..7 + i)));
        for (long_tokens, short_tokens) in pieces {
            let rows = rig.step(&[
                Piece { sequence: &long, tokens: long_tokens, block_table: &long_table },
                Piece { sequence: &short, tokens: short_tokens, block_table: &short_table },
            ]);
            for (got, rows) in got.iter_mut().zip(rows) {
                got.extend(rows);
            }
        }
        let tolerance = f64::max(rounding, strength.tolerance);
        for (got, sequence) in got.iter().zip([&long, &short]) {
            let what = format!("attention over {} tokens, {dtype}", sequence.num_tokens());
            assert_close(&what, got, &sequence.attention(), tolerance);
        }
    }
}

/// However a prompt is cut, down to single tokens, its rows are the same: K
/// and V are always read as stored.
///
/// # Panics
/// When the law is broken.
pub fn chunked_prefill_equals_whole<M: Mesh>(mesh: &mut M, strength: Strength) {
    for dtype in KV_DTYPES {
        let mut rig = rig(mesh, dtype);
        let sequence = Sequence::new(62, 75, rig.shape());
        let whole = rig.run_in_chunks(&sequence, &[75], &[3, 9, 1]);
        for chunks in [&[32, 32, 11][..], &[1, 40, 34], &[33, 1, 1, 40], &[1; 75]] {
            let chunked = rig.run_in_chunks(&sequence, chunks, &[14, 4, 8]);
            let what = format!("chunks {chunks:?} in {dtype}");
            assert_same(&what, &chunked, &whole, strength);
        }
    }
}

/// A sequence's rows are the same alone and among others, prefill and decode
/// mixed.
///
/// # Panics
/// When the law is broken.
pub fn sequences_do_not_see_each_other<M: Mesh>(mesh: &mut M, strength: Strength) {
    for dtype in KV_DTYPES {
        let mut rig = rig(mesh, dtype);
        let sequences: Vec<Sequence> = [(63, 40), (64, 1), (65, 66), (66, 33)]
            .map(|(seed, tokens)| Sequence::new(seed, tokens, rig.shape()))
            .into();
        let tables = [vec![0, 15], vec![3], vec![9, 1, 12], vec![6, 4]];
        let alone: Vec<Vec<f32>> = sequences
            .iter()
            .zip(&tables)
            .map(|(sequence, table)| rig.run_in_chunks(sequence, &[sequence.num_tokens()], table))
            .collect();
        let pieces: Vec<Piece<'_>> = sequences
            .iter()
            .zip(&tables)
            .map(|(sequence, block_table)| Piece {
                sequence,
                // The last sequence decodes; the others prefill.
                tokens: if sequence.num_tokens() == 33 { 32..33 } else { 0..sequence.num_tokens() },
                block_table,
            })
            .collect();
        let together = rig.step(&pieces);
        for ((got, alone), piece) in together.iter().zip(&alone).zip(&pieces) {
            let width = alone.len() / piece.sequence.num_tokens();
            let want = &alone[piece.tokens.start * width..piece.tokens.end * width];
            assert_same(&format!("{:?} in {dtype}", piece.tokens), got, want, strength);
        }
    }
}

/// A sequence may start after blocks that another sequence has written, and
/// writing its own leaves those as they were.
///
/// # Panics
/// When the law is broken.
pub fn shared_prefix_blocks_are_read<M: Mesh>(mesh: &mut M, strength: Strength) {
    let mut rig = rig(mesh, DType::Bfp8);
    let first = Sequence::new(67, 70, rig.shape());
    let second = Sequence::new(68, 50, rig.shape()).with_prefix_of(&first, BLOCK_SIZE);
    let whole = rig.run_in_chunks(&second, &[50], &[13, 12]);
    let first_whole = rig.run_in_chunks(&first, &[70], &[2, 3, 4]);
    // Block 2 holds the shared prefix.
    let tail = Piece { sequence: &second, tokens: BLOCK_SIZE..50, block_table: &[2, 7] };
    let reused = rig.step(&[tail]).remove(0);
    let width = whole.len() / 50;
    assert_same("rows after a shared prefix", &reused, &whole[BLOCK_SIZE * width..], strength);
    let last = Piece { sequence: &first, tokens: 69..70, block_table: &[2, 3, 4] };
    let again = rig.step(&[last]).remove(0);
    assert_same("the prefix's owner", &again, &first_whole[69 * width..], strength);
}

/// Every layer has its own keys and values.
///
/// # Panics
/// When the law is broken.
pub fn layers_do_not_touch_each_other<M: Mesh>(mesh: &mut M, strength: Strength) {
    let mut rig = rig(mesh, DType::F32);
    let sequences = [69, 70].map(|seed| Sequence::new(seed, 40, rig.shape()));
    let table = [5, 6];
    for (layer, sequence) in sequences.iter().enumerate() {
        rig.use_layer(layer);
        rig.step(&[Piece { sequence, tokens: 0..39, block_table: &table }]);
    }
    for (layer, sequence) in sequences.iter().enumerate() {
        rig.use_layer(layer);
        let got = rig.step(&[Piece { sequence, tokens: 39..40, block_table: &table }]).remove(0);
        let want = sequence.attention();
        let want = &want[39 * got.len()..];
        assert_close(&format!("layer {layer}"), &got, want, strength.tolerance);
    }
}

/// Grouped queries, and more than one key head even on one chip.
fn rig<M: Mesh>(mesh: &mut M, dtype: DType) -> AttentionRig<'_, M> {
    let num_chips = mesh.describe().num_chips;
    let num_key_value_heads = if num_chips == 1 { 2 } else { num_chips };
    let shape = AttentionShape {
        num_attention_heads: 3 * num_key_value_heads,
        num_key_value_heads,
        head_dim: 32,
    };
    let cache =
        KvCacheShape { num_layers: 2, num_blocks: NUM_BLOCKS, block_size: BLOCK_SIZE, dtype };
    AttentionRig::new(mesh, shape, cache)
}
