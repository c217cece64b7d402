//! Activations: f32 rows, one shard per chip.

use std::fmt;
use std::sync::Arc;

use crate::buffers::Buffers;

/// `[num_rows, num_cols]` in f32 on every chip that holds a shard of it. A
/// replicated activation is one shard that every chip reads. Returns its memory
/// to the mesh when dropped.
pub struct Tensor {
    num_rows: usize,
    /// Of one shard.
    num_cols: usize,
    num_shards: usize,
    /// `[num_shards, num_rows, num_cols]`
    values: Vec<f32>,
    home: Arc<Buffers>,
}

impl Tensor {
    pub(crate) fn new(
        [num_rows, num_cols]: [usize; 2],
        num_shards: usize,
        values: Vec<f32>,
        home: Arc<Buffers>,
    ) -> Self {
        assert_eq!(values.len(), num_rows * num_cols * num_shards, "shards fill the buffer");
        Self { num_rows, num_cols, num_shards, values, home }
    }

    /// Rows: tokens of the step.
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// Channels of one chip's shard.
    pub fn num_cols(&self) -> usize {
        self.num_cols
    }

    /// Shards: 1 for a replicated activation, else the number of chips.
    pub fn num_shards(&self) -> usize {
        self.num_shards
    }

    /// What chip `rank` holds, `[num_rows, num_cols]`.
    pub(crate) fn on_chip(&self, rank: usize) -> &[f32] {
        let size = self.num_rows * self.num_cols;
        let shard = if self.num_shards == 1 { 0 } else { rank };
        &self.values[shard * size..(shard + 1) * size]
    }

    /// Every chip's shard in rank order; none when there are no rows.
    pub(crate) fn shards_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        let size = (self.num_rows * self.num_cols).max(1);
        self.values.chunks_exact_mut(size)
    }

    /// `[num_shards, num_rows, num_cols]`
    pub(crate) fn values(&self) -> &[f32] {
        &self.values
    }

    /// `[num_shards, num_rows, num_cols]`
    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// Exchanges the buffer with `other`, which goes back to the mesh.
    pub(crate) fn swap_values(mut self, other: &mut Vec<f32>) {
        std::mem::swap(&mut self.values, other);
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        self.home.give_back(std::mem::take(&mut self.values));
    }
}

impl fmt::Debug for Tensor {
    /// Shape only: the values are megabytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tensor")
            .field("num_rows", &self.num_rows)
            .field("num_cols", &self.num_cols)
            .field("num_shards", &self.num_shards)
            .finish_non_exhaustive()
    }
}
