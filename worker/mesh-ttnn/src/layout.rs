//! Where tensors lie on a chip and how operations are cut over its cores, as
//! data: functions of widths, number of chips and grid.
//!
//! All that is chosen here could be chosen otherwise without a change of
//! results; the mesh only asks. Sizes are in elements unless they say tiles.

mod cores;
mod linear;
mod prompt;

use crate::spec::{
    ComputeConfig, DataType, Fidelity, Grid, MemoryConfig, NormProgram, SdpaProgram, TILE,
};
use cores::{largest_divisor, largest_grid};

pub use linear::{LinearShape, PrefillLinear, WeightLayout};
pub use prompt::{PREFILL_MULTIPLE, padded_prompt, prefill_lengths};

/// Rows of a decode step: one tile, one user a row.
pub const DECODE_ROWS: usize = TILE;
/// More cores than this share one row of tiles no further: each would have too
/// little to do.
const MAX_ROW_CORES: usize = 32;
/// Widest row that a prefill normalises whole; beyond, L1 does not hold it, and
/// each chip normalises its own part.
const MAX_GATHERED_NORM: usize = 4096;

/// What is to be known of a chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chip {
    /// The cores that compute.
    pub grid: Grid,
    /// Banks of DRAM.
    pub dram_banks: usize,
}

/// Norms: sums of squares need the bits.
pub const NORM_COMPUTE: ComputeConfig =
    ComputeConfig { fidelity: Fidelity::HiFi2, fp32_accumulate: true };
/// Attention of one token a user.
pub const DECODE_SDPA_COMPUTE: ComputeConfig =
    ComputeConfig { fidelity: Fidelity::HiFi2, fp32_accumulate: false };
/// Attention of a prompt.
pub const PREFILL_SDPA_COMPUTE: ComputeConfig =
    ComputeConfig { fidelity: Fidelity::HiFi4, fp32_accumulate: true };

impl Chip {
    /// One row of tiles, `width` columns cut evenly over cores of L1.
    pub fn row(&self, width: usize) -> MemoryConfig {
        let grid = self.row_grid(width);
        MemoryConfig::WidthSharded { grid, shard: [TILE, width / grid.num_cores()] }
    }

    /// As many cores as divide the tiles of `width`, at most 32.
    fn row_grid(&self, width: usize) -> Grid {
        largest_grid(width / TILE, self.grid, MAX_ROW_CORES)
    }

    /// How a [`Chip::row`] of `width` is normalised.
    pub fn norm(&self, width: usize) -> NormProgram {
        let grid = self.row_grid(width);
        let block_w = width / TILE / grid.num_cores();
        NormProgram { grid, subblock_w: largest_divisor(block_w, 4), block_w }
    }

    /// Whether a prefill normalises rows of `width` part by part on `num_chips`.
    pub fn norm_is_distributed(&self, width: usize, num_chips: usize) -> bool {
        num_chips > 1 && width > MAX_GATHERED_NORM
    }

    /// One user's heads a core: `rows` of `head_dim`, padded to whole tiles.
    pub fn users(&self, rows: usize, head_dim: usize) -> MemoryConfig {
        let grid = Grid { x: 8, y: DECODE_ROWS / 8 };
        MemoryConfig::HeightSharded { grid, shard: [rows.next_multiple_of(TILE), head_dim] }
    }

    /// Where a weight lies.
    pub fn weight(&self, shape: LinearShape) -> MemoryConfig {
        match shape.lies {
            WeightLayout::Banks => self.banks(shape.k, shape.n),
            WeightLayout::Interleaved => MemoryConfig::DRAM,
        }
    }

    /// A weight `[k, n]` with its columns over the banks of DRAM, padded so that
    /// every bank has whole tiles.
    fn banks(&self, k: usize, n: usize) -> MemoryConfig {
        let columns = n.next_multiple_of(TILE * self.dram_banks) / self.dram_banks;
        MemoryConfig::DramWidthSharded { banks: self.dram_banks, shard: [k, columns] }
    }

    /// Attention of one token a user: the operation sees how long each user's
    /// context is, and cuts it itself.
    pub fn decode_sdpa(&self) -> SdpaProgram {
        SdpaProgram { grid: self.grid, q_chunk_size: 0, k_chunk_size: 0 }
    }

    /// Attention of `rows` rows of a prompt that begin at a multiple of
    /// [`PREFILL_MULTIPLE`], or of the larger chunks of long prompts.
    pub fn prefill_sdpa(&self, rows: usize, first_position: usize) -> SdpaProgram {
        const LONG: usize = 256;
        let long = rows >= 2048 && first_position.is_multiple_of(LONG);
        let chunk = if long { LONG } else { PREFILL_MULTIPLE };
        SdpaProgram { grid: self.grid, q_chunk_size: chunk, k_chunk_size: chunk }
    }
}

/// Passes that a weight's format needs.
pub fn linear_compute(weight: DataType) -> ComputeConfig {
    match weight {
        DataType::BFloat4B => ComputeConfig { fidelity: Fidelity::LoFi, fp32_accumulate: false },
        DataType::BFloat8B => ComputeConfig { fidelity: Fidelity::HiFi2, fp32_accumulate: false },
        _ => ComputeConfig { fidelity: Fidelity::HiFi4, fp32_accumulate: true },
    }
}

#[cfg(test)]
mod tests;
