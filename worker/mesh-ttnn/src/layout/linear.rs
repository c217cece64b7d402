//! How matrix products are cut over cores.

use super::cores::largest_divisor;
use super::{Chip, linear_compute};
use crate::spec::{DataType, Grid, LinearConfig, MatmulProgram, MemoryConfig, TILE};

/// Tiles of K that a core takes at once, at most.
const MAX_BLOCK: usize = 8;
/// Rows of one product at most: longer prompts are cut into products.
const MAX_ROWS: usize = 2048;
/// Bytes of L1 that blocks of a weight on their way from DRAM may take.
const BANK_BYTES: usize = 800_000;
/// Bytes of L1 that buffers of a product may take together; of a core's 1.4 MB
/// the kernels and what else lies there need the rest.
const BUFFER_BYTES: usize = 1_150_000;

/// A product of a prompt's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefillLinear {
    /// Rows of one product; as many products as there are.
    pub rows: usize,
    /// All that the operation is told.
    pub config: LinearConfig,
}

/// What a product is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearShape {
    /// Input channels on a chip.
    pub k: usize,
    /// Output channels on a chip.
    pub n: usize,
    /// Format of the weight.
    pub weight: DataType,
    /// Format of the result.
    pub result: DataType,
    /// Where the weight lies.
    pub lies: WeightLayout,
}

/// How a weight lies in DRAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightLayout {
    /// Its columns over the banks: each is read by the core beside it.
    Banks,
    /// Tile by tile over the banks: no padding of few columns, and what a
    /// product takes that gathers its input.
    Interleaved,
}

impl Chip {
    /// One row of tiles that lies as [`Chip::row`] of `k` says, times a weight.
    pub fn decode_linear(&self, shape: LinearShape) -> LinearConfig {
        let grid = self.row_grid(shape.k);
        let program = match shape.lies {
            WeightLayout::Banks => self.bank_by_bank(shape, grid.num_cores()),
            WeightLayout::Interleaved => one_row(shape, grid),
        };
        LinearConfig {
            program,
            compute: linear_compute(shape.weight),
            memory: MemoryConfig::WidthShardedByOp,
            dtype: shape.result,
        }
    }

    fn bank_by_bank(&self, shape: LinearShape, cores: usize) -> MatmulProgram {
        // A core that reads a bank keeps three blocks of its columns in flight.
        let bank_tiles = shape.n.div_ceil(TILE * self.dram_banks);
        let block = 3 * bank_tiles * tile_bytes(shape.weight);
        let max_block = (BANK_BYTES / block).clamp(1, MAX_BLOCK);
        MatmulProgram::DramSharded {
            in0_block_w: largest_divisor(shape.k / TILE / cores, max_block),
            per_core_n: shape.n.div_ceil(TILE).div_ceil(cores),
        }
    }

    /// `rows` rows, interleaved in DRAM, times the same weight: the most rows at
    /// a time, and then the most of K, whose buffers L1 holds.
    pub fn prefill_linear(&self, shape: LinearShape, rows: usize) -> PrefillLinear {
        let whole = rows.min(MAX_ROWS);
        let at_a_time = std::iter::successors(Some(whole), |rows| {
            (rows.is_multiple_of(2 * TILE)).then_some(rows / 2)
        });
        let mut smallest = None;
        for at_once in at_a_time {
            for max_block in [4, 2, 1] {
                let product = self.product(shape, rows, at_once, max_block);
                if buffers(shape, &product.config) <= BUFFER_BYTES {
                    return product;
                }
                smallest = Some(product);
            }
        }
        // The operation itself says what it lacks.
        smallest.expect("there is at least one number of rows")
    }

    fn product(
        &self,
        shape: LinearShape,
        rows: usize,
        at_once: usize,
        max_block: usize,
    ) -> PrefillLinear {
        let (row_tiles, column_tiles) = (at_once / TILE, shape.n.div_ceil(TILE));
        let grid_y = self.grid.y.min(row_tiles);
        let compute = linear_compute(shape.weight);
        let per_core_n = column_tiles.div_ceil(self.grid.x);
        let program = MatmulProgram::Multicast2d {
            grid: Grid { x: self.grid.x, y: grid_y },
            in0_block_w: largest_divisor(shape.k / TILE, max_block),
            out_subblock_w: largest_divisor(per_core_n, max_subblock(shape.weight)),
            per_core_m: row_tiles.div_ceil(grid_y),
            per_core_n,
            fuse_batch: rows == at_once,
        };
        let memory = MemoryConfig::DRAM;
        let config = LinearConfig { program, compute, memory, dtype: shape.result };
        PrefillLinear { rows: at_once, config }
    }
}

/// Each core its columns of an interleaved weight.
fn one_row(shape: LinearShape, grid: Grid) -> MatmulProgram {
    let cores = grid.num_cores();
    let per_core_n = shape.n.div_ceil(TILE).div_ceil(cores);
    MatmulProgram::Multicast1d {
        grid,
        in0_block_w: largest_divisor(shape.k / TILE / cores, MAX_BLOCK),
        out_subblock_w: largest_divisor(per_core_n, max_subblock(shape.weight)),
        per_core_n,
    }
}

/// Tiles of a subblock of one row: a register file holds 8, or 4 in f32.
fn max_subblock(weight: DataType) -> usize {
    if linear_compute(weight).fp32_accumulate { 4 } else { 8 }
}

/// Bytes of the circular buffers of a 2D product on one core: both operands
/// twice, the result, and the sums on the way to it where they are of another
/// format.
fn buffers(shape: LinearShape, config: &LinearConfig) -> usize {
    let MatmulProgram::Multicast2d { in0_block_w, per_core_m, per_core_n, .. } = config.program
    else {
        return 0;
    };
    let sums = if config.compute.fp32_accumulate { DataType::Float32 } else { DataType::BFloat16 };
    let out = per_core_m * per_core_n;
    let on_the_way = if sums == shape.result { 0 } else { out * tile_bytes(sums) };
    2 * in0_block_w * per_core_m * tile_bytes(DataType::BFloat16)
        + 2 * in0_block_w * per_core_n * tile_bytes(shape.weight)
        + out * tile_bytes(shape.result)
        + on_the_way
}

/// Bytes of a tile of 32 × 32.
pub(super) fn tile_bytes(dtype: DataType) -> usize {
    match dtype {
        DataType::Float32 | DataType::UInt32 | DataType::Int32 => 4096,
        DataType::BFloat16 | DataType::UInt16 => 2048,
        DataType::BFloat8B => 1088,
        DataType::BFloat4B => 576,
    }
}
