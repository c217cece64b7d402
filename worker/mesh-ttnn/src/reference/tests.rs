//! Every operation against its formula, and what it refuses.

mod trace;

use half::bf16;

use super::{ReferenceOps, Tensor};
use crate::ops::Ops;
use crate::spec::{DataType, HostData, HostMatrix, Layout, MemoryConfig, Shape, Spread};

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
}

fn bf16s(values: &[f32]) -> HostData {
    HostData::BFloat16(values.iter().copied().map(bf16::from_f32).collect())
}

/// Fails unless `error` names all of `words`.
#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: crate::ops::Result<T>, words: &[&str]) {
    let message = result.unwrap_err().to_string();
    for word in words {
        assert!(message.contains(word), "{message:?} names {word:?}");
    }
}
