//! The contract of [`attention`].

use super::{Attention, AttentionSequence, attention};
use crate::bfp::{decode_group, encode_group};
use crate::convert::{bf16_from_f32, f32_from_bf16};
use crate::testing::{assert_same_bits, values};
use crate::{Format, Isa, KvCacheStore, Pool};

/// A sequence in a cache, its K and V given as f32 `[tokens, kv_heads * head_dim]`.
struct Case {
    format: Format,
    block_size: usize,
    kv_heads: usize,
    heads: usize,
    head_dim: usize,
    tokens: usize,
}

impl Case {
    /// The pages in a scrambled order, so that the block table matters.
    fn block_table(&self) -> Vec<u32> {
        (0..self.tokens.div_ceil(self.block_size) as u32).rev().collect()
    }

    fn cache(&self, k: &[f32], v: &[f32]) -> KvCacheStore {
        let table = self.block_table();
        let mut cache = KvCacheStore::new(
            self.format,
            table.len(),
            self.block_size,
            self.kv_heads,
            self.head_dim,
        );
        let len = self.kv_heads * self.head_dim;
        for (position, (k, v)) in k.chunks_exact(len).zip(v.chunks_exact(len)).enumerate() {
            let block = table[position / self.block_size] as usize;
            cache.write(block, position % self.block_size, k, v);
        }
        cache
    }

    fn kv_len(&self) -> usize {
        self.tokens * self.kv_heads * self.head_dim
    }

    fn row_len(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Attention of the rows `from..to`, in one call.
    fn rows(
        &self,
        pool: &Pool,
        isa: Isa,
        cache: &KvCacheStore,
        q: &[f32],
        (from, to): (usize, usize),
    ) -> Vec<f32> {
        let stride = self.row_len() + 3;
        let mut out = vec![f32::NAN; (to - from) * self.row_len()];
        let table = self.block_table();
        let sequence = AttentionSequence {
            first_row: 0,
            num_tokens: to - from,
            first_position: from,
            block_table: &table,
        };
        let q = &q[from * stride..to * stride];
        let mut jobs =
            [Attention { q, q_stride: stride, cache, out: &mut out, num_heads: self.heads }];
        attention(pool, isa, 0.3, &[sequence], &mut jobs);
        out
    }

    /// Softmax in f64 over the exact K and V.
    fn oracle(&self, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
        let mut out = Vec::new();
        let dim = self.head_dim;
        for position in 0..self.tokens {
            for head in 0..self.heads {
                let q = &q[position * (self.row_len() + 3) + head * dim..][..dim];
                let at = |token: usize| {
                    (token * self.kv_heads + head / (self.heads / self.kv_heads)) * dim
                };
                let weights: Vec<f64> = (0..=position)
                    .map(|token| {
                        let k = &k[at(token)..][..dim];
                        let dot: f64 =
                            q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                        (dot * f64::from(0.3_f32)).exp()
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                for d in 0..dim {
                    let sum: f64 =
                        (0..=position).map(|t| weights[t] * f64::from(v[at(t) + d])).sum();
                    out.push(sum / total);
                }
            }
        }
        out
    }
}

fn cases(format: Format) -> Vec<Case> {
    [
        (16, 1, 3, 64, 40),
        (32, 2, 4, 64, 150),
        (7, 2, 2, 24, 30),
        (64, 1, 1, 5, 65),
        (16, 3, 9, 16, 1),
    ]
    .map(|(block_size, kv_heads, heads, head_dim, tokens)| Case {
        format,
        block_size,
        kv_heads,
        heads,
        head_dim,
        tokens,
    })
    .into()
}

#[test]
fn every_row_has_the_same_bits_alone_in_chunks_and_on_every_isa() {
    for format in [Format::F32, Format::Bf16, Format::Bfp8] {
        for case in cases(format) {
            let (k, v) = (values(1, case.kv_len()), values(2, case.kv_len()));
            let q = values(3, case.tokens * (case.row_len() + 3));
            let cache = case.cache(&k, &v);
            let expected = case.rows(&Pool::new(1), Isa::Scalar, &cache, &q, (0, case.tokens));
            for isa in Isa::available() {
                for num_threads in [1, 2, 3] {
                    let pool = Pool::new(num_threads);
                    for chunk in [1, 5, 33, case.tokens] {
                        let got: Vec<f32> = (0..case.tokens)
                            .step_by(chunk)
                            .flat_map(|from| {
                                let to = case.tokens.min(from + chunk);
                                case.rows(&pool, isa, &cache, &q, (from, to))
                            })
                            .collect();
                        assert_same_bits(&got, &expected, &format!("{format:?} {isa:?} {chunk}"));
                    }
                }
            }
        }
    }
}

/// What a format keeps of K or V: groups are 16 channels of one token's head.
fn kept(format: Format, head_dim: usize, values: &[f32]) -> Vec<f32> {
    let mut out = values.to_vec();
    for group in out.chunks_mut(head_dim).flat_map(|head| head.chunks_mut(16)) {
        match format {
            Format::Bf16 => {
                group.iter_mut().for_each(|value| *value = f32_from_bf16(bf16_from_f32(*value)));
            }
            Format::Bfp8 => {
                let mut padded = [0.0; 16];
                padded[..group.len()].copy_from_slice(group);
                let decoded = decode_group(format, &encode_group(format, &padded));
                group.copy_from_slice(&decoded[..group.len()]);
            }
            Format::F32 | Format::Bfp4 => {}
        }
    }
    out
}

#[test]
fn attention_is_softmax_over_what_the_cache_keeps() {
    for format in [Format::F32, Format::Bf16, Format::Bfp8] {
        for case in cases(format) {
            let (k, v) = (values(1, case.kv_len()), values(2, case.kv_len()));
            let q = values(3, case.tokens * (case.row_len() + 3));
            let cache = case.cache(&k, &v);
            let got = case.rows(&Pool::new(2), Isa::detect(), &cache, &q, (0, case.tokens));
            let (k, v) = (kept(format, case.head_dim, &k), kept(format, case.head_dim, &v));
            // Scores are below 20 and values below 1: a score is off by less
            // than 64 roundings of 20 · 2^-24, and so is the logarithm of a weight.
            for (got, expected) in got.iter().zip(case.oracle(&q, &k, &v)) {
                let error = (f64::from(*got) - expected).abs();
                assert!(error < 2.0 * 64.0 * 20.0 * 0.5_f64.powi(24), "{got} is not {expected}");
            }
        }
    }
}

#[test]
fn sequences_share_a_call_and_other_rows_are_left_alone() {
    let case = &cases(Format::Bfp8)[1];
    let (k, v) = (values(1, case.kv_len()), values(2, case.kv_len()));
    let q = values(3, case.tokens * (case.row_len() + 3));
    let cache = case.cache(&k, &v);
    let pool = Pool::new(2);
    let table = case.block_table();
    let stride = case.row_len() + 3;
    // Row 0 is position 90; row 1 belongs to nobody; rows 2 to 4 are positions 10 to 12.
    let rows = [90, 0, 10, 11, 12];
    let gathered: Vec<f32> =
        rows.iter().flat_map(|position| &q[position * stride..][..stride]).copied().collect();
    let sequence = |first_row, num_tokens, first_position| AttentionSequence {
        first_row,
        num_tokens,
        first_position,
        block_table: &table,
    };
    let sequences = [sequence(2, 3, 10), sequence(0, 1, 90)];
    let mut outs =
        [vec![-7.0; rows.len() * case.row_len()], vec![-7.0; rows.len() * case.row_len()]];
    let mut jobs: Vec<Attention<'_>> = outs
        .iter_mut()
        .map(|out| Attention {
            q: &gathered,
            q_stride: stride,
            cache: &cache,
            out,
            num_heads: case.heads,
        })
        .collect();
    attention(&pool, Isa::detect(), 0.3, &sequences, &mut jobs);
    for out in &outs {
        let row = |row: usize| &out[row * case.row_len()..][..case.row_len()];
        assert!(row(1).iter().all(|&value| value == -7.0));
        for (idx, position) in [(0, 90), (2, 10), (3, 11), (4, 12)] {
            let alone = case.rows(&pool, Isa::detect(), &cache, &q, (position, position + 1));
            assert_same_bits(row(idx), &alone, "a row in company");
        }
    }
}

#[test]
fn a_reused_page_shows_nothing_of_its_last_user() {
    let mut cache = KvCacheStore::new(Format::Bf16, 1, 16, 1, 16);
    let q = values(1, 16);
    let attend = |cache: &KvCacheStore| {
        let mut out = [0.0; 16];
        let sequence =
            AttentionSequence { first_row: 0, num_tokens: 1, first_position: 1, block_table: &[0] };
        let job = Attention { q: &q, q_stride: 16, cache, out: &mut out, num_heads: 1 };
        attention(&Pool::new(1), Isa::detect(), 1.0, &[sequence], &mut [job]);
        out
    };
    for offset in 0..2 {
        cache.write(0, offset, &values(2, 16), &values(3 + offset as u64, 16));
    }
    let clean = attend(&cache);
    for offset in 2..16 {
        cache.write(0, offset, &[f32::NAN; 16], &[f32::INFINITY; 16]);
    }
    assert_same_bits(&attend(&cache), &clean, "with a stale tail");
}

#[test]
#[should_panic(expected = "needs 2")]
fn a_short_block_table_is_refused() {
    let cache = KvCacheStore::new(Format::F32, 2, 4, 1, 4);
    let mut out = [0.0; 4];
    let sequence =
        AttentionSequence { first_row: 0, num_tokens: 1, first_position: 4, block_table: &[0] };
    let job = Attention { q: &[0.0; 4], q_stride: 4, cache: &cache, out: &mut out, num_heads: 1 };
    attention(&Pool::new(1), Isa::Scalar, 1.0, &[sequence], &mut [job]);
}
