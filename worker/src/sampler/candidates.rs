//! Tokens that may be drawn, and the cuts that leave fewer.
//!
//! Nothing sorts the vocabulary. One pass, vector code, weighs every token; a
//! cut looks at the likely ones only, unless they don't suffice; among them a
//! histogram finds the bucket in which it falls, and only that is sorted.

use super::exp::for_exps;
use crate::generation::Sampling;

/// A weight is a probability relative to the likeliest token's, in units of
/// 2⁻³⁰, rounded: sums over any vocabulary fit in 64 bits and are exact, so
/// they do not depend on their order.
const UNIT: f32 = (1u32 << 30) as f32;

/// Below this logit (relative to the greatest, after temperature) the weight
/// rounds to zero: half a unit is `e^-21.49`.
const LOWEST: f32 = -21.5;

/// Where a cut looks first, second, …: few tokens are above the first.
const FLOORS: [f32; 4] = [-2.0, -5.0, -10.0, LOWEST];

/// Logits looked at together for whether any is above a floor.
const CHUNK: usize = 32;

const BUCKETS_PER_UNIT: f32 = 32.0;
const NUM_BUCKETS: usize = 32 * 22;

/// Logits here are relative to the greatest, after temperature (`x ≤ 0`).
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// `[vocab_size]`
    all_xs: Vec<f32>,
    /// `[vocab_size]`; 0 for what can't be drawn.
    all_weights: Vec<u32>,
    /// What a cut left, in order of id; the three lie beside each other.
    ids: Vec<u32>,
    xs: Vec<f32>,
    weights: Vec<u32>,
    is_cut: bool,
    boundary: Vec<usize>,
}

/// What a cut counts.
#[derive(Debug, Clone, Copy)]
enum Measure {
    Tokens,
    Weight,
}

impl Measure {
    fn of(self, weight: u32) -> u64 {
        match self {
            Self::Tokens => 1,
            Self::Weight => weight.into(),
        }
    }

    fn sum(self, weights: &[u32]) -> u64 {
        match self {
            Self::Tokens => weights.len() as u64,
            Self::Weight => total(weights),
        }
    }
}

fn total(weights: &[u32]) -> u64 {
    weights.iter().map(|&weight| u64::from(weight)).sum()
}

fn bucket(x: f32) -> usize {
    // Monotone in x, and below NUM_BUCKETS for LOWEST ≤ x ≤ 0.
    (-x * BUCKETS_PER_UNIT) as usize
}

impl Candidates {
    /// Temperature and min-p: weighs a row of logits whose greatest is `max`.
    pub(super) fn weigh(&mut self, logits: &[f32], max: f32, sampling: &Sampling) {
        let temperature = sampling.temperature;
        // ln 0 is −∞, which cuts nothing.
        let lowest = LOWEST.max(sampling.min_p.ln());
        self.is_cut = false;
        self.all_xs.clear();
        self.all_xs.extend(logits.iter().map(|logit| (logit - max) / temperature));
        let Self { all_xs, all_weights, .. } = self;
        all_weights.clear();
        for_exps(all_xs, 0.0, |xs, exps| {
            all_weights.extend(xs.iter().zip(exps).map(|(&x, &exp)| {
                // Through i32, for which there are vector conversions.
                let weight = if x >= lowest { exp * UNIT + 0.5 } else { 0.0 };
                (weight as i32).unsigned_abs()
            }));
        });
    }

    /// Leaves the `top_k` greatest; among equals the lowest ids.
    pub(super) fn keep_top_k(&mut self, top_k: u32) {
        self.keep_until(Measure::Tokens, top_k.max(1).into());
    }

    /// Leaves the smallest set of likeliest tokens with at least this share of
    /// the weight; among equals the lowest ids.
    pub(super) fn keep_top_p(&mut self, top_p: f32) {
        let total = total(self.weights());
        let target = (f64::from(top_p) * total as f64).ceil() as u64;
        self.keep_until(Measure::Weight, target.clamp(1, total));
    }

    /// The token at `random / 2⁶⁴` of the summed weights, in order of id.
    pub(super) fn pick(&self, random: u64) -> u32 {
        let weights = self.weights();
        let scaled = (u128::from(random) * u128::from(total(weights))) >> 64;
        let mut left = u64::try_from(scaled).expect("below the total");
        for (chunk_idx, chunk) in weights.chunks(CHUNK).enumerate() {
            let of_chunk = total(chunk);
            if left >= of_chunk {
                left -= of_chunk;
                continue;
            }
            for (idx, &weight) in (chunk_idx * CHUNK..).zip(chunk) {
                if left < u64::from(weight) {
                    let id = u32::try_from(idx).expect("token ids are 32 bits wide");
                    return if self.is_cut { self.ids[idx] } else { id };
                }
                left -= u64::from(weight);
            }
        }
        unreachable!("a share of the total lies within it")
    }

    #[cfg(test)]
    pub(super) fn ids(&self) -> Vec<u32> {
        if self.is_cut {
            return self.ids.clone();
        }
        let drawable = (0..).zip(&self.all_weights).filter(|(_, weight)| **weight > 0);
        drawable.map(|(id, _)| id).collect()
    }

    fn weights(&self) -> &[u32] {
        if self.is_cut { &self.weights } else { &self.all_weights }
    }

    /// Leaves the likeliest tokens until their measure reaches `target`; all
    /// that can be drawn if it does not.
    fn keep_until(&mut self, measure: Measure, target: u64) {
        if !self.is_cut {
            self.is_cut = true;
            for floor in FLOORS {
                self.gather(floor);
                if measure.sum(&self.weights) >= target {
                    break;
                }
            }
        }
        if measure.sum(&self.weights) <= target {
            return;
        }
        let mut buckets = [0u64; NUM_BUCKETS];
        for (&x, &weight) in self.xs.iter().zip(&self.weights) {
            buckets[bucket(x)] += measure.of(weight);
        }
        let mut reached = 0;
        let mut cut = 0;
        while reached + buckets[cut] < target {
            reached += buckets[cut];
            cut += 1;
        }
        self.boundary.clear();
        self.boundary.extend((0..self.xs.len()).filter(|&idx| bucket(self.xs[idx]) == cut));
        // Stable, so that equals stay in order of id.
        let xs = &self.xs;
        self.boundary.sort_by(|&a, &b| xs[b].total_cmp(&xs[a]));
        let mut last = 0;
        for &idx in &self.boundary {
            last = idx;
            reached += measure.of(self.weights[idx]);
            if reached >= target {
                break;
            }
        }
        self.keep_down_to(self.xs[last], self.ids[last]);
    }

    /// Takes in whatever can be drawn and is not below `floor`.
    fn gather(&mut self, floor: f32) {
        self.ids.clear();
        self.xs.clear();
        self.weights.clear();
        for (chunk_idx, chunk) in self.all_xs.chunks(CHUNK).enumerate() {
            if !chunk.iter().fold(false, |any, x| any | (*x >= floor)) {
                continue;
            }
            for (idx, &x) in (chunk_idx * CHUNK..).zip(chunk) {
                let weight = self.all_weights[idx];
                if x >= floor && weight > 0 {
                    self.ids.push(u32::try_from(idx).expect("token ids are 32 bits wide"));
                    self.xs.push(x);
                    self.weights.push(weight);
                }
            }
        }
    }

    /// Leaves what comes before or at `(x, id)`.
    fn keep_down_to(&mut self, lowest: f32, last_id: u32) {
        let mut kept = 0;
        for idx in 0..self.xs.len() {
            let (x, id) = (self.xs[idx], self.ids[idx]);
            if x > lowest || (x == lowest && id <= last_id) {
                self.xs[kept] = x;
                self.ids[kept] = id;
                self.weights[kept] = self.weights[idx];
                kept += 1;
            }
        }
        self.xs.truncate(kept);
        self.ids.truncate(kept);
        self.weights.truncate(kept);
    }
}
