//! Attention: what it sees, what it must not, and what it demands.

use super::super::heads::by_user;
use super::*;
use crate::ops::{PagedAttention, Result};
use crate::spec::{SdpaConfig, SdpaProgram};

const BF16: DataType = DataType::BFloat16;
const DRAM: MemoryConfig = MemoryConfig::DRAM;
const BLOCKS: usize = 64;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const CHANNELS: usize = 32;
const SCALE: f32 = 0.5;
const CACHE: Shape = [BLOCKS, KV_HEADS, 32, CHANNELS];

fn config(q_chunk_size: usize, k_chunk_size: usize) -> SdpaConfig {
    let program = SdpaProgram { grid: Grid { x: 8, y: 7 }, q_chunk_size, k_chunk_size };
    SdpaConfig { scale: SCALE, program, compute: COMPUTE }
}

/// Attention of one query by its formula, in f64.
fn formula(q: &[f32], keys: &[&[f32]], values: &[&[f32]]) -> Vec<f64> {
    let dot = |k: &[f32]| q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>();
    let weights: Vec<f64> = keys.iter().map(|k| (dot(k) * f64::from(SCALE)).exp()).collect();
    let total: f64 = weights.iter().sum();
    let channel = |c: usize| {
        values.iter().zip(&weights).map(|(v, w)| f64::from(v[c]) * w).sum::<f64>() / total
    };
    (0..q.len()).map(channel).collect()
}

/// A decode step's operands: two pages a user, none shared.
struct Decode {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    pages: Vec<i32>,
    positions: Vec<i32>,
}

impl Decode {
    fn new() -> Self {
        Self {
            q: numbers(1, 32 * HEADS * CHANNELS),
            k: numbers(2, CACHE.iter().product()),
            v: numbers(3, CACHE.iter().product()),
            pages: (0..64).map(|page| page * 23 % 64).collect(),
            positions: (0..32).map(|user| user * 2).collect(),
        }
    }

    /// First element of a key head's row at a position.
    fn row(&self, user: usize, position: usize, head: usize) -> usize {
        let block = self.pages[user * 2 + position / 32] as usize;
        ((block * KV_HEADS + head) * 32 + position % 32) * CHANNELS
    }

    fn run(&self, ops: &mut ReferenceOps) -> Vec<f32> {
        let y = self.run_with(ops, by_user(HEADS, CHANNELS), &config(0, 0)).unwrap();
        ops.read(&y, 0).unwrap()
    }

    fn run_with(
        &self,
        ops: &mut ReferenceOps,
        q_memory: MemoryConfig,
        config: &SdpaConfig,
    ) -> Result<Tensor> {
        let q = Upload::tiles([1, 32, HEADS, CHANNELS], BF16).into(q_memory).reals(ops, &self.q);
        let [k, v] = [&self.k, &self.v].map(|kv| Upload::tiles(CACHE, BF16).reals(ops, kv));
        let table = Upload::rows([1, 1, 32, 2], DataType::Int32).rank(2).int32(ops, &self.pages);
        let at = Upload::rows([1, 1, 1, 32], DataType::Int32).rank(1).int32(ops, &self.positions);
        let attention =
            PagedAttention { q: &q, k_cache: &k, v_cache: &v, page_table: &table, positions: &at };
        ops.paged_sdpa_decode(&attention, config, &DRAM)
    }
}

#[test]
fn a_decode_query_sees_its_own_pages_up_to_its_position() {
    let mut ops = ReferenceOps::new(1);
    let decode = Decode::new();
    let y = decode.run(&mut ops);
    for (idx, out) in y.chunks(CHANNELS).enumerate() {
        let (user, head) = (idx / HEADS, idx % HEADS);
        let rows: Vec<usize> = (0..=decode.positions[user] as usize)
            .map(|position| decode.row(user, position, head / 2))
            .collect();
        let of = |cache: &'_ [f32]| -> Vec<Vec<f32>> {
            rows.iter().map(|row| cache[*row..*row + CHANNELS].to_vec()).collect()
        };
        let (keys, values) = (of(&decode.k), of(&decode.v));
        let keys: Vec<&[f32]> = keys.iter().map(Vec::as_slice).collect();
        let values: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
        assert_close(out, formula(&decode.q[idx * CHANNELS..][..CHANNELS], &keys, &values));
    }
}

#[test]
fn nothing_beyond_a_position_and_no_other_page_is_read() {
    let mut ops = ReferenceOps::new(1);
    let decode = Decode::new();
    let y = decode.run(&mut ops);
    let mut poisoned = Decode::new();
    poisoned.k.fill(f32::NAN);
    poisoned.v.fill(f32::NAN);
    for user in 0..32 {
        for position in 0..=decode.positions[user] as usize {
            for head in 0..KV_HEADS {
                let row = decode.row(user, position, head);
                poisoned.k[row..row + CHANNELS].copy_from_slice(&decode.k[row..][..CHANNELS]);
                poisoned.v[row..row + CHANNELS].copy_from_slice(&decode.v[row..][..CHANNELS]);
            }
        }
    }
    assert_eq!(poisoned.run(&mut ops), y);
}

#[test]
fn a_user_who_takes_no_part_has_no_result() {
    let mut ops = ReferenceOps::new(1);
    let mut decode = Decode::new();
    let with = decode.run(&mut ops);
    decode.positions[5] = -1;
    let without = decode.run(&mut ops);
    let user = HEADS * CHANNELS;
    let range = 5 * user..6 * user;
    assert!(without[range.clone()].iter().all(|value| value.is_nan()));
    assert_eq!(without[..range.start], with[..range.start]);
    assert_eq!(without[range.end..], with[range.end..]);
}

#[test]
fn chunks_of_a_prompt_see_what_the_whole_prompt_sees() {
    let mut ops = ReferenceOps::new(1);
    let rows = 96;
    let [q, k, v] = [HEADS, KV_HEADS, KV_HEADS].map(|heads| {
        let shape = [1, heads, rows, CHANNELS];
        Upload::tiles(shape, BF16).reals(&mut ops, &numbers(heads as u64, heads * rows * CHANNELS))
    });
    let whole = ops.sdpa(&q, &k, &v, &config(32, 64)).unwrap();
    let caches = [&k, &v].map(|x| {
        let cache = ops.zeros(CACHE, BF16, Layout::Tile, &DRAM).unwrap();
        let table = Upload::rows([1, 1, 1, 4], DataType::Int32).rank(2);
        let table = table.int32(&mut ops, &[60, 3, 41, 7]);
        ops.paged_fill_cache(&cache, x, &table).unwrap();
        (cache, table)
    });
    for start in [0, 32, 64] {
        let from = [0, 0, start, 0];
        let to = [1, HEADS, start + 32, CHANNELS];
        let chunk = ops.slice(&q, from, to).unwrap();
        let at = Upload::rows([1, 1, 1, 1], DataType::Int32).rank(1);
        let at = at.int32(&mut ops, &[start as i32]);
        let [(k_cache, page_table), (v_cache, _)] = &caches;
        let attention = PagedAttention { q: &chunk, k_cache, v_cache, page_table, positions: &at };
        let y = ops.chunked_sdpa(&attention, &config(32, 32)).unwrap();
        let expected = ops.slice(&whole, from, to).unwrap();
        assert_eq!(ops.read(&y, 0).unwrap(), ops.read(&expected, 0).unwrap());
    }
}

#[test]
fn a_decode_attention_demands_what_the_package_does() {
    let mut ops = ReferenceOps::new(1);
    let decode = Decode::new();
    let sharded = by_user(HEADS, CHANNELS);
    decode.run_with(&mut ops, DRAM, &config(0, 256)).unwrap();
    let l1 = decode.run_with(&mut ops, MemoryConfig::L1, &config(0, 0));
    assert_refused(l1, &["q in DRAM when not sharded"]);
    let odd = decode.run_with(&mut ops, sharded, &config(0, 33));
    assert_refused(odd, &["a power of 2 from 32", "33"]);
    let mut small = config(0, 0);
    small.program.grid = Grid { x: 4, y: 4 };
    let small = decode.run_with(&mut ops, sharded, &small);
    assert_refused(small, &["cores for 32 users", "16"]);
    let late = Decode { positions: vec![64; 32], ..Decode::new() };
    let late = late.run_with(&mut ops, sharded, &config(0, 0));
    assert_refused(late, &["paged_scaled_dot_product_attention_decode", "positions below 64"]);
}

#[test]
fn a_prefill_attention_demands_what_the_package_does() {
    let mut ops = ReferenceOps::new(1);
    let mut heads = |heads: usize, rows: usize| {
        let values = numbers(1, heads * rows * CHANNELS);
        Upload::tiles([1, heads, rows, CHANNELS], BF16).reals(&mut ops, &values)
    };
    let (q, kv, short, three) = (heads(4, 64), heads(2, 64), heads(2, 32), heads(3, 64));
    assert_refused(ops.sdpa(&q, &kv, &kv, &config(0, 64)), &["q_chunk_size", "found 0"]);
    assert_refused(ops.sdpa(&q, &kv, &kv, &config(64, 48)), &["k_chunk_size", "48"]);
    assert_refused(ops.sdpa(&q, &short, &short, &config(32, 32)), &["k of shape [1, 2, 64, 32]"]);
    assert_refused(ops.sdpa(&three, &kv, &kv, &config(32, 32)), &["multiple of K heads (2)"]);

    let mut chunk = |start: i32, config: &SdpaConfig| {
        let cache = ops.zeros(CACHE, BF16, Layout::Tile, &DRAM).unwrap();
        let table = Upload::rows([1, 1, 1, 4], DataType::Int32).rank(2);
        let table = table.int32(&mut ops, &[0, 1, 2, 3]);
        let at = Upload::rows([1, 1, 1, 1], DataType::Int32).rank(1).int32(&mut ops, &[start]);
        let attention = PagedAttention {
            q: &q,
            k_cache: &cache,
            v_cache: &cache,
            page_table: &table,
            positions: &at,
        };
        ops.chunked_sdpa(&attention, config)
    };
    chunk(64, &config(64, 64)).unwrap();
    assert_refused(chunk(32, &config(64, 32)), &["a multiple of 64", "32"]);
    assert_refused(chunk(32, &config(32, 64)), &["a multiple of 64", "32"]);
    assert_refused(chunk(96, &config(32, 32)), &["positions below 128", "64 rows from 96"]);
}
