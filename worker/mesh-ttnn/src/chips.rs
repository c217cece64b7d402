//! What every operation needs: the chips, and where things lie on them.

use mesh::MeshError;

use crate::layout::{Chip, LinearShape, NORM_COMPUTE};
use crate::ops::Ops;
use crate::spec::{DataType, MemoryConfig, NormConfig, TILE};
use crate::tensor::{Form, Tensor};
use crate::weight::{Gain, Linear};

/// Operations with their layouts.
pub(crate) struct Chips<O> {
    pub(crate) ops: O,
    pub(crate) chip: Chip,
}

impl<O: Ops> Chips<O> {
    pub(crate) fn count(&self) -> usize {
        self.ops.num_chips()
    }

    /// `x` in `memory`, moved only if it lies elsewhere.
    pub(crate) fn placed(
        &mut self,
        x: &Tensor<O::Tensor>,
        memory: MemoryConfig,
    ) -> Result<O::Tensor, MeshError> {
        if x.memory == memory {
            return Ok(x.whole().clone());
        }
        self.ops.to_memory_config(x.whole(), &memory)
    }

    /// Where a residual of `width` columns a chip lies.
    pub(crate) fn residual(&self, form: Form, width: usize) -> MemoryConfig {
        match form {
            Form::Tile => self.chip.row(width),
            Form::Rows(_) => MemoryConfig::DRAM,
        }
    }

    /// `width` of what a chip holds of `x`.
    pub(crate) fn width(&self, x: &Tensor<O::Tensor>) -> usize {
        self.ops.shape(x.whole())[3]
    }

    // ------------------------------------------------------------ rows of norms

    /// The whole normalised row on every chip, of each chip's part of it.
    pub(crate) fn rms_norm(
        &mut self,
        x: &Tensor<O::Tensor>,
        gain: &Gain<O::Tensor>,
        eps: f32,
    ) -> Result<Tensor<O::Tensor>, MeshError> {
        let memory = self.residual(x.form, gain.width);
        if let (Form::Rows(_), Some(gain)) = (x.form, &gain.cut) {
            return self.distributed_norm(x, gain, eps);
        }
        let whole = if self.count() == 1 {
            self.placed(x, memory)?
        } else {
            self.ops.all_gather(x.whole(), &memory)?
        };
        let program = (x.form == Form::Tile).then(|| self.chip.norm(gain.width));
        let config = NormConfig { eps, program, compute: NORM_COMPUTE, memory };
        let normed = self.ops.rms_norm(&whole, &gain.whole, &config)?;
        Ok(x.beside(normed, memory))
    }

    /// Rows that L1 does not hold whole: chips exchange sums of squares, and
    /// then what they have normalised.
    fn distributed_norm(
        &mut self,
        x: &Tensor<O::Tensor>,
        gain: &O::Tensor,
        eps: f32,
    ) -> Result<Tensor<O::Tensor>, MeshError> {
        let own = self.ops.rms_norm_pre_all_gather(x.whole(), NORM_COMPUTE)?;
        let all = self.ops.all_gather(&own, &MemoryConfig::DRAM)?;
        let part = self.ops.rms_norm_post_all_gather(x.whole(), &all, gain, eps, NORM_COMPUTE)?;
        let whole = self.ops.all_gather(&part, &MemoryConfig::DRAM)?;
        Ok(x.beside(whole, MemoryConfig::DRAM))
    }

    // ------------------------------------------------------------ products

    /// `x · W`, for each matrix of a projection.
    pub(crate) fn linear(
        &mut self,
        x: &Tensor<O::Tensor>,
        matrices: &[Linear<O::Tensor>],
    ) -> Result<Tensor<O::Tensor>, MeshError> {
        let k = matrices[0].shape.k;
        assert_eq!(self.width(x), k, "the weight has the width of its input");
        let memory = self.residual(x.form, k);
        let input = self.placed(x, memory)?;
        let mut parts = Vec::with_capacity(matrices.len());
        for matrix in matrices {
            parts.push(self.product(&input, x.form, matrix)?);
        }
        let memory = match x.form {
            Form::Tile => MemoryConfig::WidthShardedByOp,
            Form::Rows(_) => MemoryConfig::DRAM,
        };
        Ok(Tensor { parts, form: x.form, memory, first_row: x.first_row })
    }

    fn product(
        &mut self,
        x: &O::Tensor,
        form: Form,
        matrix: &Linear<O::Tensor>,
    ) -> Result<O::Tensor, MeshError> {
        let Linear { tensor: weight, shape, prefill_result } = matrix;
        let rows = match form {
            Form::Tile => {
                let config = self.chip.decode_linear(*shape);
                return self.ops.linear(x, weight, &config);
            }
            Form::Rows(rows) => rows,
        };
        let shape = LinearShape { result: *prefill_result, ..*shape };
        let product = self.chip.prefill_linear(shape, rows);
        if product.rows == rows {
            return self.ops.linear(x, weight, &product.config);
        }
        let batched = [1, rows / product.rows, product.rows, shape.k];
        let x = self.ops.reshape(x, batched)?;
        let y = self.ops.linear(&x, weight, &product.config)?;
        self.ops.reshape(&y, [1, 1, rows, shape.n])
    }

    /// Logits: the slices of the vocabulary, side by side in DRAM.
    pub(crate) fn logits(&mut self, slices: Tensor<O::Tensor>) -> Result<O::Tensor, MeshError> {
        let mut parts = slices.parts;
        if slices.memory != MemoryConfig::DRAM {
            for part in &mut parts {
                *part = self.ops.to_memory_config(part, &MemoryConfig::DRAM)?;
            }
        }
        if parts.len() == 1 { Ok(parts.remove(0)) } else { self.ops.concat(&parts) }
    }

    /// `silu(gate) · up`, in the format that the next product takes.
    pub(crate) fn silu_mul(
        &mut self,
        gate_up: Tensor<O::Tensor>,
        dtype: DataType,
    ) -> Result<Tensor<O::Tensor>, MeshError> {
        let [gate, up] = gate_up.parts.as_slice() else {
            panic!("a gate and an up projection are two")
        };
        let value = self.ops.silu_mul(gate, up, dtype, &gate_up.memory)?;
        Ok(gate_up.beside(value, gate_up.memory))
    }

    // ------------------------------------------------------------ chips together

    /// The sum over chips, each its own columns, as the residual lies.
    pub(crate) fn reduce_scatter(
        &mut self,
        x: Tensor<O::Tensor>,
    ) -> Result<Tensor<O::Tensor>, MeshError> {
        let width = self.width(&x) / self.count();
        let memory = self.residual(x.form, width);
        let sum = if self.count() == 1 {
            self.placed(&x, memory)?
        } else {
            self.ops.reduce_scatter(x.whole(), &memory)?
        };
        Ok(x.beside(sum, memory))
    }

    /// Every chip's columns on every chip, as the next product takes them.
    pub(crate) fn all_gather(
        &mut self,
        x: Tensor<O::Tensor>,
    ) -> Result<Tensor<O::Tensor>, MeshError> {
        if self.count() == 1 {
            return Ok(x);
        }
        let memory = self.residual(x.form, self.width(&x) * self.count());
        let whole = self.ops.all_gather(x.whole(), &memory)?;
        Ok(x.beside(whole, memory))
    }

    /// `x + y`, as the residual lies.
    pub(crate) fn add(
        &mut self,
        x: &Tensor<O::Tensor>,
        y: &Tensor<O::Tensor>,
    ) -> Result<Tensor<O::Tensor>, MeshError> {
        let memory = self.residual(x.form, self.width(x));
        let (a, b) = (self.placed(x, memory)?, self.placed(y, memory)?);
        let sum = self.ops.add(&a, &b, &memory)?;
        Ok(x.beside(sum, memory))
    }

    /// The rows of a prompt whose logits are wanted, in whole tiles: one tile
    /// goes on as a decode's does.
    pub(crate) fn select_rows(
        &mut self,
        x: Tensor<O::Tensor>,
        rows: &[usize],
    ) -> Result<Tensor<O::Tensor>, MeshError> {
        let (Form::Rows(num_rows), [first, .., last] | [first @ last]) = (x.form, rows) else {
            return Ok(x);
        };
        let start = first / TILE * TILE;
        let tiles = (last + 1 - start).div_ceil(TILE).next_power_of_two();
        let start = start.min(num_rows.saturating_sub(tiles * TILE));
        let width = self.width(&x);
        let end = [1, 1, start + tiles * TILE, width];
        let value = self.ops.slice(x.whole(), [0, 0, start, 0], end)?;
        let (form, memory) = if tiles == 1 {
            (Form::Tile, self.chip.row(width))
        } else {
            (Form::Rows(tiles * TILE), MemoryConfig::DRAM)
        };
        let value = match form {
            Form::Tile => self.ops.to_memory_config(&value, &memory)?,
            Form::Rows(_) => value,
        };
        Ok(Tensor { first_row: start, ..Tensor::new(value, form, memory) })
    }
}
