//! The contract of [`matmul`]: right within f32 rounding, and always the same bits.

use proptest::prelude::*;

use super::{Matmul, matmul};
use crate::testing::{FORMATS, assert_same_bits, pack, unpack, values};
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
