//! Values and comparisons for the tests of every kernel.

use crate::{Format, PackedMatrix};

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
    let packed = PackedMatrix::pack(format, n, k, &mut |first_row, out: &mut [f32]| {
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
