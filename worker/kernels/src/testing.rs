//! Values and comparisons for the tests of every kernel.

use std::ops::Range;

use proptest::prelude::*;

use crate::{Format, PackedMatrix, Pool};

/// Every storage format.
pub(crate) const FORMATS: [Format; 4] = [Format::F32, Format::Bf16, Format::Bfp8, Format::Bfp4];

/// `len` deterministic values in −1..1 of varied magnitude.
pub(crate) fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def0;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..len)
        .map(|_| {
            let bits = next();
            let unit = (bits >> 40) as f32 / (1 << 23) as f32 - 1.0;
            unit * 0.5_f32.powi((bits & 3) as i32)
        })
        .collect()
}

/// Packs a matrix `[n, k]` from a slice.
pub(crate) fn pack(format: Format, n: usize, k: usize, rows: &[f32]) -> PackedMatrix {
    let pool = Pool::new(3);
    let packed = PackedMatrix::pack(&pool, format, [n, k], &|first_row, out: &mut [f32]| {
        out.copy_from_slice(&rows[first_row * k..][..out.len()]);
        Ok::<(), std::convert::Infallible>(())
    });
    packed.expect("reading a slice cannot fail")
}

/// The matrix that a packed one stands for, `[n, k]`.
pub(crate) fn unpack(matrix: &PackedMatrix) -> Vec<f32> {
    let mut rows = vec![0.0; matrix.n() * matrix.k()];
    for (r, row) in rows.chunks_exact_mut(matrix.k()).enumerate() {
        matrix.row(r, row);
    }
    rows
}

/// Equal bits, except that every NaN equals every NaN.
#[track_caller]
pub(crate) fn assert_same_bits(left: &[f32], right: &[f32], what: &str) {
    assert_eq!(left.len(), right.len(), "{what}");
    for (i, (a, b)) in left.iter().zip(right).enumerate() {
        assert!(
            a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()),
            "{what}: at {i}, {a:e} ({:#x}) is not {b:e} ({:#x})",
            a.to_bits(),
            b.to_bits()
        );
    }
}

/// Any f32 at all: NaNs, infinities, denormals, and plain values.
pub(crate) fn wild_value() -> impl Strategy<Value = f32> {
    prop_oneof![
        6 => -4.0..4.0_f32,
        2 => any::<u32>().prop_map(f32::from_bits),
        1 => prop::sample::select(vec![
            0.0, -0.0, 1e-40, -1e-45, f32::MIN_POSITIVE, f32::MAX, f32::INFINITY,
            f32::NEG_INFINITY, f32::NAN,
        ]),
    ]
}

/// A vector of [`wild_value`]s.
pub(crate) fn wild_values(len: Range<usize>) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(wild_value(), len)
}
