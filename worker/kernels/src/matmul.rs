//! y = x · Wᵀ over any number of matrices at once.

mod fused;

use crate::aligned::{size_of_shape, with_scratch};
use crate::block::{self, Exponents, ROWS, VALUES, block_bytes};
use crate::gemm::Gemm;
use crate::lanes::{LANES, Lanes, simd_entry};
use crate::{Format, Isa, PackedMatrix, Pool};

/// Blocks of 16 inputs that are decoded before they are multiplied: 4 panels
/// of 192 × 16 f32 are 48 KiB. Measured 5 % faster over SmolLM2's shapes than
/// 32 KiB, which decode and multiply in shorter turns.
const BLOCKS_PER_STRIP: usize = 12;
/// Values of one panel's strip.
const STRIP_LEN: usize = BLOCKS_PER_STRIP * VALUES;
/// Panels of 16 outputs that one task computes together.
const PANELS_PER_TASK: usize = 4;
/// Rows of one task: enough that decoding the weights is cheap beside multiplying.
const ROWS_PER_TASK: usize = 128;

/// One product of a [`matmul`] call: one simulated chip's share.
#[derive(Debug)]
pub struct Matmul<'a> {
    /// Activations, `[m, k]`.
    pub x: &'a [f32],
    /// Weights, `[n, k]`.
    pub weight: &'a PackedMatrix,
    /// Result, `[m, n]`.
    pub y: &'a mut [f32],
}

/// Computes y = x · Wᵀ for every job, sharing all jobs' outputs out over the pool.
///
/// Every output element is one chain of f32 fused multiply-adds over the
/// decoded weights in ascending k, starting from +0. So a row of y has the same
/// bits whatever `m`, the number of threads and `isa` are.
///
/// # Panics
/// If a slice has not the length its shape says, or the machine lacks `isa`.
pub fn matmul(pool: &Pool, isa: Isa, m: usize, jobs: &mut [Matmul<'_>]) {
    assert!(isa.is_available(), "this machine lacks {isa:?}");
    for job in &*jobs {
        let (n, k) = (job.weight.n(), job.weight.k());
        assert_eq!(job.x.len(), size_of_shape([m, k]), "x is [{m}, {k}]");
        assert_eq!(job.y.len(), size_of_shape([m, n]), "y is [{m}, {n}]");
    }
    if m == 0 {
        return;
    }
    let jobs: Vec<Job<'_>> =
        jobs.iter_mut().map(|job| Job::new(m, pool.num_threads(), job)).collect();
    let num_tasks = jobs.iter().map(|job| job.num_tasks).sum();
    pool.run(num_tasks, &|mut task_idx| {
        for job in &jobs {
            if task_idx < job.num_tasks {
                return run_tile(isa, &job.tile(task_idx));
            }
            task_idx -= job.num_tasks;
        }
    });
}

/// A job cut into tasks: panel groups × row ranges.
struct Job<'a> {
    m: usize,
    x: &'a [f32],
    weight: &'a PackedMatrix,
    y: *mut f32,
    num_panel_groups: usize,
    num_row_ranges: usize,
    num_tasks: usize,
}

// SAFETY: `y` is only written, each element by one task, while the caller of
// `matmul` holds it mutably borrowed.
unsafe impl Sync for Job<'_> {}

impl<'a> Job<'a> {
    fn new(m: usize, num_threads: usize, job: &'a mut Matmul<'_>) -> Self {
        let num_panels = job.weight.num_panels();
        // A multiple of the threads, so that they finish together.
        let num_panel_groups =
            num_panels.div_ceil(PANELS_PER_TASK).next_multiple_of(num_threads).min(num_panels);
        let num_row_ranges = m.div_ceil(ROWS_PER_TASK);
        let num_tasks = num_panel_groups * num_row_ranges;
        let y = job.y.as_mut_ptr();
        Self { m, x: job.x, weight: job.weight, y, num_panel_groups, num_row_ranges, num_tasks }
    }

    fn tile(&self, task_idx: usize) -> Tile<'_> {
        let (n, k) = (self.weight.n(), self.weight.k());
        // As even as possible, in panels and in rows.
        let panel_at = |group| group * self.weight.num_panels() / self.num_panel_groups;
        let row_at = |range| range * self.m / self.num_row_ranges;
        let (range, group) = (task_idx / self.num_panel_groups, task_idx % self.num_panel_groups);
        let (first_panel, first_row) = (panel_at(group), row_at(range));
        let rows = row_at(range + 1) - first_row;
        Tile {
            weight: self.weight,
            first_panel,
            panels: panel_at(group + 1) - first_panel,
            x: &self.x[first_row * k..(first_row + rows) * k],
            rows,
            // In bounds: the tile's first row and column exist.
            y: self.y.wrapping_add(first_row * n + first_panel * LANES),
        }
    }
}

/// A rectangle of one job's y, all of k.
#[derive(Clone, Copy)]
struct Tile<'a> {
    weight: &'a PackedMatrix,
    first_panel: usize,
    /// At most [`PANELS_PER_TASK`].
    panels: usize,
    /// `[rows, k]`
    x: &'a [f32],
    rows: usize,
    /// The tile's first element; rows are n apart.
    y: *mut f32,
}

impl Tile<'_> {
    /// Columns of y: fewer than panels · 16 at the right edge.
    fn columns(&self) -> usize {
        (self.panels * LANES).min(self.weight.n() - self.first_panel * LANES)
    }

    /// Whether its last panel reaches past the matrix.
    fn is_edge(&self) -> bool {
        self.columns() < self.panels * LANES
    }

    /// Whether weights are decoded in registers rather than to a strip.
    fn is_fused(&self) -> bool {
        self.rows == 1 && self.weight.format() != Format::F32
    }
}

/// Computes a tile in this thread's scratch.
fn run_tile(isa: Isa, tile: &Tile<'_>) {
    let strips_len = if tile.is_fused() { 0 } else { PANELS_PER_TASK * STRIP_LEN };
    // At the right edge whole panels do not fit y, so they are computed beside it.
    let edge_len = if tile.is_edge() { tile.rows * tile.panels * LANES } else { 0 };
    // The closure calls the entry, not the other way round: a closure inside
    // would be compiled without the instruction set.
    with_scratch(strips_len + edge_len, |scratch| {
        let (strips, beside) = scratch.split_at_mut(strips_len);
        compute_tile(isa, tile, strips, beside);
    });
}

simd_entry! {
    fn compute_tile(tile: &Tile<'_>, strips: &mut [f32], beside: &mut [f32]) = compute_tile_kernel
}

#[inline(always)]
fn compute_tile_kernel<V: Lanes>(tile: &Tile<'_>, strips: &mut [f32], beside: &mut [f32]) {
    let (width, n) = (tile.panels * LANES, tile.weight.n());
    let (y, y_stride) = if tile.is_edge() { (beside.as_mut_ptr(), width) } else { (tile.y, n) };
    // SAFETY: y has `rows` rows of `width` values, `y_stride` apart.
    unsafe {
        if tile.is_fused() {
            fused::multiply_row::<V>(tile, y);
        } else {
            decode_and_multiply::<V>(tile, strips, y, y_stride);
        }
    }
    if tile.is_edge() {
        for (row, values) in beside.chunks_exact(width).enumerate() {
            // SAFETY: y has `rows` rows of `columns` values, n apart, this task's alone.
            unsafe {
                values.as_ptr().copy_to_nonoverlapping(tile.y.add(row * n), tile.columns());
            }
        }
    }
}

/// # Safety
/// `y` is valid for writing `tile.rows` rows of `tile.panels * 16`, `y_stride`
/// apart, and overlaps no other argument.
#[inline(always)]
unsafe fn decode_and_multiply<V: Lanes>(
    tile: &Tile<'_>,
    strips: &mut [f32],
    y: *mut f32,
    y_stride: usize,
) {
    let weight = tile.weight;
    let (format, k) = (weight.format(), weight.k());
    let mut product = Gemm {
        rows: tile.rows,
        panels: tile.panels,
        k,
        x: tile.x.as_ptr(),
        x_stride: k,
        w: weight.panel(tile.first_panel).cast(),
        w_stride: weight.panel_bytes() / size_of::<f32>(),
        y,
        y_stride,
        accumulate: false,
    };
    if format == Format::F32 {
        // SAFETY: an f32 panel is [k, 16] f32 (64-byte aligned blocks of 1024 bytes).
        return unsafe { V::gemm(&product) };
    }
    let strips = strips.as_mut_ptr();
    let num_blocks = k.div_ceil(ROWS);
    let mut first_block = 0;
    while first_block < num_blocks {
        let blocks = BLOCKS_PER_STRIP.min(num_blocks - first_block);
        let first_k = first_block * ROWS;
        // SAFETY: blocks and strips exist; x has the columns first_k….
        unsafe {
            decode_strips::<V>(tile, first_block, blocks, strips);
            product.x = tile.x.as_ptr().add(first_k);
            product.k = (blocks * ROWS).min(k - first_k);
            product.w = strips;
            product.w_stride = STRIP_LEN;
            product.accumulate = first_block > 0;
            V::gemm(&product);
        }
        first_block += blocks;
    }
}

/// Decodes `blocks` blocks from `first_block` of every panel of the tile.
///
/// # Safety
/// The blocks exist; `strips` holds `panels` strips of [`BLOCKS_PER_STRIP`] blocks.
#[inline(always)]
unsafe fn decode_strips<V: Lanes>(
    tile: &Tile<'_>,
    first_block: usize,
    blocks: usize,
    strips: *mut f32,
) {
    let format = tile.weight.format();
    let bytes = block_bytes(format);
    let mut panel = 0;
    while panel < tile.panels {
        let from = tile.weight.panel(tile.first_panel + panel).wrapping_add(first_block * bytes);
        let to = strips.wrapping_add(panel * STRIP_LEN);
        let mut i = 0;
        while i < blocks {
            // SAFETY: by this function's contract.
            unsafe {
                let to = to.add(i * VALUES);
                block::decode::<V>(format, Exponents::OfRows, from.add(i * bytes), to);
            }
            i += 1;
        }
        panel += 1;
    }
}

#[cfg(test)]
mod tests;
