//! Rotary position tables, computed in single precision as Meta's code does.
//!
//! Doing better than f32 would be doing otherwise: at position 100,000 the
//! angle itself carries an f32 rounding error of 2⁻⁸, which the model was
//! trained with.

use crate::config::{LlamaConfig, RopeScaling};

/// Cosines and sines for every position.
#[derive(Debug, Clone)]
pub struct RopeTables {
    /// `[max_positions, head_dim / 2]`
    pub cos: Vec<f32>,
    /// `[max_positions, head_dim / 2]`
    pub sin: Vec<f32>,
}

/// One frequency, in radians a position, per pair of channels:
/// `[head_dim / 2]`, Llama 3 scaling applied.
pub fn inverse_frequencies(config: &LlamaConfig) -> Vec<f32> {
    let head_dim = config.head_dim as f32;
    (0..config.head_dim / 2)
        .map(|pair| {
            let exponent = (2 * pair) as f32 / head_dim;
            // The power in f64, rounded once: within an ulp of any libm's powf,
            // and the same on every machine.
            let power = f64::from(config.rope_theta).powf(f64::from(exponent)) as f32;
            scale(1.0 / power, config.rope_scaling.as_ref())
        })
        .collect()
}

/// `apply_scaling` of Meta's model code.
fn scale(frequency: f32, scaling: Option<&RopeScaling>) -> f32 {
    let Some(scaling) = scaling else { return frequency };
    let original = scaling.original_max_position_embeddings as f32;
    let wavelength = 2.0 * std::f32::consts::PI / frequency;
    if wavelength < original / scaling.high_freq_factor {
        frequency
    } else if wavelength > original / scaling.low_freq_factor {
        frequency / scaling.factor
    } else {
        let smooth = (original / wavelength - scaling.low_freq_factor)
            / (scaling.high_freq_factor - scaling.low_freq_factor);
        (1.0 - smooth) * frequency / scaling.factor + smooth * frequency
    }
}

impl RopeTables {
    /// Tables of `frequencies.len()` pairs for positions `0..max_positions`.
    pub fn new(frequencies: &[f32], max_positions: usize) -> Self {
        let mut cos = Vec::with_capacity(max_positions * frequencies.len());
        let mut sin = Vec::with_capacity(max_positions * frequencies.len());
        for position in 0..max_positions {
            for &frequency in frequencies {
                // The angle rounds to f32; its cosine does only at the end.
                let angle = f64::from(position as f32 * frequency);
                cos.push(angle.cos() as f32);
                sin.push(angle.sin() as f32);
            }
        }
        Self { cos, sin }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Llama3Size;
    use crate::config::tests::{llama3, smollm2};

    #[test]
    fn scaled_frequencies_match_the_published_vectors() {
        // Published with nine digits: more than an f32 literal can hold.
        let factor_8: &[(usize, f64)] = &[
            (0, 1.0),
            (1, 0.814617234),
            (28, 0.00321144599),
            (29, 0.00216657076),
            (30, 0.00137189357),
            (35, 9.55621235e-5),
            (63, 3.06892599e-7),
        ];
        let factor_32: &[(usize, f64)] =
            &[(29, 0.002118407), (30, 0.00129054793), (35, 2.38905309e-5), (63, 7.67231497e-8)];
        let factor_32_half: &[(usize, f64)] =
            &[(1, 0.663601238), (28, 3.22293293e-7), (30, 1.41927203e-7)];
        for (size, vectors) in [
            (Llama3Size::B8, factor_8),
            (Llama3Size::B3, factor_32),
            (Llama3Size::B1, factor_32_half),
        ] {
            let frequencies = inverse_frequencies(&llama3(size));
            for &(pair, expected) in vectors {
                let relative = (f64::from(frequencies[pair]) - expected).abs() / expected;
                assert!(relative < 1e-6, "{size:?} pair {pair}: {} {expected}", frequencies[pair]);
            }
        }
    }

    #[test]
    fn unscaled_frequencies_fall_from_one_to_nearly_the_inverse_base() {
        let frequencies = inverse_frequencies(&smollm2());
        assert_eq!((frequencies.len(), frequencies[0]), (32, 1.0));
        assert!(frequencies.is_sorted_by(|a, b| a > b));
        let last = 100_000_f64.powf(-62.0 / 64.0) as f32;
        assert!((frequencies[31] - last).abs() / last < 1e-6);
    }

    #[test]
    fn tables_hold_one_rotation_per_position_and_pair() {
        let tables = RopeTables::new(&[1.0, 0.5], 3);
        assert_eq!(tables.cos.len(), 6);
        assert_eq!((tables.cos[0], tables.sin[0]), (1.0, 0.0));
        assert_eq!(tables.cos[5], 1_f32.cos());
        assert_eq!(tables.sin[4], 2_f32.sin());
    }

    /// The formula in f64, and how far single precision may be from it; not at the
    /// bands' borders, where a rounding decides.
    fn by_formula(config: &LlamaConfig, pair: usize) -> Option<(f64, f64)> {
        let exponent = -2.0 * pair as f64 / config.head_dim as f64;
        let frequency = f64::from(config.rope_theta).powf(exponent);
        let Some(scaling) = config.rope_scaling else {
            return Some((frequency, 1e-6 * frequency));
        };
        let [factor, low, high] =
            [scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor].map(f64::from);
        let turns = scaling.original_max_position_embeddings as f64 * frequency
            / (2.0 * std::f64::consts::PI);
        if [low, high].iter().any(|border| (turns / border - 1.0).abs() < 1e-5) {
            return None;
        }
        let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        let scaled = (1.0 - kept) * frequency / factor + kept * frequency;
        // What blends two frequencies rounds like the larger one.
        let is_blend = kept > 0.0 && kept < 1.0;
        Some((scaled, if is_blend { 4e-6 * frequency } else { 1e-6 * scaled }))
    }

    proptest! {
        #[test]
        fn frequencies_and_tables_follow_the_formula(
            half_dim in 1_usize..129,
            theta in 1_000.0_f32..1e6,
            scaling in prop::option::of((1.0_f32..64.0, 0.5_f32..2.0, 2.5_f32..8.0, 1_usize..15)),
            position in 0_usize..200,
        ) {
            let config = LlamaConfig {
                head_dim: 2 * half_dim,
                rope_theta: theta,
                rope_scaling: scaling.map(|(factor, low, high, log_length)| RopeScaling {
                    factor,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_max_position_embeddings: 1 << log_length,
                }),
                ..smollm2()
            };
            let frequencies = inverse_frequencies(&config);
            let tables = RopeTables::new(&frequencies, position + 1);
            for (pair, &frequency) in frequencies.iter().enumerate() {
                if let Some((expected, bound)) = by_formula(&config, pair) {
                    let error = (f64::from(frequency) - expected).abs();
                    prop_assert!(error < bound, "pair {pair}: {frequency} {expected}");
                }
                // The angle in f32, as Meta has it; its cosine rounds once.
                let angle = f64::from(position as f32 * frequency);
                let at = position * half_dim + pair;
                prop_assert!((f64::from(tables.cos[at]) - angle.cos()).abs() < 1e-7);
                prop_assert!((f64::from(tables.sin[at]) - angle.sin()).abs() < 1e-7);
            }
        }
    }
}
