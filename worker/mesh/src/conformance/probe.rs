//! Getting numbers onto a mesh and back through the trait alone, and comparing
//! them.

use super::{BatchInvariance, Strength};
use crate::{
    ColumnParallel, DType, DenseMatrix, Mesh, Replicated, SequenceSlice, Sharded, StepBatch,
};

/// Pseudo-random values in [-1, 1), the same for the same seed (SplitMix64).
pub fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    // 24 bits fit an f32 exactly.
    (0..count).map(|_| (next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Noise of the magnitude that keeps `x · Wᵀ` near 1.
pub fn weight_noise(seed: u64, rows: usize, cols: usize) -> DenseMatrix {
    let scale = (3.0 / cols as f32).sqrt();
    let values = noise(seed, rows * cols).into_iter().map(|value| value * scale).collect();
    DenseMatrix::new(format!("noise {seed}"), cols, values)
}

/// A batch of one sequence per row: enough for everything but attention.
pub fn row_batch(token_ids: Vec<u32>) -> StepBatch {
    let sequences = (0..token_ids.len())
        .map(|row| SequenceSlice {
            first_row: row,
            num_tokens: 1,
            first_position: 0,
            block_table: vec![row as u32],
        })
        .collect();
    StepBatch { logit_rows: (0..token_ids.len()).collect(), token_ids, sequences, choices: None }
}

/// `values` `[rows, cols]` as an activation that every chip holds.
///
/// # Panics
/// As [`upload_cut`].
pub fn upload<M: Mesh>(mesh: &mut M, cols: usize, values: &[f32]) -> Replicated<M::Tensor> {
    let x = upload_cut(mesh, cols, values);
    mesh.all_gather(x).expect("all_gather works")
}

/// `values` `[rows, cols]` as an activation of which each chip holds its own
/// channels, by way of an embedding.
///
/// # Panics
/// When `values` is not whole rows, `cols` does not divide by the chips, or the
/// mesh fails.
pub fn upload_cut<M: Mesh>(mesh: &mut M, cols: usize, values: &[f32]) -> Sharded<M::Tensor> {
    let rows = values.len() / cols;
    let table = DenseMatrix::new("input", cols, values.to_vec());
    let table = mesh.load_embedding(&table, DType::F32).expect("the input fits");
    mesh.embed(&table, &row_batch((0..rows as u32).collect())).expect("embed works")
}

/// The rows `channels` of an identity matrix: picks those channels.
pub fn picker(width: usize, channels: std::ops::Range<usize>) -> DenseMatrix {
    let mut values = vec![0.0; channels.len() * width];
    for (row, channel) in channels.enumerate() {
        values[row * width + channel] = 1.0;
    }
    DenseMatrix::new("picker", width, values)
}

/// Cuts a replicated activation over the chips, values unchanged.
///
/// # Panics
/// When the mesh fails.
pub fn shard<M: Mesh>(mesh: &mut M, x: &Replicated<M::Tensor>, width: usize) -> Sharded<M::Tensor> {
    let identity = picker(width, 0..width);
    let identity: ColumnParallel<M::Weight> =
        mesh.load_column_parallel(&[&identity], DType::F32).expect("the identity fits");
    mesh.column_linear(x, &identity).expect("column_linear works")
}

/// Reads a sharded activation, chips side by side.
///
/// # Panics
/// When the mesh fails.
pub fn read_sharded<M: Mesh>(mesh: &mut M, x: Sharded<M::Tensor>) -> Vec<f32> {
    // Stale content must not survive.
    let mut out = vec![f32::NAN; 3];
    mesh.read_logits(x, &mut out).expect("read_logits works");
    out
}

/// Reads a replicated activation of `width` channels.
///
/// # Panics
/// When the mesh fails.
pub fn read_replicated<M: Mesh>(mesh: &mut M, x: &Replicated<M::Tensor>, width: usize) -> Vec<f32> {
    let sharded = shard(mesh, x, width);
    read_sharded(mesh, sharded)
}

/// `[m, n]` of `x [m, k]` times the rows of `weight [n, k]`, in f64.
pub fn matmul(x: &[f32], weight: &[f32], k: usize) -> Vec<f64> {
    x.chunks_exact(k)
        .flat_map(|x| {
            weight.chunks_exact(k).map(move |w| {
                x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>()
            })
        })
        .collect()
}

/// Asserts that `got` is `want` within `tolerance` of the largest value.
///
/// # Panics
/// When it is not.
#[track_caller]
pub fn assert_close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: number of values");
    let scale = want.iter().fold(1e-3, |max: f64, value| max.max(value.abs()));
    for (idx, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs() / scale;
        // Written so that a NaN fails.
        assert!(
            error <= tolerance,
            "{what}: value {idx} is {got}, should be {want}; error {error:.2e} of the largest \
             value {scale:.3}, allowed {tolerance:.2e}"
        );
    }
}

/// Asserts that two ways to compute the same rows agree as `strength` says.
///
/// # Panics
/// When they do not.
#[track_caller]
pub fn assert_same(what: &str, got: &[f32], want: &[f32], strength: Strength) {
    match strength.batch_invariance {
        BatchInvariance::BitExact => {
            assert_eq!(got.len(), want.len(), "{what}: number of values");
            let differing = got
                .iter()
                .zip(want)
                .position(|(got, want)| got.to_bits() != want.to_bits() || got.is_nan());
            if let Some(idx) = differing {
                panic!("{what}: value {idx} is {:e}, should be {:e}", got[idx], want[idx]);
            }
        }
        BatchInvariance::WithinTolerance => {
            let want: Vec<f64> = want.iter().copied().map(f64::from).collect();
            assert_close(what, got, &want, strength.tolerance);
        }
    }
}
