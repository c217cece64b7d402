//! The step's operations, as kernels over every chip's shard.

use std::sync::Arc;

use kernels::{Isa, Matmul, Pool, elementwise};

use crate::buffers::Buffers;
use crate::fan_out;
use crate::tensor::Tensor;
use crate::weights::Weight;

/// What computes: threads, instruction set and activation memory.
pub(crate) struct Compute {
    pub(crate) pool: Pool,
    pub(crate) isa: Isa,
    pub(crate) buffers: Arc<Buffers>,
}

impl Compute {
    pub(crate) fn new(pool: Pool, isa: Isa) -> Self {
        Self { pool, isa, buffers: Arc::new(Buffers::default()) }
    }

    /// Rows of `table` by id, on each chip its own channels of them.
    pub(crate) fn embed(&self, table: &Weight, ids: &[u32]) -> Tensor {
        let shards = table.shards();
        let (vocab, cols) = (shards[0].n(), shards[0].k());
        let mut out = self.buffers.tensor(ids.len(), cols, shards.len());
        for (table, out) in shards.iter().zip(out.shards_mut()) {
            for (&id, row) in ids.iter().zip(out.chunks_exact_mut(cols)) {
                assert!((id as usize) < vocab, "token id is {id}, vocabulary is {vocab}");
                table.row(id as usize, row);
            }
        }
        out
    }

    /// Of rows that are cut over the chips: gathered first.
    pub(crate) fn rms_norm(&self, x: &Tensor, gain: &Weight, eps: f32) -> Tensor {
        let gathered;
        let x = if x.num_shards() == 1 {
            x
        } else {
            gathered = self.gathered(x);
            &gathered
        };
        let gain = gain.gain();
        let cols = x.num_cols();
        assert_eq!(cols, gain.len(), "the gain has the width of its input");
        let mut out = self.buffers.tensor(x.num_rows(), cols, 1);
        let rows = fan_out::rows_per_task(&self.pool, x.num_rows(), cols);
        let tasks = x.values().chunks(rows * cols).zip(out.values_mut().chunks_mut(rows * cols));
        fan_out::for_each(&self.pool, tasks.collect(), |(x, out)| {
            for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact_mut(cols)) {
                elementwise::rms_norm(self.isa, x, gain, eps, out);
            }
        });
        out
    }

    /// `x · Wᵀ` on every chip: column- or row-parallel is a matter of how the
    /// weight was cut and of what the result is called.
    pub(crate) fn linear(&self, x: &Tensor, weight: &Weight) -> Tensor {
        let shards = weight.shards();
        assert_eq!(x.num_cols(), shards[0].k(), "the weight has the width of its input");
        let mut y = self.buffers.tensor(x.num_rows(), shards[0].n(), shards.len());
        let mut jobs: Vec<Matmul<'_>> = shards
            .iter()
            .zip(y.shards_mut())
            .enumerate()
            .map(|(rank, (weight, y))| Matmul { x: x.on_chip(rank), weight, y })
            .collect();
        if !jobs.is_empty() {
            kernels::matmul(&self.pool, self.isa, x.num_rows(), &mut jobs);
        }
        drop(jobs);
        y
    }

    /// `silu(gate) · up` of `[gate | up]`, on every chip.
    pub(crate) fn silu_mul(&self, gate_up: &Tensor) -> Tensor {
        let (rows, cols) = (gate_up.num_rows(), gate_up.num_cols());
        assert!(cols.is_multiple_of(2), "gate and up have the same width");
        let (shards, half) = (gate_up.num_shards(), cols / 2);
        let mut out = self.buffers.tensor(rows, half, shards);
        // Chips lie one after another, so their rows are one list of rows.
        let chunk = fan_out::rows_per_task(&self.pool, rows * shards, cols);
        let tasks =
            gate_up.values().chunks(chunk * cols).zip(out.values_mut().chunks_mut(chunk * half));
        fan_out::for_each(&self.pool, tasks.collect(), |(gate_up, out)| {
            for (row, out) in gate_up.chunks_exact(cols).zip(out.chunks_exact_mut(half)) {
                let (gate, up) = row.split_at(half);
                elementwise::silu_mul(self.isa, gate, up, out);
            }
        });
        out
    }

    /// `x + y`, in the memory of `x`.
    pub(crate) fn add(&self, mut x: Tensor, y: &Tensor) -> Tensor {
        assert_eq!(
            (x.num_rows(), x.num_cols(), x.num_shards()),
            (y.num_rows(), y.num_cols(), y.num_shards()),
            "addends have the same shape"
        );
        let cols = x.num_cols();
        let chunk = cols * fan_out::rows_per_task(&self.pool, x.num_rows(), cols);
        let tasks = x.values_mut().chunks_mut(chunk).zip(y.values().chunks(chunk));
        fan_out::for_each(&self.pool, tasks.collect(), |(x, y)| elementwise::add_assign(x, y));
        x
    }

    pub(crate) fn select_rows(&self, x: Tensor, rows: &[usize]) -> Tensor {
        // In a decode step every row's logits are wanted.
        if rows.len() == x.num_rows() && rows.iter().enumerate().all(|(i, &row)| i == row) {
            return x;
        }
        let cols = x.num_cols();
        let mut out = self.buffers.tensor(rows.len(), cols, x.num_shards());
        for (rank, shard) in out.shards_mut().enumerate() {
            let x = x.on_chip(rank);
            for (&row, out) in rows.iter().zip(shard.chunks_exact_mut(cols)) {
                out.copy_from_slice(&x[row * cols..(row + 1) * cols]);
            }
        }
        out
    }
}

impl std::fmt::Debug for Compute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compute")
            .field("num_threads", &self.pool.num_threads())
            .field("isa", &self.isa)
            .finish_non_exhaustive()
    }
}
