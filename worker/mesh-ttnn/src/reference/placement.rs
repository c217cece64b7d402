//! Which places in memory exist, and whether a tensor fits there.

use super::refusal::Op;
use super::rounding::is_block_float;
use super::tensor::TensorSpec;
use crate::ops::Result;
use crate::spec::{Grid, Layout, MemoryConfig, TILE};

/// Banks of DRAM of a chip.
pub(super) const DRAM_BANKS: usize = 12;

/// The part of a chip that tensors are cut over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Floor {
    /// Cores that compute.
    pub(super) grid: Grid,
}

impl Floor {
    /// Refuses a tensor that cannot lie where its `spec` says.
    pub(super) fn check(self, op: Op, spec: &TensorSpec) -> Result<()> {
        op.needs(
            spec.layout == Layout::Tile || !is_block_float(spec.dtype),
            format_args!("layout Tile for {:?}", spec.dtype),
            format_args!("{:?}", spec.layout),
        )?;
        let [rows, columns] = spec.physical();
        match spec.memory {
            MemoryConfig::Interleaved(_) => Ok(()),
            MemoryConfig::WidthSharded { grid, shard } => {
                self.check_grid(op, grid)?;
                check_shard(op, spec, shard)?;
                check_whole(op, "rows", shard[0], rows)?;
                check_count(op, "columns", columns.div_ceil(shard[1]), grid.num_cores())
            }
            MemoryConfig::HeightSharded { grid, shard } => {
                self.check_grid(op, grid)?;
                check_shard(op, spec, shard)?;
                check_whole(op, "columns", shard[1], columns)?;
                check_count(op, "rows", rows.div_ceil(shard[0]), grid.num_cores())
            }
            MemoryConfig::DramWidthSharded { banks, shard } => {
                let met = banks <= DRAM_BANKS;
                op.needs(met, format_args!("at most {DRAM_BANKS} banks of DRAM"), banks)?;
                check_shard(op, spec, shard)?;
                check_whole(op, "rows", shard[0], rows)?;
                check_count(op, "columns", columns.div_ceil(shard[1]), banks)
            }
            MemoryConfig::WidthShardedByOp | MemoryConfig::HeightShardedByOp => {
                Err(op
                    .refusal("a memory config with its shards", format_args!("{:?}", spec.memory)))
            }
        }
    }

    /// Refuses cores that the chip has not.
    pub(super) fn check_grid(self, op: Op, grid: Grid) -> Result<()> {
        let fits = grid.num_cores() > 0 && grid.x <= self.grid.x && grid.y <= self.grid.y;
        op.needs(fits, format_args!("a grid within the chip's {}", self.grid), grid)
    }
}

fn check_shard(op: Op, spec: &TensorSpec, shard: [usize; 2]) -> Result<()> {
    let whole = shard.iter().all(|side| *side > 0 && side.is_multiple_of(TILE));
    op.needs(
        whole,
        format_args!("shards of whole tiles for {:?}", spec.shape),
        format_args!("{shard:?}"),
    )
}

fn check_whole(op: Op, side: &str, shard: usize, all: usize) -> Result<()> {
    op.needs(shard == all, format_args!("shards of all {all} {side}"), shard)
}

fn check_count(op: Op, side: &str, shards: usize, places: usize) -> Result<()> {
    op.needs(shards <= places, format_args!("at most {places} shards along {side}"), shards)
}
