//! What a step left on the chips, to the host.

use mesh::{Choice, MeshError, StepBatch, StepOutput};

use crate::chips::Chips;
use crate::ops::Ops;
use crate::record::Left;
use crate::spec::TILE;

/// Reads logits or chosen ids to the host. Waits.
pub(crate) fn fetch<O: Ops>(
    chips: &mut Chips<O>,
    left: &Left<O::Tensor>,
    first_row: usize,
    batch: &StepBatch,
    out: &mut StepOutput,
) -> Result<(), MeshError> {
    match left {
        Left::Logits(logits) => {
            let rows = batch.logit_rows.iter().map(|row| row - first_row);
            read_rows(chips, logits, rows, &mut out.logits)
        }
        Left::Chosen(chosen) => {
            chips.read_chosen(chosen, &choices(batch, first_row), &mut out.token_ids)
        }
    }
}

/// Rows of a tensor that is cut over the chips, chips side by side.
pub(crate) fn read_rows<O: Ops>(
    chips: &mut Chips<O>,
    tensor: &O::Tensor,
    rows: impl Iterator<Item = usize> + Clone,
    out: &mut Vec<f32>,
) -> Result<(), MeshError> {
    let mut slices = Vec::with_capacity(chips.count());
    for chip in 0..chips.count() {
        slices.push(chips.ops.read(tensor, chip)?);
    }
    let width = chips.ops.shape(tensor)[3];
    out.clear();
    for row in rows {
        for slice in &slices {
            let missing = || MeshError::Device(format!("row {row} was not read"));
            out.extend(slice.get(row * width..(row + 1) * width).ok_or_else(missing)?);
        }
    }
    Ok(())
}

/// The choices of a batch, by row of its one tile of logits.
pub(crate) fn choices(batch: &StepBatch, first_row: usize) -> Vec<(usize, Choice)> {
    let choices = batch.choices.iter().flatten().copied();
    batch.logit_rows.iter().map(|row| row - first_row).zip(choices).collect()
}

/// First row of the tile that the graph will choose of a prompt.
pub(crate) fn tile_of(batch: &StepBatch) -> usize {
    batch.logit_rows.first().map_or(0, |row| row / TILE * TILE)
}
