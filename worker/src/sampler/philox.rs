//! Philox4x32-10: random numbers as a function of a key and a counter.
//!
//! Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC'11). There
//! is no state to carry along, so a token's random number is the same whatever
//! was computed before, beside or elsewhere.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Four random words for a counter under a key.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let (high0, low0) = wide_mul(MULTIPLIERS[0], counter[0]);
        let (high1, low1) = wide_mul(MULTIPLIERS[1], counter[2]);
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
    }
    counter
}

/// The random number of the token at `index` of an answer.
pub fn draw(seed: u64, index: u32) -> u64 {
    let [a, b, ..] = philox4x32([index, 0, 0, 0], [low(seed), low(seed >> 32)]);
    u64::from(a) << 32 | u64::from(b)
}

fn wide_mul(a: u32, b: u32) -> (u32, u32) {
    let product = u64::from(a) * u64::from(b);
    (low(product >> 32), low(product))
}

fn low(x: u64) -> u32 {
    (x & 0xFFFF_FFFF) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `kat_vectors` of Random123 1.14.
    #[test]
    fn published_vectors_hold() {
        let check = |counter, key, expected| assert_eq!(philox4x32(counter, key), expected);
        check([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        check([!0; 4], [!0; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        check(
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        );
    }
}
