//! Tokens that may be drawn, and the cuts that leave fewer.
//!
//! Nothing sorts the vocabulary: a histogram over the logits finds the bucket
//! in which a cut falls, and only that bucket is sorted.

use super::exp::exp;
use crate::generation::Sampling;

/// A weight is a probability relative to the likeliest token's, in units of
/// 2⁻⁴⁰: sums over any vocabulary fit in 64 bits and are exact.
const UNIT: f32 = (1u64 << 40) as f32;

/// Below this logit (relative to the greatest, after temperature) the weight
/// rounds to zero: 2⁻⁴⁰ is `e^-27.7`.
const LOWEST: f32 = -28.0;

const BUCKETS_PER_UNIT: f32 = 32.0;
const NUM_BUCKETS: usize = 32 * 28 + 1;

/// Tokens in order of id, with logits relative to the greatest (`x ≤ 0`).
#[derive(Debug, Default)]
pub(super) struct Candidates {
    ids: Vec<u32>,
    xs: Vec<f32>,
    weights: Vec<u64>,
    boundary: Vec<usize>,
}

fn bucket(x: f32) -> usize {
    // Monotone in x, and within 0..NUM_BUCKETS for LOWEST ≤ x ≤ 0.
    (-x * BUCKETS_PER_UNIT) as usize
}

impl Candidates {
    /// Temperature and min-p: takes what can be drawn at all out of a row of
    /// logits whose greatest is `max`.
    pub(super) fn fill(&mut self, logits: &[f32], max: f32, sampling: &Sampling) {
        self.ids.clear();
        self.xs.clear();
        self.weights.clear();
        let temperature = sampling.temperature;
        // ln 0 is −∞, which cuts nothing.
        let lowest = LOWEST.max(sampling.min_p.ln());
        // In logits first, with room for rounding: a comparison is cheaper than
        // a division, and few pass it.
        let coarse = max + (lowest - 1.0) * temperature;
        for (id, &logit) in (0..).zip(logits) {
            if logit < coarse {
                continue;
            }
            let x = (logit - max) / temperature;
            // Not so for NaN either: a temperature that underflows everything.
            if x >= lowest {
                self.ids.push(id);
                self.xs.push(x);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Leaves the `top_k` greatest; among equals the lowest ids.
    pub(super) fn keep_top_k(&mut self, top_k: usize) {
        if top_k >= self.ids.len() {
            return;
        }
        let mut counts = [0u64; NUM_BUCKETS];
        for &x in &self.xs {
            counts[bucket(x)] += 1;
        }
        self.keep_until(&counts, top_k.max(1) as u64, |_, _| 1);
    }

    /// Computes the weights of what is left.
    pub(super) fn weigh(&mut self) {
        self.weights.extend(self.xs.iter().map(|&x| (exp(x) * UNIT) as u64));
    }

    /// Leaves the smallest set of likeliest tokens with at least this share of
    /// the weight; among equals the lowest ids.
    pub(super) fn keep_top_p(&mut self, top_p: f32) {
        let mut sums = [0u64; NUM_BUCKETS];
        for (&x, &weight) in self.xs.iter().zip(&self.weights) {
            sums[bucket(x)] += weight;
        }
        let total: u64 = sums.iter().sum();
        let target = (f64::from(top_p) * total as f64).ceil() as u64;
        self.keep_until(&sums, target.clamp(1, total), |this, idx| this.weights[idx]);
    }

    /// Leaves the likeliest tokens until their measure reaches `target`, given
    /// the measure of each bucket and of each token.
    fn keep_until(
        &mut self,
        buckets: &[u64; NUM_BUCKETS],
        target: u64,
        measure: impl Fn(&Self, usize) -> u64,
    ) {
        let mut reached = 0;
        let mut cut = 0;
        while reached + buckets[cut] < target {
            reached += buckets[cut];
            cut += 1;
        }
        let mut boundary = std::mem::take(&mut self.boundary);
        boundary.clear();
        boundary.extend((0..self.xs.len()).filter(|&idx| bucket(self.xs[idx]) == cut));
        // Stable, so that equals stay in order of id.
        boundary.sort_by(|&a, &b| self.xs[b].total_cmp(&self.xs[a]));
        let mut last = 0;
        for &idx in &boundary {
            last = idx;
            reached += measure(self, idx);
            if reached >= target {
                break;
            }
        }
        self.boundary = boundary;
        self.keep_down_to(self.xs[last], self.ids[last]);
    }

    /// Leaves what comes before or at `(x, id)`.
    fn keep_down_to(&mut self, lowest: f32, last_id: u32) {
        let mut kept = 0;
        for idx in 0..self.xs.len() {
            let (x, id) = (self.xs[idx], self.ids[idx]);
            if x > lowest || (x == lowest && id <= last_id) {
                self.xs[kept] = x;
                self.ids[kept] = id;
                if let Some(&weight) = self.weights.get(idx) {
                    self.weights[kept] = weight;
                }
                kept += 1;
            }
        }
        self.xs.truncate(kept);
        self.ids.truncate(kept);
        self.weights.truncate(kept);
    }

    /// The token at `random / 2⁶⁴` of the summed weights, in order of id.
    pub(super) fn pick(&self, random: u64) -> u32 {
        let total: u64 = self.weights.iter().sum();
        let scaled = (u128::from(random) * u128::from(total)) >> 64;
        let mut left = u64::try_from(scaled).expect("below the total");
        for (&id, &weight) in self.ids.iter().zip(&self.weights) {
            if left < weight {
                return id;
            }
            left -= weight;
        }
        unreachable!("a share of the total lies within it")
    }
}
