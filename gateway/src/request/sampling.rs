//! How tokens are chosen, in range; and where seeds come from.

/// Sampling in range. A number that would change nothing is `None`, so that
/// two ways to ask for the same thing are equal.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    /// 0 is greedy; at most 2.
    pub temperature: f32,
    /// At least 1.
    pub top_k: Option<u32>,
    /// Over 0, under 1.
    pub top_p: Option<f32>,
    /// Over 0, at most 1.
    pub min_p: Option<f32>,
    /// -2 to 2, not 0.
    pub presence_penalty: Option<f32>,
    /// -2 to 2, not 0.
    pub frequency_penalty: Option<f32>,
    /// Over 0, at most 2, not 1.
    pub repetition_penalty: Option<f32>,
    /// Distinct ids below the vocabulary size, biases -100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
}

/// Seed of answer `i` of a request whose seed is `seed`; see
/// [`ValidRequest::seed_of`](super::ValidRequest::seed_of).
pub(super) fn derived_seed(seed: u64, i: u32) -> u64 {
    if i == 0 { seed } else { splitmix64(seed ^ splitmix64(u64::from(i))) }
}

/// A seed that nobody can predict.
pub(super) fn random_seed() -> u64 {
    // A version-4 UUID is 122 bits from the operating system; folding its
    // halves through a mixer spreads them over all 64.
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    splitmix64(high) ^ low
}

/// Steele, Lea and Flood's finalizer: one bit in changes half the bits out.
fn splitmix64(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
