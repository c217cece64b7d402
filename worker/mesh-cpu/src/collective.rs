//! What crosses chips: sums and gathers, always in rank order.

use kernels::elementwise;

use crate::fan_out;
use crate::ops::Compute;
use crate::tensor::Tensor;

impl Compute {
    /// `((chip 0 + chip 1) + chip 2) + …`, value by value: the order never
    /// depends on which chip was ready first, so runs repeat bit for bit.
    pub(crate) fn all_reduce(&self, mut partial: Tensor) -> Tensor {
        let size = partial.num_rows() * partial.num_cols();
        let num_chips = partial.num_shards();
        if num_chips > 1 && size > 0 {
            let chunk = partial.num_cols()
                * fan_out::rows_per_task(
                    &self.pool,
                    partial.num_rows(),
                    partial.num_cols() * num_chips,
                );
            let (sum, addends) = partial.values_mut().split_at_mut(size);
            let addends = &*addends; // [num_chips - 1, size]
            let tasks = sum.chunks_mut(chunk).enumerate().collect();
            fan_out::for_each(&self.pool, tasks, |(idx, sum)| {
                let start = idx * chunk;
                for addend in addends.chunks_exact(size) {
                    elementwise::add_assign(sum, &addend[start..start + sum.len()]);
                }
            });
        }
        partial.keep_first_shard();
        partial
    }
}

impl Compute {
    /// `[rows, channels of all chips]`, each row's slices in rank order, as one
    /// value that every chip holds.
    pub(crate) fn all_gather(&self, sharded: Tensor) -> Tensor {
        let (rows, cols, num_chips) =
            (sharded.num_rows(), sharded.num_cols(), sharded.num_shards());
        if num_chips == 1 {
            return sharded;
        }
        let width = num_chips * cols;
        let mut out = self.buffers.tensor(rows, width, 1);
        let chunk = fan_out::rows_per_task(&self.pool, rows, width);
        let tasks = out.values_mut().chunks_mut(chunk * width).enumerate().collect();
        fan_out::for_each(&self.pool, tasks, |(idx, out)| {
            for (row, out) in (idx * chunk..).zip(out.chunks_exact_mut(width)) {
                for (rank, out) in out.chunks_exact_mut(cols).enumerate() {
                    out.copy_from_slice(&sharded.on_chip(rank)[row * cols..(row + 1) * cols]);
                }
            }
        });
        out
    }
}

/// `[rows, channels of all chips]` in `out`: each row's slices in rank order.
pub(crate) fn gather_to_host(sharded: Tensor, out: &mut Vec<f32>) {
    if sharded.num_shards() == 1 {
        sharded.swap_values(out);
        return;
    }
    out.clear();
    out.reserve(sharded.values().len());
    let cols = sharded.num_cols();
    for row in 0..sharded.num_rows() {
        for rank in 0..sharded.num_shards() {
            out.extend_from_slice(&sharded.on_chip(rank)[row * cols..(row + 1) * cols]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::{Isa, Pool};

    fn compute(num_threads: usize) -> Compute {
        Compute::new(Pool::new(num_threads), Isa::detect())
    }

    #[test]
    fn partial_results_are_added_in_rank_order() {
        // In f32, (1e8 + -1e8) + 1 is 1 and 1e8 + (-1e8 + 1) is 0.
        for num_threads in [1, 2] {
            let compute = compute(num_threads);
            let (rows, cols) = (64, 512);
            let mut partial = compute.buffers.tensor(rows, cols, 3);
            for (shard, value) in partial.shards_mut().zip([1e8, -1e8, 1.0]) {
                shard.fill(value);
            }
            let sum = compute.all_reduce(partial);
            assert_eq!((sum.num_shards(), sum.num_rows(), sum.num_cols()), (1, rows, cols));
            assert!(sum.values().iter().all(|&value| value == 1.0), "{num_threads} threads");
        }
    }

    #[test]
    fn a_gather_interleaves_the_chips_row_by_row() {
        let compute = compute(1);
        let mut sharded = compute.buffers.tensor(2, 2, 2);
        sharded.values_mut().copy_from_slice(&[0., 1., 10., 11., 2., 3., 12., 13.]);
        let mut out = vec![9.0; 3];
        gather_to_host(sharded, &mut out);
        assert_eq!(out, [0., 1., 2., 3., 10., 11., 12., 13.]);
    }

    #[test]
    fn gathered_on_the_chips_and_on_the_host_is_the_same() {
        for num_threads in [1, 2] {
            let compute = compute(num_threads);
            for (rows, cols, num_chips) in [(1, 1, 8), (3, 5, 2), (200, 96, 3), (4, 4, 1)] {
                let sharded = || {
                    let mut tensor = compute.buffers.tensor(rows, cols, num_chips);
                    for (i, value) in tensor.values_mut().iter_mut().enumerate() {
                        *value = i as f32;
                    }
                    tensor
                };
                let gathered = compute.all_gather(sharded());
                assert_eq!(
                    (gathered.num_rows(), gathered.num_cols(), gathered.num_shards()),
                    (rows, cols * num_chips, 1)
                );
                let mut host = Vec::new();
                gather_to_host(sharded(), &mut host);
                assert_eq!(gathered.values(), host);
            }
        }
    }

    #[test]
    fn no_rows_reduce_and_gather_to_nothing() {
        let compute = compute(2);
        let sum = compute.all_reduce(compute.buffers.tensor(0, 4, 3));
        assert_eq!((sum.num_rows(), sum.num_shards()), (0, 1));
        let mut out = vec![1.0];
        gather_to_host(compute.buffers.tensor(0, 4, 3), &mut out);
        assert!(out.is_empty());
        let gathered = compute.all_gather(compute.buffers.tensor(0, 4, 3));
        assert_eq!((gathered.num_rows(), gathered.num_cols()), (0, 12));
    }
}
