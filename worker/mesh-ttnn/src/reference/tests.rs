//! Every operation against its formula, and what it refuses.

mod attention;
mod collective;
mod elementwise;
mod golden;
mod heads;
mod host;
mod layer;
mod matmul;
mod movement;
mod norm;
mod paging;
mod placement;
mod sampling;
mod trace;

use half::bf16;

use super::{ReferenceOps, Tensor};
use crate::ops::Ops;
use crate::spec::{
    ComputeConfig, DataType, Fidelity, Grid, HostData, HostMatrix, Layout, MemoryConfig, Shape,
    Spread,
};

/// Exact enough for every test.
const COMPUTE: ComputeConfig = ComputeConfig { fidelity: Fidelity::HiFi4, fp32_accumulate: true };

/// `len` numbers from −2 to 2 in steps of 1/64, so that bf16 has them; the same for
/// the same seed, and the same as in `make_ttnn_golden.py`.
fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2) + 1;
    let mut number = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 56) as i32 - 128) as f32 / 64.0
    };
    (0..len).map(|_| number()).collect()
}

/// What a test uploads.
#[derive(Clone, Copy)]
struct Upload {
    shape: Shape,
    rank: usize,
    dtype: DataType,
    layout: Layout,
    spread: Spread,
    memory: MemoryConfig,
}

impl Upload {
    /// Tiles in DRAM, the same on every chip.
    fn tiles(shape: Shape, dtype: DataType) -> Self {
        let (layout, spread) = (Layout::Tile, Spread::Replicated);
        Self { shape, rank: 4, dtype, layout, spread, memory: MemoryConfig::DRAM }
    }

    /// Rows in DRAM, the same on every chip.
    fn rows(shape: Shape, dtype: DataType) -> Self {
        Self { layout: Layout::RowMajor, ..Self::tiles(shape, dtype) }
    }

    fn rank(self, rank: usize) -> Self {
        Self { rank, ..self }
    }

    fn into(self, memory: MemoryConfig) -> Self {
        Self { memory, ..self }
    }

    fn spread(self, spread: Spread) -> Self {
        Self { spread, ..self }
    }

    fn data(self, ops: &mut ReferenceOps, data: HostData) -> Tensor {
        let Self { shape, rank, dtype, layout, spread, memory } = self;
        let host = ops.pack(HostMatrix { shape, rank, data, dtype, layout, spread }).unwrap();
        ops.to_device(&host, &memory).unwrap()
    }

    fn reals(self, ops: &mut ReferenceOps, values: &[f32]) -> Tensor {
        self.data(ops, bf16s(values))
    }

    fn int32(self, ops: &mut ReferenceOps, values: &[i32]) -> Tensor {
        self.data(ops, HostData::Int32(values.to_vec()))
    }

    fn uint32(self, ops: &mut ReferenceOps, values: &[u32]) -> Tensor {
        self.data(ops, HostData::UInt32(values.to_vec()))
    }
}

/// `values` as bf16 has them.
fn rounded(values: impl IntoIterator<Item = f64>) -> Vec<f32> {
    values.into_iter().map(|value| bf16::from_f32(value as f32).to_f32()).collect()
}

/// Fails unless every value is within one rounding to bf16 of its formula.
#[track_caller]
fn assert_close(values: &[f32], expected: impl IntoIterator<Item = f64>) {
    let expected: Vec<f64> = expected.into_iter().collect();
    assert_eq!(values.len(), expected.len());
    for (idx, (value, expected)) in values.iter().zip(expected).enumerate() {
        let error = (f64::from(*value) - expected).abs();
        assert!(error <= expected.abs() / 256.0 + 1e-5, "[{idx}]: {value} for {expected}");
    }
}

fn bf16s(values: &[f32]) -> HostData {
    HostData::BFloat16(values.iter().copied().map(bf16::from_f32).collect())
}

fn width_sharded(rows: usize, width: usize, grid: Grid) -> MemoryConfig {
    MemoryConfig::WidthSharded { grid, shard: [rows, width / grid.num_cores()] }
}

/// Fails unless `error` names all of `words`.
#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: crate::ops::Result<T>, words: &[&str]) {
    let message = result.unwrap_err().to_string();
    for word in words {
        assert!(message.contains(word), "{message:?} names {word:?}");
    }
}
