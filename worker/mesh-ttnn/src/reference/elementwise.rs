//! Embedding, sums and gates.

use super::commands::{Call, Commands};
use super::refusal::Op;
use super::rounding::is_whole;
use super::tensor::{Data, Tensor, TensorSpec};
use crate::ops::Result;
use crate::spec::{DataType, Layout, MemoryConfig};

pub(super) fn embedding(
    commands: &mut Commands,
    ids: &Tensor,
    table: &Tensor,
    memory: MemoryConfig,
) -> Result<Tensor> {
    let op = Op("embedding");
    op.needs_dtype("ids", ids.spec(), &[DataType::UInt32])?;
    op.needs_layout("ids", ids.spec(), Layout::RowMajor)?;
    op.needs_dtype("the table", table.spec(), &[DataType::BFloat16])?;
    op.needs_layout("the table", table.spec(), Layout::RowMajor)?;
    op.needs_interleaved("the table", table.spec().memory)?;
    let (rows, [_, _, num_ids, width]) = (ids.spec().width(), table.spec().shape);
    op.needs_shape("ids", ids.spec(), [1, 1, 1, rows])?;
    op.needs_shape("the table", table.spec(), [1, 1, num_ids, width])?;
    let spec = TensorSpec::tiles([1, 1, rows, width], DataType::BFloat16, memory);
    let call = Call { op, inputs: &[ids, table], config: &memory };
    let [y] = commands.on_each_chip(&call, [spec], move |inputs| {
        let table = inputs[1].reals();
        let mut out = Vec::with_capacity(rows * width);
        for id in inputs[0].wholes() {
            let row = usize::try_from(*id).ok().filter(|row| *row < num_ids);
            let row = row.ok_or_else(|| op.refusal(format_args!("ids below {num_ids}"), id))?;
            out.extend_from_slice(&table[row * width..(row + 1) * width]);
        }
        Ok([Data::Real(out)])
    })?;
    Ok(y)
}

pub(super) fn add(
    commands: &mut Commands,
    x: &Tensor,
    y: &Tensor,
    memory: MemoryConfig,
) -> Result<Tensor> {
    let op = Op("add");
    check_pair(op, x, y)?;
    let spec = TensorSpec { memory, ..*x.spec() };
    let call = Call { op, inputs: &[x, y], config: &memory };
    let [sum] = commands.on_each_chip(&call, [spec], |inputs| {
        let pairs = inputs[0].reals().iter().zip(inputs[1].reals());
        Ok([Data::Real(pairs.map(|(x, y)| x + y).collect())])
    })?;
    Ok(sum)
}

pub(super) fn silu_mul(
    commands: &mut Commands,
    gate: &Tensor,
    up: &Tensor,
    dtype: DataType,
    memory: MemoryConfig,
) -> Result<Tensor> {
    let op = Op("mul");
    check_pair(op, gate, up)?;
    op.needs(!is_whole(dtype), "a result of reals", format_args!("{dtype:?}"))?;
    // Without shards of its own, the result lies where the first operand does.
    let memory = if memory == MemoryConfig::WidthShardedByOp { gate.spec().memory } else { memory };
    let spec = TensorSpec { memory, dtype, ..*gate.spec() };
    let call = Call { op, inputs: &[gate, up], config: &(dtype, memory) };
    let [y] = commands.on_each_chip(&call, [spec], |inputs| {
        let pairs = inputs[0].reals().iter().zip(inputs[1].reals());
        Ok([Data::Real(pairs.map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect())])
    })?;
    Ok(y)
}

/// Two operands of tiles of reals of the same shape.
fn check_pair(op: Op, x: &Tensor, y: &Tensor) -> Result<()> {
    for operand in [x, y] {
        op.needs_layout("operands", operand.spec(), Layout::Tile)?;
        let dtype = operand.spec().dtype;
        op.needs(!is_whole(dtype), "reals", format_args!("{dtype:?}"))?;
    }
    op.needs_shape("a second operand", y.spec(), x.spec().shape)
}
