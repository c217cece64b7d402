//! An open mesh of mock devices, and tensors on it.

use mesh_ttnn::ops::Ops;
use mesh_ttnn::python::{Dispatch, Tensor, TtnnOps};
use mesh_ttnn::spec::{
    ComputeConfig, DataType, Fidelity, Grid, HostData, HostMatrix, Layout, MemoryConfig, Shape,
    Spread,
};

use crate::devices::options;

/// Opens mock devices.
pub(crate) fn open(cluster: &str, num_chips: usize, dispatch: Dispatch) -> TtnnOps {
    TtnnOps::open(&options(cluster, num_chips, dispatch)).unwrap()
}

/// Half precision of products, sums in bf16.
pub(crate) const HIFI2: ComputeConfig =
    ComputeConfig { fidelity: Fidelity::HiFi2, fp32_accumulate: false };
/// All of bf16, sums in f32.
pub(crate) const HIFI4: ComputeConfig =
    ComputeConfig { fidelity: Fidelity::HiFi4, fp32_accumulate: true };

/// Columns cut over the L1 of a grid.
pub(crate) fn width_sharded(x: usize, y: usize, shard: [usize; 2]) -> MemoryConfig {
    let grid = Grid { x, y };
    MemoryConfig::WidthSharded { grid, shard }
}

/// One user of 32 a core.
pub(crate) fn a_user_a_core(shard: [usize; 2]) -> MemoryConfig {
    let grid = Grid { x: 8, y: 4 };
    MemoryConfig::HeightSharded { grid, shard }
}

/// A tensor of zeros in DRAM, in tiles.
pub(crate) fn tiles(ops: &mut TtnnOps, shape: Shape, dtype: DataType) -> Tensor {
    tiles_in(ops, shape, dtype, MemoryConfig::DRAM)
}

/// A tensor of zeros, in tiles.
pub(crate) fn tiles_in(
    ops: &mut TtnnOps,
    shape: Shape,
    dtype: DataType,
    memory: MemoryConfig,
) -> Tensor {
    ops.zeros(shape, dtype, Layout::Tile, &memory).unwrap()
}

/// A tensor of zeros in DRAM, row by row.
pub(crate) fn rows(ops: &mut TtnnOps, shape: Shape, dtype: DataType) -> Tensor {
    let dram = MemoryConfig::DRAM;
    ops.zeros(shape, dtype, Layout::RowMajor, &dram).unwrap()
}

/// Numbers in DRAM, row by row, the same on each chip.
pub(crate) fn numbers(ops: &mut TtnnOps, axes: &[usize], values: &[f32]) -> Tensor {
    let values = values.iter().copied().map(half::bf16::from_f32).collect();
    send(ops, axes, HostData::BFloat16(values), DataType::BFloat16)
}

/// Whole numbers in DRAM, row by row, the same on each chip.
pub(crate) fn ids(ops: &mut TtnnOps, axes: &[usize], values: Vec<u32>) -> Tensor {
    send(ops, axes, HostData::UInt32(values), DataType::UInt32)
}

/// Whole numbers with sign in DRAM, row by row, the same on each chip.
pub(crate) fn integers(ops: &mut TtnnOps, axes: &[usize], values: Vec<i32>) -> Tensor {
    send(ops, axes, HostData::Int32(values), DataType::Int32)
}

fn send(ops: &mut TtnnOps, axes: &[usize], data: HostData, dtype: DataType) -> Tensor {
    let mut shape = [1; 4];
    shape[4 - axes.len()..].copy_from_slice(axes);
    let matrix = HostMatrix {
        shape,
        rank: axes.len(),
        data,
        dtype,
        layout: Layout::RowMajor,
        spread: Spread::Replicated,
    };
    let packed = ops.pack(matrix).unwrap();
    ops.to_device(&packed, &MemoryConfig::DRAM).unwrap()
}
