//! The contract of [`matmul`]: right within f32 rounding, and always the same bits.

use proptest::prelude::*;

use super::{Matmul, matmul};
use crate::testing::{FORMATS, assert_same_bits, pack, unpack, values, wild_value};
use crate::{Format, Isa, PackedMatrix, Pool};

fn product(pool: &Pool, isa: Isa, m: usize, x: &[f32], weight: &PackedMatrix) -> Vec<f32> {
    let mut y = vec![f32::NAN; m * weight.n()];
    matmul(pool, isa, m, &mut [Matmul { x, weight, y: &mut y }]);
    y
}

/// The contract, written out: one chain of fused multiply-adds per output.
fn chains(m: usize, x: &[f32], weight: &PackedMatrix) -> Vec<f32> {
    let (n, k) = (weight.n(), weight.k());
    let rows = unpack(weight);
    let mut y = Vec::with_capacity(m * n);
    for x in x.chunks_exact(k).take(m) {
        for w in rows.chunks_exact(k) {
            y.push(x.iter().zip(w).fold(0.0_f32, |sum, (x, w)| x.mul_add(*w, sum)));
        }
    }
    y
}

/// Every instruction set, 1 to 3 threads, all rows at once and each row alone.
fn check(format: Format, (m, n, k): (usize, usize, usize), x: &[f32], weight: &PackedMatrix) {
    let expected = chains(m, x, weight);
    for isa in Isa::available() {
        for num_threads in 1..=3 {
            let pool = Pool::new(num_threads);
            let what = format!("{format:?} {isa:?} [{m}, {n}, {k}] {num_threads} threads");
            assert_same_bits(&product(&pool, isa, m, x, weight), &expected, &what);
            for (row, (x, expected)) in
                x.chunks_exact(k).zip(expected.chunks_exact(n)).enumerate().take(5)
            {
                let what = format!("{what}, row {row} alone");
                assert_same_bits(&product(&pool, isa, 1, x, weight), expected, &what);
            }
        }
    }
}

#[test]
fn odd_shapes_give_the_chains_bits_everywhere() {
    let shapes = [
        (33, 64, 576),
        (1, 1, 1),
        (2, 17, 15),
        (7, 31, 16),
        (5, 80, 33),
        (13, 130, 129),
        (3, 49, 300),
    ];
    for format in FORMATS {
        for (m, n, k) in shapes {
            let weight = pack(format, n, k, &values(1, n * k));
            check(format, (m, n, k), &values(2, m * k), &weight);
        }
    }
}

fn case() -> impl Strategy<Value = (usize, usize, usize, Vec<f32>, Vec<f32>)> {
    (1..8_usize, 1..70_usize, 1..70_usize, any::<bool>()).prop_flat_map(|(m, n, k, wild)| {
        let any_values = move |len: usize| {
            let one = if wild { wild_value().boxed() } else { (-2.0..2.0_f32).boxed() };
            prop::collection::vec(one, len)
        };
        (Just(m), Just(n), Just(k), any_values(m * k), any_values(n * k))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_shape_and_any_values_give_the_chains_bits((m, n, k, x, w) in case()) {
        for format in FORMATS {
            check(format, (m, n, k), &x, &pack(format, n, k, &w));
        }
    }

    /// Scales that take x below the normal numbers or past the largest one
    /// must not go the short way.
    #[test]
    fn extreme_scales_give_the_chains_bits(x_power in -149..128_i32, w_power in -149..128_i32) {
        let power = |values: Vec<f32>, power: i32| -> Vec<f32> {
            let two = 2.0_f64.powi(power);
            values.iter().map(|value| (f64::from(*value) * two) as f32).collect()
        };
        let (m, n, k) = (2, 33, 37);
        let (x, w) = (power(values(5, m * k), x_power), power(values(6, n * k), w_power));
        for format in FORMATS {
            check(format, (m, n, k), &x, &pack(format, n, k, &w));
        }
    }
}

#[test]
fn the_sum_is_right_within_the_bound_of_a_chain() {
    let (m, n, k) = (3, 40, 1000);
    let x = values(7, m * k);
    for format in FORMATS {
        let weight = pack(format, n, k, &values(8, n * k));
        let rows = unpack(&weight);
        let y = product(&Pool::new(2), Isa::detect(), m, &x, &weight);
        for (i, y) in y.iter().enumerate() {
            let (x, w) = (&x[i / n * k..][..k], &rows[i % n * k..][..k]);
            let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
            let (sum, size) =
                terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            // k roundings, each at most half an ulp of a partial sum.
            let bound = k as f64 * 0.5_f64.powi(24) * size;
            assert!((f64::from(*y) - sum).abs() <= bound, "{format:?}: {y} is not {sum}");
        }
    }
}

#[test]
fn jobs_of_different_shapes_share_a_call() {
    let weights =
        [pack(Format::Bfp8, 70, 40, &values(1, 2800)), pack(Format::F32, 5, 9, &values(2, 45))];
    let xs = [values(3, 4 * 40), values(4, 4 * 9)];
    let mut ys = [vec![0.0; 4 * 70], vec![0.0; 4 * 5]];
    let mut jobs: Vec<Matmul<'_>> = weights
        .iter()
        .zip(&xs)
        .zip(&mut ys)
        .map(|((weight, x), y)| Matmul { x, weight, y })
        .collect();
    matmul(&Pool::new(2), Isa::detect(), 4, &mut jobs);
    for ((weight, x), y) in weights.iter().zip(&xs).zip(&ys) {
        assert_same_bits(y, &chains(4, x, weight), "one of two jobs");
    }
    matmul(&Pool::new(2), Isa::detect(), 0, &mut []);
}

#[test]
#[should_panic(expected = "x is [2, 3]")]
fn a_wrong_length_is_refused() {
    let weight = pack(Format::F32, 1, 3, &[1.0; 3]);
    let (x, mut y) = ([0.0; 5], [0.0; 2]);
    matmul(&Pool::new(1), Isa::Scalar, 2, &mut [Matmul { x: &x, weight: &weight, y: &mut y }]);
}
