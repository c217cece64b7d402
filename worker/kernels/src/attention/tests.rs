//! The contract of [`attention`].

use super::{Attention, AttentionSequence, attention};
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
        from: usize,
        to: usize,
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
            let expected = case.rows(&Pool::new(1), Isa::Scalar, &cache, &q, 0, case.tokens);
            for isa in Isa::available() {
                for num_threads in [1, 2, 3] {
                    let pool = Pool::new(num_threads);
                    for chunk in [1, 5, 33, case.tokens] {
                        let got: Vec<f32> = (0..case.tokens)
                            .step_by(chunk)
                            .flat_map(|from| {
                                let to = case.tokens.min(from + chunk);
                                case.rows(&pool, isa, &cache, &q, from, to)
                            })
                            .collect();
                        assert_same_bits(&got, &expected, &format!("{format:?} {isa:?} {chunk}"));
                    }
                }
            }
        }
    }
}

#[test]
fn f32_attention_is_softmax() {
    for case in cases(Format::F32) {
        let (k, v) = (values(1, case.kv_len()), values(2, case.kv_len()));
        let q = values(3, case.tokens * (case.row_len() + 3));
        let cache = case.cache(&k, &v);
        let got = case.rows(&Pool::new(2), Isa::detect(), &cache, &q, 0, case.tokens);
        for (got, expected) in got.iter().zip(case.oracle(&q, &k, &v)) {
            assert!((f64::from(*got) - expected).abs() < 1e-5, "{got} {expected}");
        }
    }
}
