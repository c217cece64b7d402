//! Splitting, turning and joining heads.

use proptest::prelude::*;

use super::super::heads::{USER_GRID, by_user};
use super::*;
use crate::ops::RopeTensors;

const BF16: DataType = DataType::BFloat16;
const DRAM: MemoryConfig = MemoryConfig::DRAM;
const TILES_OF_USERS: MemoryConfig =
    MemoryConfig::HeightSharded { grid: USER_GRID, shard: [32, 32] };

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn a_fused_row_is_queries_then_keys_then_values(
        kv_heads in 1usize..=3,
        queries in 1usize..=3,
        tiles in 1usize..=2,
        rows in 1usize..=40,
    ) {
        let mut ops = ReferenceOps::new(1);
        let (heads, head_dim) = (kv_heads * queries, 32 * tiles);
        let width = (heads + 2 * kv_heads) * head_dim;
        let first_head = [0, heads, heads + kv_heads];

        let values = numbers(1, rows * width);
        let qkv = Upload::tiles([1, 1, rows, width], BF16).reals(&mut ops, &values);
        let parts = ops.nlp_create_qkv_heads(&qkv, heads, kv_heads).unwrap();
        for (part, first) in parts.iter().zip(first_head) {
            let [_, count, _, _] = ops.shape(part);
            let expected: Vec<f32> = (0..count * rows * head_dim).map(|at| {
                let (head, row) = (at / (rows * head_dim), at / head_dim % rows);
                values[row * width + (first + head) * head_dim + at % head_dim]
            }).collect();
            prop_assert_eq!(ops.read(part, 0).unwrap(), expected);
        }
        let joined = ops.nlp_concat_heads(&parts[0]).unwrap();
        let only = ops.slice(&qkv, [0; 4], [1, 1, rows, heads * head_dim]).unwrap();
        prop_assert_eq!(ops.read(&joined, 0).unwrap(), ops.read(&only, 0).unwrap());

        let values = numbers(2, 32 * width);
        let qkv = Upload::tiles([1, 1, 32, width], BF16).reals(&mut ops, &values);
        let parts = ops.nlp_create_qkv_heads_decode(&qkv, heads, kv_heads).unwrap();
        for (part, first) in parts.iter().zip(first_head) {
            let [_, _, count, _] = ops.shape(part);
            let expected: Vec<f32> = values.chunks(width)
                .flat_map(|row| &row[first * head_dim..(first + count) * head_dim])
                .copied().collect();
            prop_assert_eq!(ops.read(part, 0).unwrap(), expected);
        }
        let joined = ops.nlp_concat_heads_decode(&parts[0], heads).unwrap();
        let only = ops.slice(&qkv, [0; 4], [1, 1, 32, heads * head_dim]).unwrap();
        prop_assert_eq!(ops.read(&joined, 0).unwrap(), ops.read(&only, 0).unwrap());
    }
}

/// The tile that gives of a pair (a, b) the pair (−b, a).
fn quarter_turn() -> Vec<f32> {
    let mut tile = vec![0.0; 1024];
    for pair in 0..16 {
        tile[(2 * pair + 1) * 32 + 2 * pair] = -1.0;
        tile[2 * pair * 32 + 2 * pair + 1] = 1.0;
    }
    tile
}

/// Rows of 64 channels turned by the angles of their table rows.
fn turned(x: &[f32], [cos, sin]: [&[f32]; 2], table_row: impl Fn(usize) -> usize) -> Vec<f64> {
    x.iter()
        .enumerate()
        .map(|(at, value)| {
            let (row, channel) = (at / 64, at % 64);
            let angle = table_row(row) * 64 + channel;
            let other = if channel % 2 == 0 { -x[at + 1] } else { x[at - 1] };
            f64::from(*value) * f64::from(cos[angle]) + f64::from(other) * f64::from(sin[angle])
        })
        .collect()
}

#[test]
fn a_prefill_rotation_turns_pairs_by_their_row() {
    let mut ops = ReferenceOps::new(1);
    let (x, cos, sin) = (numbers(1, 2 * 40 * 64), numbers(2, 40 * 64), numbers(3, 40 * 64));
    let tensor = Upload::tiles([1, 2, 40, 64], BF16).reals(&mut ops, &x);
    let [c, s] = [&cos, &sin].map(|t| Upload::tiles([1, 1, 40, 64], BF16).reals(&mut ops, t));
    let t = Upload::tiles([1, 1, 32, 32], BF16).reals(&mut ops, &quarter_turn());
    let rope = RopeTensors { cos: &c, sin: &s, transformation: &t };
    let y = ops.rotary_embedding_llama(&tensor, &rope, false).unwrap();
    assert_close(&ops.read(&y, 0).unwrap(), turned(&x, [&cos, &sin], |row| row % 40));
}

#[test]
fn a_decode_rotation_turns_each_user_by_their_own_row() {
    let mut ops = ReferenceOps::new(1);
    let (x, cos, sin) = (numbers(1, 32 * 3 * 64), numbers(2, 32 * 64), numbers(3, 32 * 64));
    let users = by_user(3, 64);
    let x_there = Upload::tiles([1, 32, 3, 64], BF16).into(users).reals(&mut ops, &x);
    let tables = Upload::tiles([1, 32, 1, 64], BF16).into(by_user(1, 64));
    let [c, s] = [&cos, &sin].map(|table| tables.reals(&mut ops, table));
    let tiles = Upload::tiles([1, 1, 1024, 32], BF16);
    let t = tiles.into(TILES_OF_USERS).reals(&mut ops, &quarter_turn().repeat(32));
    let rope = RopeTensors { cos: &c, sin: &s, transformation: &t };
    let y = ops.rotary_embedding_llama(&x_there, &rope, true).unwrap();
    assert_close(&ops.read(&y, 0).unwrap(), turned(&x, [&cos, &sin], |row| row / 3));

    let in_dram = Upload::tiles([1, 32, 3, 64], BF16).reals(&mut ops, &x);
    assert_refused(
        ops.rotary_embedding_llama(&in_dram, &rope, true),
        &["rotary_embedding_llama", "x height-sharded"],
    );
    let loose = tiles.reals(&mut ops, &quarter_turn().repeat(32));
    let rope = RopeTensors { cos: &c, sin: &s, transformation: &loose };
    assert_refused(
        ops.rotary_embedding_llama(&x_there, &rope, true),
        &["the transformation height-sharded"],
    );
    let blocks = ops.typecast(&x_there, DataType::BFloat8B).unwrap();
    assert_refused(ops.rotary_embedding_llama(&blocks, &rope, true), &["BFloat16", "BFloat8B"]);
}

#[test]
fn heads_must_fit_the_row() {
    let mut ops = ReferenceOps::new(1);
    let qkv = Upload::tiles([1, 1, 32, 256], BF16).reals(&mut ops, &numbers(1, 8192));
    for (heads, kv_heads, needed) in [
        (3, 1, "num_heads + 2*num_kv_heads = 5"),
        (3, 2, "multiple of the key heads"),
        (14, 1, "heads of whole tiles"),
        (40, 8, "at most 32 heads"),
    ] {
        assert_refused(ops.nlp_create_qkv_heads_decode(&qkv, heads, kv_heads), &[needed]);
    }
    let blocks = ops.typecast(&qkv, DataType::BFloat8B).unwrap();
    assert_refused(ops.nlp_create_qkv_heads_decode(&blocks, 4, 2), &["BFloat16", "BFloat8B"]);
    let few = Upload::tiles([1, 1, 16, 256], BF16).reals(&mut ops, &numbers(1, 4096));
    assert_refused(ops.nlp_create_qkv_heads_decode(&few, 4, 2), &["[1, 1, 32, 256]"]);
}

#[test]
fn joining_heads_demands_users_on_cores_and_their_number() {
    let mut ops = ReferenceOps::new(1);
    let x = Upload::tiles([1, 32, 4, 32], BF16).reals(&mut ops, &numbers(1, 4096));
    assert_refused(ops.nlp_concat_heads_decode(&x, 4), &["x sharded in HeightSharded"]);
    let x = ops.to_memory_config(&x, &by_user(4, 32)).unwrap();
    // The package takes any number.
    assert_refused(ops.nlp_concat_heads_decode(&x, 3), &["num_heads 4", "found 3"]);
    let y = ops.nlp_concat_heads_decode(&x, 4).unwrap();
    assert_eq!(ops.to_memory_config(&y, &DRAM).map(|y| ops.shape(&y)).unwrap(), [1, 1, 32, 128]);
}
