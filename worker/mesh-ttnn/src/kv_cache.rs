//! Paged keys and values on the chips, and rotary tables.

use std::fmt;

use half::bf16;

use crate::spec::{DataType, HostData, HostMatrix, Layout, Spread, TILE};

/// Keys and values of all layers, in blocks.
pub struct KvCache<T> {
    /// K and V of each layer, `[blocks, kv_heads, block_size, head_dim]`.
    pub(crate) layers: Vec<[T; 2]>,
    pub(crate) heads: ChipHeads,
    pub(crate) dtype: DataType,
}

/// Heads of one chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChipHeads {
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
}

/// How block tables are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Paging {
    pub(crate) block_size: usize,
    /// A block that no sequence has: rows without a user write there, and so do
    /// the rows that a prompt is padded with.
    pub(crate) spare_block: i32,
}

/// Rotary tables on the chips.
pub struct Rope<T> {
    /// `[1, 1, max_positions, head_dim]`, looked up by position.
    pub(crate) cos: T,
    pub(crate) sin: T,
    /// A tile a user, for decodes.
    pub(crate) decode_transformation: T,
    /// One tile, for prompts.
    pub(crate) prefill_transformation: T,
}

impl<T> fmt::Debug for KvCache<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvCache")
            .field("layers", &self.layers.len())
            .field("heads", &self.heads)
            .finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Rope<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rope").finish_non_exhaustive()
    }
}

/// A table `[positions, head_dim / 2]` with each value twice: channels `2i` and
/// `2i + 1` turn by the same angle.
pub(crate) fn doubled(table: &[f32], head_dim: usize) -> HostMatrix {
    let values = table.iter().map(|&value| bf16::from_f32(value)).flat_map(|value| [value; 2]);
    HostMatrix {
        shape: [1, 1, table.len() / (head_dim / 2), head_dim],
        rank: 4,
        data: HostData::BFloat16(values.collect()),
        dtype: DataType::BFloat16,
        layout: Layout::RowMajor,
        spread: Spread::Replicated,
    }
}

/// `copies` tiles below each other that turn pairs by a quarter: `x·T` has
/// `-x[2i + 1]` in channel `2i` and `x[2i]` in channel `2i + 1`.
pub(crate) fn transformation(copies: usize) -> HostMatrix {
    let mut tile = vec![bf16::ZERO; TILE * TILE];
    for even in (0..TILE).step_by(2) {
        tile[even * TILE + even + 1] = bf16::ONE;
        tile[(even + 1) * TILE + even] = bf16::NEG_ONE;
    }
    HostMatrix {
        shape: [1, 1, copies * TILE, TILE],
        rank: 4,
        data: HostData::BFloat16(tile.repeat(copies)),
        dtype: DataType::BFloat16,
        layout: Layout::Tile,
        spread: Spread::Replicated,
    }
}
