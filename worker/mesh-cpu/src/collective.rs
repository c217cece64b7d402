//! What crosses chips: sums and gathers, always in rank order.

use kernels::elementwise;

use crate::fan_out;
use crate::ops::Compute;
use crate::tensor::Tensor;

impl Compute {
    /// `((chip 0 + chip 1) + chip 2) + …`, value by value, of which every chip
    /// keeps its own slice of the channels: the order never depends on which
    /// chip was ready first, so runs repeat bit for bit.
    pub(crate) fn reduce_scatter(&self, partial: Tensor) -> Tensor {
        let (rows, width, num_chips) =
            (partial.num_rows(), partial.num_cols(), partial.num_shards());
        if num_chips == 1 {
            return partial;
        }
        assert!(width.is_multiple_of(num_chips), "every chip keeps as many channels");
        let cols = width / num_chips;
        let mut out = self.buffers.tensor(rows, cols, num_chips);
        let chunk = fan_out::rows_per_task(&self.pool, rows, width);
        let tasks = out
            .shards_mut()
            .enumerate()
            .flat_map(|(rank, shard)| {
                shard.chunks_mut(chunk * cols).enumerate().map(move |(idx, out)| (rank, idx, out))
            })
            .collect();
        fan_out::for_each(&self.pool, tasks, |(rank, idx, out)| {
            for (row, sum) in (idx * chunk..).zip(out.chunks_exact_mut(cols)) {
                let at = row * width + rank * cols;
                sum.copy_from_slice(&partial.on_chip(0)[at..at + cols]);
                for addend in 1..num_chips {
                    elementwise::add_assign(sum, &partial.on_chip(addend)[at..at + cols]);
                }
            }
        });
        out
    }

    /// `[rows, channels of all chips]`, each row's slices in rank order, as one
    /// value that every chip holds.
    pub(crate) fn all_gather(&self, sharded: Tensor) -> Tensor {
        if sharded.num_shards() == 1 { sharded } else { self.gathered(&sharded) }
    }

    pub(crate) fn gathered(&self, sharded: &Tensor) -> Tensor {
        let (rows, cols, num_chips) =
            (sharded.num_rows(), sharded.num_cols(), sharded.num_shards());
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
            let (rows, cols) = (64, 513);
            let mut partial = compute.buffers.tensor(rows, cols, 3);
            for (shard, value) in partial.shards_mut().zip([1e8, -1e8, 1.0]) {
                shard.fill(value);
            }
            let sum = compute.reduce_scatter(partial);
            assert_eq!((sum.num_shards(), sum.num_rows(), sum.num_cols()), (3, rows, cols / 3));
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
    fn every_chip_keeps_its_own_slice_of_the_sum() {
        let compute = compute(2);
        for (rows, cols, num_chips) in [(1, 8, 8), (3, 10, 2), (200, 96, 3)] {
            let mut partial = compute.buffers.tensor(rows, cols, num_chips);
            for (i, value) in partial.values_mut().iter_mut().enumerate() {
                *value = (i % 1013) as f32;
            }
            let want: Vec<f32> = (0..rows * cols)
                .map(|i| (0..num_chips).map(|chip| partial.on_chip(chip)[i]).sum())
                .collect();
            let gathered = compute.all_gather(compute.reduce_scatter(partial));
            assert_eq!(gathered.values(), want);
        }
    }

    #[test]
    fn no_rows_reduce_and_gather_to_nothing() {
        let compute = compute(2);
        let sum = compute.reduce_scatter(compute.buffers.tensor(0, 6, 3));
        assert_eq!((sum.num_rows(), sum.num_cols(), sum.num_shards()), (0, 2, 3));
        let mut out = vec![1.0];
        gather_to_host(compute.buffers.tensor(0, 4, 3), &mut out);
        assert!(out.is_empty());
        let gathered = compute.all_gather(compute.buffers.tensor(0, 4, 3));
        assert_eq!((gathered.num_rows(), gathered.num_cols()), (0, 12));
    }
}
