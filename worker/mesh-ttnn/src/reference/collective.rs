//! Operations across chips. Sums run in chip order and are rounded once.

use std::sync::Arc;

use super::commands::{Call, Commands};
use super::movement::side_by_side;
use super::refusal::Op;
use super::rounding::{is_block_float, is_whole, stored};
use super::tensor::{Chips, Data, Tensor, TensorSpec, Values, replicated};
use crate::ops::Result;
use crate::spec::{Layout, MemoryConfig, TILE};

pub(super) fn all_gather(
    commands: &mut Commands,
    x: &Tensor,
    memory: MemoryConfig,
) -> Result<Tensor> {
    let op = Op("all_gather");
    let num_chips = commands.num_chips;
    op.needs(num_chips > 1, "more than one chip", num_chips)?;
    let width = x.spec().width();
    if is_block_float(x.spec().dtype) {
        op.needs(width.is_multiple_of(TILE), "whole tiles of block floats", width)?;
    }
    let mut spec = TensorSpec { memory, ..*x.spec() };
    spec.shape[3] *= num_chips;
    let call = Call { op, inputs: &[x], config: &memory };
    let [y] = commands.across_chips(&call, [spec], move |inputs| {
        let chips = &inputs[0];
        let widths = vec![width; num_chips];
        let gathered = if is_whole(spec.dtype) {
            let parts: Vec<&[i64]> = chips.iter().map(|chip| chip.wholes()).collect();
            Data::Whole(side_by_side(&parts, &widths))
        } else {
            let parts: Vec<&[f32]> = chips.iter().map(|chip| chip.reals()).collect();
            Data::Real(side_by_side(&parts, &widths))
        };
        Ok([replicated(stored(&spec, gathered), num_chips)])
    })?;
    Ok(y)
}

pub(super) fn reduce_scatter(
    commands: &mut Commands,
    x: &Tensor,
    memory: MemoryConfig,
) -> Result<Tensor> {
    let op = Op("reduce_scatter");
    let num_chips = commands.num_chips;
    op.needs(num_chips > 1, "more than one chip", num_chips)?;
    op.needs_layout("the operand", x.spec(), Layout::Tile)?;
    op.needs(!is_whole(x.spec().dtype), "reals", format_args!("{:?}", x.spec().dtype))?;
    let width = x.spec().width();
    op.needs(
        width.is_multiple_of(TILE * num_chips),
        format_args!("columns that are whole tiles on each of {num_chips} chips"),
        width,
    )?;
    let mut spec = TensorSpec { memory, ..*x.spec() };
    spec.shape[3] = width / num_chips;
    let call = Call { op, inputs: &[x], config: &memory };
    let [y] = commands.across_chips(&call, [spec], move |inputs| {
        let part = |chip| {
            let sums = sum_of_columns(&inputs[0], width, chip * spec.width(), spec.width());
            Arc::new(Values::new(stored(&spec, Data::Real(sums))))
        };
        Ok([(0..num_chips).map(part).collect()])
    })?;
    Ok(y)
}

/// Sum over chips, in their order, of columns `first..first + columns` of each row.
fn sum_of_columns(chips: &Chips, width: usize, first: usize, columns: usize) -> Vec<f32> {
    let num_rows = chips[0].reals().len() / width;
    let mut sums = vec![0.0; num_rows * columns];
    for chip in chips {
        for (sums, row) in sums.chunks_exact_mut(columns).zip(chip.reals().chunks_exact(width)) {
            for (sum, value) in sums.iter_mut().zip(&row[first..first + columns]) {
                *sum += value;
            }
        }
    }
    sums
}
