//! Paged caches: `[blocks, kv_heads, block_size, head_dim]`, found by page tables.
//!
//! Two users that write the same row of the same block in one step race on the
//! device; here the later user wins.

use super::commands::{Call, Commands};
use super::heads::{USER_GRID, USERS};
use super::refusal::Op;
use super::rounding::round;
use super::tensor::{Tensor, TensorSpec};
use crate::ops::Result;
use crate::spec::{DataType, Layout, MemoryConfig, TILE};

/// A cache, as one chip holds it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cache {
    pub(super) op: Op,
    pub(super) spec: TensorSpec,
}

impl Cache {
    pub(super) fn of(op: Op, cache: &Tensor) -> Result<Self> {
        let spec = *cache.spec();
        op.needs_layout("the cache", &spec, Layout::Tile)?;
        let floats = [DataType::BFloat16, DataType::BFloat8B, DataType::Float32];
        op.needs_dtype("the cache", &spec, &floats)?;
        op.needs(
            spec.memory == MemoryConfig::DRAM,
            "the cache interleaved in DRAM",
            format_args!("{:?}", spec.memory),
        )?;
        // The package takes half tiles for blocks.
        let block_size = spec.shape[2];
        op.needs(block_size.is_multiple_of(TILE), "blocks of whole tiles", block_size)?;
        Ok(Self { op, spec })
    }

    pub(super) fn kv_heads(&self) -> usize {
        self.spec.shape[1]
    }

    pub(super) fn head_dim(&self) -> usize {
        self.spec.width()
    }

    /// Where head 0 of position `position` begins in memory, by a row of a page
    /// table.
    pub(super) fn start(&self, pages: &[i64], position: usize) -> Result<usize> {
        let [blocks, kv_heads, block_size, head_dim] = self.spec.shape;
        let page = position / block_size;
        let block = pages.get(page).ok_or_else(|| {
            self.op.refusal(
                format_args!("positions below {}", pages.len() * block_size),
                format_args!("position {position}"),
            )
        })?;
        let block = usize::try_from(*block).ok().filter(|block| *block < blocks);
        let block = block.ok_or_else(|| {
            self.op.refusal(
                format_args!("blocks below {blocks} in the page table"),
                format_args!("{} for page {page}", pages[page]),
            )
        })?;
        Ok((block * kv_heads * block_size + position % block_size) * head_dim)
    }

    /// From one head to the next at the same position.
    pub(super) fn head_stride(&self) -> usize {
        self.spec.shape[2] * self.head_dim()
    }

    /// Writes one head's row, rounded.
    fn write_row(&self, values: &mut [f32], start: usize, row: &[f32]) {
        let to = &mut values[start..start + row.len()];
        to.copy_from_slice(row);
        round(to, row.len(), self.spec.dtype);
    }
}

/// Refuses a page table that is not `[rows, pages]` of int32.
pub(super) fn check_page_table(op: Op, table: &TensorSpec, rows: usize) -> Result<()> {
    op.needs_dtype("the page table", table, &[DataType::Int32])?;
    op.needs_layout("the page table", table, Layout::RowMajor)?;
    op.needs_shape("the page table", table, [1, 1, rows, table.width()])?;
    op.needs(table.rank == 2, "the page table of rank 2", table.rank)
}

/// Refuses positions that are not `[users]` of int32.
pub(super) fn check_positions(op: Op, positions: &TensorSpec, users: usize) -> Result<()> {
    op.needs_dtype("positions", positions, &[DataType::Int32])?;
    op.needs_layout("positions", positions, Layout::RowMajor)?;
    op.needs_shape("positions", positions, [1, 1, 1, users])?;
    op.needs(positions.rank == 1, "positions of rank 1", positions.rank)
}

/// Position of a user, or none: −1 is a user who takes no part.
pub(super) fn position(op: Op, position: i64) -> Result<Option<usize>> {
    if position == -1 {
        return Ok(None);
    }
    let known = usize::try_from(position);
    known.map(Some).map_err(|_| op.refusal("positions from 0, or -1 for no user", position))
}

pub(super) fn paged_update_cache(
    commands: &mut Commands,
    cache: &Tensor,
    x: &Tensor,
    positions: &Tensor,
    page_table: &Tensor,
) -> Result<()> {
    let op = Op("paged_update_cache");
    let paged = Cache::of(op, cache)?;
    check_page_table(op, page_table.spec(), USERS)?;
    check_positions(op, positions.spec(), USERS)?;
    op.needs_layout("x", x.spec(), Layout::Tile)?;
    op.needs_dtype("x", x.spec(), &[DataType::BFloat16, DataType::Float32])?;
    let memory = x.spec().memory;
    op.needs(
        matches!(memory, MemoryConfig::HeightSharded { grid, .. } if grid == USER_GRID),
        format_args!("x height-sharded, one user a core of {USER_GRID}"),
        format_args!("{memory:?}"),
    )?;
    let (heads, head_dim) = (paged.kv_heads(), paged.head_dim());
    op.needs_shape("x", x.spec(), [1, USERS, heads, head_dim])?;
    let pages = page_table.spec().width();
    let inputs = [x, positions, page_table];
    let call = Call { op, inputs: &inputs, config: cache.spec() };
    commands.in_place(&call, cache, move |cache, inputs| {
        let (x, positions, table) = (inputs[0].reals(), inputs[1].wholes(), inputs[2].wholes());
        let rows = x.chunks_exact(heads * head_dim).zip(table.chunks_exact(pages));
        for ((row, pages), at) in rows.zip(positions) {
            let Some(at) = position(op, *at)? else { continue };
            let start = paged.start(pages, at)?;
            for (head, row) in row.chunks_exact(head_dim).enumerate() {
                paged.write_row(cache.reals_mut(), start + head * paged.head_stride(), row);
            }
        }
        Ok(())
    })
}

pub(super) fn paged_fill_cache(
    commands: &mut Commands,
    cache: &Tensor,
    x: &Tensor,
    page_table: &Tensor,
) -> Result<()> {
    let op = Op("paged_fill_cache");
    let paged = Cache::of(op, cache)?;
    let table_rows = page_table.spec().shape[2];
    check_page_table(op, page_table.spec(), table_rows)?;
    op.needs(table_rows > 0, "a row of the page table for batch index 0", table_rows)?;
    op.needs_layout("x", x.spec(), Layout::Tile)?;
    op.needs(
        x.spec().dtype == cache.spec().dtype,
        format_args!("x as the cache's {:?}", cache.spec().dtype),
        format_args!("{:?}", x.spec().dtype),
    )?;
    op.needs_interleaved("x", x.spec().memory)?;
    let (heads, head_dim, rows) = (paged.kv_heads(), paged.head_dim(), x.spec().shape[2]);
    op.needs_shape("x", x.spec(), [1, heads, rows, head_dim])?;
    let (pages, block_size) = (page_table.spec().width(), cache.spec().shape[2]);
    op.needs(
        rows <= pages * block_size,
        format_args!("rows that fit {pages} blocks of {block_size}"),
        rows,
    )?;
    let call = Call { op, inputs: &[x, page_table], config: cache.spec() };
    commands.in_place(&call, cache, move |cache, inputs| {
        let pages = &inputs[1].wholes()[..pages];
        for (idx, row) in inputs[0].reals().chunks_exact(head_dim).enumerate() {
            let (head, at) = (idx / rows, idx % rows);
            let start = paged.start(pages, at)? + head * paged.head_stride();
            paged.write_row(cache.reals_mut(), start, row);
        }
        Ok(())
    })
}
