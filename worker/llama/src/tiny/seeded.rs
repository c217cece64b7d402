//! Weights as a function of (seed, tensor name, element): models too large to
//! commit, made again with the same bits wherever they are needed.
//!
//! `tests/golden/make_meta_reference.py` computes the same in numpy, and commits
//! the SHA-256 of every tensor together with what Meta's code answers on them.
//! Only operations that IEEE 754 rounds correctly are used.

use half::bf16;

/// Variance of the sum of four uniform 16-bit numbers: (65536² − 1) / 3.
const SUM_VARIANCE: f64 = 1_431_655_765.0;
/// Its mean.
const SUM_MEAN: i32 = 2 * 65_535;
const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

/// What the weights of a model depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeededModel {
    /// Any number.
    pub seed: u64,
    /// The LM head is the embedding table, which is then scaled as one.
    pub tied: bool,
    /// Transformer blocks.
    pub num_layers: usize,
}

/// A bfloat16 tensor of near to normally distributed values, at the scale that
/// trained weights have.
#[derive(Debug, Clone, PartialEq)]
pub struct SeededTensor {
    name: String,
    shape: Vec<usize>,
    key: u64,
    scale: f32,
    mean: f32,
}

impl SeededModel {
    /// The tensor that Meta's checkpoints call `name`; `shape` is outermost
    /// first.
    ///
    /// # Panics
    /// When `shape` is empty.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> SeededTensor {
        let is_gain = shape.len() == 1 && name.ends_with("norm.weight");
        let variance = if is_gain { 0.01 } else { self.variance(name, shape) };
        SeededTensor {
            name: name.to_owned(),
            shape: shape.to_vec(),
            key: key(self.seed, name),
            scale: (variance / SUM_VARIANCE).sqrt() as f32,
            mean: f32::from(u8::from(is_gain)),
        }
    }

    /// `count` token ids below `vocab_size`.
    pub fn tokens(&self, count: usize, vocab_size: usize) -> Vec<u32> {
        let key = key(self.seed, "tokens");
        (0..count).map(|n| (random_bits(key, n) % vocab_size as u64) as u32).collect()
    }

    /// Scores of attention have a standard deviation of about 2, logits of
    /// about 3. Every other projection keeps the variance of its input; those
    /// into the residual stream divide it by the number of their kind.
    fn variance(&self, name: &str, shape: &[usize]) -> f64 {
        let cols = *shape.last().expect("a tensor has a shape") as f64;
        let ends_with = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
        let is_embedding = name.ends_with("tok_embeddings.weight");
        if ends_with(&["output.weight"]) || (self.tied && is_embedding) {
            9.0 / cols
        } else if is_embedding {
            0.25
        } else if ends_with(&["attention.wq.weight", "attention.wk.weight"]) {
            2.0 / cols
        } else if ends_with(&["attention.wo.weight", "feed_forward.w2.weight"]) {
            1.0 / (cols * 2.0 * self.num_layers as f64)
        } else {
            1.0 / cols
        }
    }
}

impl SeededTensor {
    /// Its name in Meta's checkpoints.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How many values it has.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// False: no tensor of a model is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes `out.len() / 2` values, the `first`-th of the whole tensor first,
    /// as little-endian bfloat16.
    pub fn write_bf16(&self, first: usize, out: &mut [u8]) {
        // Plain steps: this makes gigabytes, also where little is inlined.
        for (n, bytes) in out.chunks_exact_mut(2).enumerate() {
            let value = self.value(first + n).to_bits();
            bytes[0] = value as u8;
            bytes[1] = (value >> 8) as u8;
        }
    }

    #[inline]
    fn value(&self, element: usize) -> bf16 {
        let bits = random_bits(self.key, element);
        let sum = (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
        let word = (self.mean + (sum as i32 - SUM_MEAN) as f32 * self.scale).to_bits();
        // To the nearest, ties to even; values are finite.
        bf16::from_bits(((word + 0x7fff + (word >> 16 & 1)) >> 16) as u16)
    }
}

/// The tensor's own stream of random numbers.
fn key(seed: u64, name: &str) -> u64 {
    let hash = name
        .bytes()
        .fold(FNV_OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME));
    mix(hash ^ seed)
}

#[inline]
fn random_bits(key: u64, element: usize) -> u64 {
    mix(key.wrapping_add((element as u64 + 1).wrapping_mul(GOLDEN_RATIO)))
}

/// `SplitMix64`'s output for a state.
#[inline]
fn mix(mut state: u64) -> u64 {
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: SeededModel = SeededModel { seed: 7, tied: false, num_layers: 2 };

    fn values(tensor: &SeededTensor) -> Vec<f32> {
        (0..tensor.len()).map(|n| tensor.value(n).to_f32()).collect()
    }

    #[test]
    fn any_part_of_a_tensor_is_the_same_as_in_the_whole() {
        let tensor = MODEL.tensor("layers.0.attention.wq.weight", &[12, 40]);
        let mut whole = vec![0; 2 * tensor.len()];
        tensor.write_bf16(0, &mut whole);
        let mut part = vec![0; 100];
        tensor.write_bf16(33, &mut part);
        assert_eq!(part, whole[66..166]);
        assert_eq!(tensor.value(33).to_le_bytes(), whole[66..68]);
    }

    #[test]
    fn values_have_the_variance_that_they_are_to_have() {
        for (name, shape, tied, mean, variance) in [
            ("layers.0.attention.wq.weight", &[128, 256][..], false, 0.0, 2.0 / 256.0),
            ("layers.0.attention.wv.weight", &[128, 256], false, 0.0, 1.0 / 256.0),
            ("layers.0.feed_forward.w2.weight", &[128, 256], false, 0.0, 0.25 / 256.0),
            ("tok_embeddings.weight", &[128, 256], false, 0.0, 0.25),
            ("tok_embeddings.weight", &[128, 256], true, 0.0, 9.0 / 256.0),
            ("output.weight", &[128, 256], false, 0.0, 9.0 / 256.0),
            ("norm.weight", &[4096], false, 1.0, 0.01),
        ] {
            let values = values(&SeededModel { tied, ..MODEL }.tensor(name, shape));
            let count = values.len() as f32;
            let found = values.iter().sum::<f32>() / count;
            let spread = values.iter().map(|v| (v - found) * (v - found)).sum::<f32>() / count;
            assert!((found - mean).abs() < 0.1 * f32::sqrt(variance), "{name}: mean {found}");
            assert!((spread / variance - 1.0).abs() < 0.1, "{name}: variance {spread}");
        }
    }

    #[test]
    fn seeds_names_and_elements_each_change_the_values() {
        let values = |seed, name| values(&SeededModel { seed, ..MODEL }.tensor(name, &[4, 8]));
        let base = values(1, "layers.0.attention.wq.weight");
        assert_ne!(base, values(2, "layers.0.attention.wq.weight"));
        assert_ne!(base, values(1, "layers.1.attention.wq.weight"));
        assert!(base.windows(2).all(|pair| pair[0] != pair[1]));
        let ids = MODEL.tokens(64, 100);
        assert!(ids.iter().all(|&id| id < 100) && ids[..32] != ids[32..]);
    }
}
