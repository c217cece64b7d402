//! Same bits on every instruction set; close to f64.

use proptest::prelude::*;

use super::{add_assign, exp, rms_norm, rope_interleaved, silu_mul};
use crate::Isa;
use crate::testing::{assert_same_bits, values, wild_values};

/// Every kernel on slices that start at `offset`, so that none is aligned.
fn check(x: &[f32], y: &[f32], offset: usize) {
    let (x, y) = (&x[offset..], &y[offset..]);
    let results = |isa| {
        let mut exponentials = x.to_vec();
        exp(isa, &mut exponentials);
        let (mut normed, mut gated) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        rms_norm(isa, x, y, 1e-5, &mut normed);
        silu_mul(isa, x, y, &mut gated);
        [exponentials, normed, gated].concat()
    };
    let expected = results(Isa::Scalar);
    for isa in Isa::available() {
        assert_same_bits(&results(isa), &expected, &format!("{isa:?}, {} values", x.len()));
    }
}

#[test]
fn every_length_gives_the_same_bits_on_every_isa() {
    for len in 0..=65 {
        for offset in 0..2 {
            check(&values(1, len + offset), &values(2, len + offset), offset);
        }
    }
}

proptest! {
    #[test]
    fn any_values_give_the_same_bits_on_every_isa(x in wild_values(1..70), seed: u64) {
        check(&x, &values(seed, x.len()), 0);
        check(&x, &x, 0);
    }
}

#[test]
fn exp_is_within_its_bound_and_saturates() {
    let mut worst = 0.0_f64;
    let inputs: Vec<f32> = (-87_320..=88_360).map(|i| i as f32 / 1000.0).collect();
    let mut outputs = inputs.clone();
    exp(Isa::detect(), &mut outputs);
    for (x, y) in inputs.iter().zip(&outputs) {
        let exact = f64::from(*x).exp();
        worst = worst.max(((f64::from(*y) - exact) / exact).abs());
    }
    assert!(worst < 2.0 * 0.5_f64.powi(24), "relative error {worst:e}");

    let mut ends = [0.0, -0.0, -100.0, f32::NEG_INFINITY, f32::INFINITY, 100.0, f32::NAN];
    exp(Isa::detect(), &mut ends);
    assert_eq!(ends[..4], [1.0, 1.0, 0.0, 0.0]);
    assert!(ends[4] == ends[5] && ends[4] > 2.3e38 && ends[4].is_finite());
    assert!(ends[6].is_nan());
}

#[test]
fn norm_and_silu_agree_with_f64() {
    let (x, y) = (values(3, 577), values(4, 577));
    let (mut normed, mut gated) = (vec![0.0; 577], vec![0.0; 577]);
    rms_norm(Isa::detect(), &x, &y, 1e-5, &mut normed);
    silu_mul(Isa::detect(), &x, &y, &mut gated);
    let square = |x: &f32| f64::from(*x) * f64::from(*x);
    let root = (x.iter().map(square).sum::<f64>() / 577.0 + f64::from(1e-5_f32)).sqrt();
    for i in 0..577 {
        let (gate, up) = (f64::from(x[i]), f64::from(y[i]));
        // Each is a handful of operations, each rounded by 2^-24 relative.
        let bound = |exact: f64| exact.abs() * 16.0 * 0.5_f64.powi(24);
        let exact = gate / root * up;
        assert!((f64::from(normed[i]) - exact).abs() <= bound(exact), "norm at {i}");
        let exact = gate / (1.0 + (-gate).exp()) * up;
        assert!((f64::from(gated[i]) - exact).abs() <= bound(exact), "silu at {i}");
    }
}

#[test]
fn rope_rotates_pairs_and_add_adds() {
    let mut head = [1.0, 0.0, 0.0, 2.0, 3.0, 4.0];
    rope_interleaved(&mut head, &[0.0, 1.0, 0.6], &[1.0, 0.0, 0.8]);
    let expected = [0.0, 1.0, 0.0, 2.0, 3.0 * 0.6 - 4.0 * 0.8, 4.0 * 0.6 + 3.0 * 0.8];
    assert_eq!(head, expected);
    add_assign(&mut head, &[1.0; 6]);
    assert_eq!(head, expected.map(|value| value + 1.0));
}
