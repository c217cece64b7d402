//! `e^x` for `x ≤ 0`: the same bits on every machine, and shaped so that loops
//! over it become vector code.
//!
//! The C library's differs between versions and processors by a last bit, which
//! is enough to draw another token after a resume elsewhere.

/// Below this `e^x` is taken for zero: the smallest normal number is near.
const UNDERFLOW: f32 = -87.0;

/// `e^x` for `x ≤ 0` within 2 units in the last place; 0 below −87.
#[inline]
pub(super) fn exp(x: f32) -> f32 {
    // x = n·ln 2 + r, |r| ≤ ln 2 / 2; ln 2 in two parts, the first exact in
    // products with n.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5·2²³ rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    // Not `f32::max`, which takes more instructions for the sake of NaN.
    let clamped = if x > UNDERFLOW { x } else { UNDERFLOW };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN_2_HIGH) - n * LN_2_LOW;
    // Minimax polynomial of (e^r − 1 − r) / r² (Cephes).
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let e_r = p * (r * r) + r + 1.0;
    // The low bits of `shifted` are n; put them into the exponent.
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3F80_0000));
    if x < UNDERFLOW { 0.0 } else { e_r * scale }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_library_within_two_units() {
        for i in 0..=8_700_000u32 {
            let x = -(i as f32) * 1e-5;
            let exact = f64::from(x).exp();
            let unit = exact * f64::from(f32::EPSILON);
            assert!((f64::from(exp(x)) - exact).abs() <= 2.0 * unit, "x = {x}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-87.1), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }
}
