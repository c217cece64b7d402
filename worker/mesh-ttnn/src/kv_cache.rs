//! Paged keys and values on the chips, and rotary tables.

use std::fmt;

use half::bf16;
use mesh::{AttentionShape, DType, KvCacheShape, MeshError};

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

/// Heads of each of `num_chips` chips.
///
/// # Errors
/// [`MeshError::DoesNotFit`] when they do not divide, or no chip takes them.
pub(crate) fn chip_heads(
    attention: AttentionShape,
    num_chips: usize,
) -> Result<ChipHeads, MeshError> {
    let AttentionShape { num_attention_heads, num_key_value_heads, head_dim } = attention;
    let divides = |heads: usize| heads > 0 && heads.is_multiple_of(num_chips);
    if !divides(num_attention_heads) || !divides(num_key_value_heads) {
        return Err(MeshError::DoesNotFit(format!(
            "{num_attention_heads} heads and {num_key_value_heads} KV heads, must both be multiples \
             of {num_chips} chips"
        )));
    }
    let (num_heads, num_kv_heads) =
        (num_attention_heads / num_chips, num_key_value_heads / num_chips);
    if !head_dim.is_multiple_of(TILE) || num_heads > TILE {
        return Err(MeshError::DoesNotFit(format!(
            "{num_heads} heads of {head_dim} channels on a chip: a chip takes at most {TILE} heads, \
             of a multiple of {TILE} channels"
        )));
    }
    Ok(ChipHeads { num_heads, num_kv_heads, head_dim })
}

/// # Errors
/// [`MeshError::DoesNotFit`] for blocks or a format that no chip takes.
pub(crate) fn check_cache(cache: KvCacheShape) -> Result<(), MeshError> {
    if !cache.block_size.is_power_of_two() || cache.block_size < TILE {
        let size = cache.block_size;
        return Err(MeshError::DoesNotFit(format!(
            "KV blocks have {size} positions, must be a power of two of at least {TILE}"
        )));
    }
    if !matches!(cache.dtype, DType::Bf16 | DType::Bfp8) {
        let dtype = cache.dtype;
        return Err(MeshError::DoesNotFit(format!(
            "the KV cache is {dtype}, must be bf16 or bfp8"
        )));
    }
    Ok(())
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
