//! Attention as a textbook states it: one sequence, f64, no cache.

use super::probe::noise;
use crate::AttentionShape;

/// Base of the rotary frequencies.
const THETA: f64 = 10_000.0;

/// Rotary angles of every position: `(cos, sin)`, each
/// `[max_positions, head_dim / 2]`.
pub(super) fn rope_tables(max_positions: usize, head_dim: usize) -> (Vec<f32>, Vec<f32>) {
    let half = head_dim / 2;
    let angles = (0..max_positions).flat_map(|position| {
        (0..half).map(move |i| position as f64 * THETA.powf(-2.0 * i as f64 / head_dim as f64))
    });
    angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip()
}

/// A sequence whose fused projections are noise.
#[derive(Debug, Clone)]
pub struct Sequence {
    shape: AttentionShape,
    /// `[num_tokens, (heads + 2·kv_heads)·head_dim]`
    qkv: Vec<f32>,
}

impl Sequence {
    /// The same values for the same seed.
    pub fn new(seed: u64, num_tokens: usize, shape: AttentionShape) -> Self {
        // Larger than 1, so that the softmax has a clear winner now and then.
        let qkv = noise(seed, num_tokens * qkv_width(shape)).into_iter().map(|v| v * 2.0).collect();
        Self { shape, qkv }
    }

    /// The same first `prefix_tokens` tokens as `other`, own ones after.
    ///
    /// # Panics
    /// When either sequence is shorter.
    pub fn with_prefix_of(mut self, other: &Self, prefix_tokens: usize) -> Self {
        let shared = prefix_tokens * qkv_width(self.shape);
        self.qkv[..shared].copy_from_slice(&other.qkv[..shared]);
        self
    }

    /// Its length.
    pub fn num_tokens(&self) -> usize {
        self.qkv.len() / qkv_width(self.shape)
    }

    /// Rows of `[q | k | v]`.
    ///
    /// # Panics
    /// When the range is out of bounds.
    pub fn rows(&self, tokens: std::ops::Range<usize>) -> &[f32] {
        let width = qkv_width(self.shape);
        &self.qkv[tokens.start * width..tokens.end * width]
    }

    /// Causal attention of every token: `[num_tokens, heads·head_dim]`.
    pub fn attention(&self) -> Vec<f64> {
        let AttentionShape { num_attention_heads, num_key_value_heads, head_dim } = self.shape;
        let heads_per_kv = num_attention_heads / num_key_value_heads;
        let scale = (head_dim as f64).sqrt().recip();
        let mut out = Vec::new();
        for token in 0..self.num_tokens() {
            for head in 0..num_attention_heads {
                let kv_head = head / heads_per_kv;
                let q = self.head(token, head, Rotated::Yes);
                let scores: Vec<f64> = (0..=token)
                    .map(|past| {
                        let k = self.head(past, num_attention_heads + kv_head, Rotated::Yes);
                        q.iter().zip(&k).map(|(q, k)| q * k).sum::<f64>() * scale
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
                let total: f64 = weights.iter().sum();
                let mut sum = vec![0.0; head_dim];
                for (past, weight) in weights.iter().enumerate() {
                    let v_head = num_attention_heads + num_key_value_heads + kv_head;
                    let v = self.head(past, v_head, Rotated::No);
                    for (sum, v) in sum.iter_mut().zip(v) {
                        *sum += weight / total * v;
                    }
                }
                out.extend(sum);
            }
        }
        out
    }

    /// Head number `head` of `[q | k | v]`.
    fn head(&self, token: usize, head: usize, rotated: Rotated) -> Vec<f64> {
        let head_dim = self.shape.head_dim;
        let row = self.rows(token..token + 1);
        let mut values: Vec<f64> =
            row[head * head_dim..][..head_dim].iter().copied().map(f64::from).collect();
        if rotated == Rotated::Yes {
            for (i, pair) in values.chunks_exact_mut(2).enumerate() {
                let angle = token as f64 * THETA.powf(-2.0 * i as f64 / head_dim as f64);
                let (sin, cos) = angle.sin_cos();
                (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos);
            }
        }
        values
    }
}

/// Whether a head turns with its position: q and k do, v does not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rotated {
    Yes,
    No,
}

/// Channels of `[q | k | v]` over the whole mesh.
pub(super) fn qkv_width(shape: AttentionShape) -> usize {
    (shape.num_attention_heads + 2 * shape.num_key_value_heads) * shape.head_dim
}
