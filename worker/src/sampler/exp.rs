//! `e^x` of a whole row, by the kernels: vector code, and the same bits on
//! every machine.
//!
//! The C library's differs between versions and processors by a last bit, which
//! is enough to draw another token after a resume elsewhere.

use kernels::{Isa, elementwise};

/// Values computed together; they stay in the nearest cache.
const PIECE: usize = 1024;

/// Calls `take(xs, exps)` for one piece of `xs` after the other, where `exps`
/// are `e^(x - shift)`: 0 below −87, for arguments up to 0 never above 1.
/// All pieces but the last are a multiple of 64 long.
pub(super) fn for_exps(xs: &[f32], shift: f32, mut take: impl FnMut(&[f32], &[f32])) {
    let isa = Isa::detect();
    let mut piece = [0.0; PIECE];
    for xs in xs.chunks(PIECE) {
        let exps = &mut piece[..xs.len()];
        for (exp, x) in exps.iter_mut().zip(xs) {
            *exp = x - shift;
        }
        elementwise::exp(isa, exps);
        take(xs, exps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exp(x: f32) -> f32 {
        let mut found = f32::NAN;
        for_exps(&[x], 0.0, |_, exps| found = exps[0]);
        found
    }

    #[test]
    fn agrees_with_the_library_within_two_units() {
        let xs: Vec<f32> = (0..=870_000u32).map(|i| -(i as f32) * 1e-4).collect();
        let mut num_seen = 0;
        for_exps(&xs, 0.0, |xs, exps| {
            for (&x, &found) in xs.iter().zip(exps) {
                let exact = f64::from(x).exp();
                let unit = exact * f64::from(f32::EPSILON);
                assert!((f64::from(found) - exact).abs() <= 2.0 * unit && found <= 1.0, "x = {x}");
            }
            num_seen += xs.len();
        });
        assert_eq!(num_seen, xs.len());
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-87.4), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn the_shift_is_subtracted() {
        for_exps(&[5.0, 4.0], 5.0, |_, exps| assert_eq!(exps, [1.0, exp(-1.0)]));
    }
}
