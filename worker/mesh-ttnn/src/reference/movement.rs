//! Operations that move elements and compute nothing.

use super::commands::{Call, Commands};
use super::refusal::Op;
use super::rounding::{is_block_float, is_whole};
use super::tensor::{Data, Tensor, TensorSpec};
use crate::ops::Result;
use crate::spec::{DataType, Layout, MemoryConfig, Shape, TILE};

pub(super) fn to_memory_config(
    commands: &mut Commands,
    x: &Tensor,
    memory: MemoryConfig,
) -> Result<Tensor> {
    let call = Call { op: Op("to_memory_config"), inputs: &[x], config: &memory };
    copy(commands, &call, TensorSpec { memory, ..*x.spec() })
}

pub(super) fn typecast(commands: &mut Commands, x: &Tensor, dtype: DataType) -> Result<Tensor> {
    let op = Op("typecast");
    let same_kind = is_whole(x.spec().dtype) == is_whole(dtype);
    op.needs(
        same_kind,
        format_args!("an operand of the kind of {dtype:?}"),
        format_args!("{:?}", x.spec().dtype),
    )?;
    let call = Call { op, inputs: &[x], config: &dtype };
    copy(commands, &call, TensorSpec { dtype, ..*x.spec() })
}

pub(super) fn untilize(commands: &mut Commands, x: &Tensor) -> Result<Tensor> {
    let op = Op("untilize");
    op.needs_layout("the operand", x.spec(), Layout::Tile)?;
    op.needs_interleaved("the operand", x.spec().memory)?;
    // There are no row-major block floats: the package gives bf16.
    let dtype = match x.spec().dtype {
        dtype if is_block_float(dtype) => DataType::BFloat16,
        dtype => dtype,
    };
    let call = Call { op, inputs: &[x], config: &() };
    copy(commands, &call, TensorSpec { dtype, layout: Layout::RowMajor, ..*x.spec() })
}

/// The same elements under another spec.
fn copy(commands: &mut Commands, call: &Call<'_>, spec: TensorSpec) -> Result<Tensor> {
    let [y] = commands.on_each_chip(call, [spec], |x| Ok([x[0].data().clone()]))?;
    Ok(y)
}

pub(super) fn reshape(commands: &mut Commands, x: &Tensor, shape: Shape) -> Result<Tensor> {
    let op = Op("reshape");
    let spec = TensorSpec { shape, rank: 4, ..*x.spec() };
    op.needs_interleaved("the operand", spec.memory)?;
    let whole_rows = spec.width() == x.spec().width() && spec.num_rows() == x.spec().num_rows();
    op.needs(
        whole_rows,
        format_args!("a shape of as many rows as wide as those of {:?}", x.spec().shape),
        format_args!("{shape:?}"),
    )?;
    copy(commands, &Call { op, inputs: &[x], config: &shape }, spec)
}

pub(super) fn slice(
    commands: &mut Commands,
    x: &Tensor,
    start: Shape,
    end: Shape,
) -> Result<Tensor> {
    let op = Op("slice");
    let from = x.spec().shape;
    let inside = (0..4).all(|axis| start[axis] < end[axis] && end[axis] <= from[axis]);
    op.needs(
        inside,
        format_args!("a range inside {from:?}"),
        format_args!("{start:?} to {end:?}"),
    )?;
    op.needs_interleaved("the operand", x.spec().memory)?;
    if is_block_float(x.spec().dtype) {
        // The package would convert to bf16 where tiles are cut.
        let whole = (2..4).all(|axis| {
            start[axis].is_multiple_of(TILE)
                && (end[axis].is_multiple_of(TILE) || end[axis] == from[axis])
        });
        op.needs(whole, "whole tiles of block floats", format_args!("{start:?} to {end:?}"))?;
    }
    let shape = std::array::from_fn(|axis| end[axis] - start[axis]);
    let spec = TensorSpec { shape, ..*x.spec() };
    let call = Call { op, inputs: &[x], config: &(start, end) };
    let [y] = commands.on_each_chip(&call, [spec], move |x| {
        Ok([match x[0].data() {
            Data::Real(values) => Data::Real(sliced(values, from, start, end)),
            Data::Whole(values) => Data::Whole(sliced(values, from, start, end)),
        }])
    })?;
    Ok(y)
}

fn sliced<T: Copy>(values: &[T], from: Shape, start: Shape, end: Shape) -> Vec<T> {
    let mut out = Vec::new();
    for a in start[0]..end[0] {
        for b in start[1]..end[1] {
            for c in start[2]..end[2] {
                let row = ((a * from[1] + b) * from[2] + c) * from[3];
                out.extend_from_slice(&values[row + start[3]..row + end[3]]);
            }
        }
    }
    out
}

pub(super) fn concat(commands: &mut Commands, parts: &[Tensor]) -> Result<Tensor> {
    let op = Op("concat");
    let first = parts.first().ok_or_else(|| op.refusal("parts", "none"))?;
    let mut spec = TensorSpec { memory: MemoryConfig::DRAM, ..*first.spec() };
    for part in &parts[1..] {
        let fits = TensorSpec { shape: first.spec().shape, ..*part.spec() } == *first.spec()
            && part.spec().shape[..3] == first.spec().shape[..3];
        op.needs(
            fits,
            format_args!("parts that differ in columns only, as {first:?}"),
            format_args!("{part:?}"),
        )?;
        spec.shape[3] += part.spec().width();
    }
    if is_block_float(spec.dtype) {
        for part in parts {
            // The package would convert to bf16 where tiles are cut.
            let whole = part.spec().width().is_multiple_of(TILE);
            op.needs(whole, "whole tiles of block floats", part.spec().width())?;
        }
    }
    let inputs: Vec<&Tensor> = parts.iter().collect();
    let widths: Vec<usize> = parts.iter().map(|part| part.spec().width()).collect();
    let call = Call { op, inputs: &inputs, config: &() };
    let [y] = commands.on_each_chip(&call, [spec], move |parts| {
        let whole = matches!(parts[0].data(), Data::Whole(_));
        Ok([if whole {
            let parts: Vec<&[i64]> = parts.iter().map(|part| part.wholes()).collect();
            Data::Whole(side_by_side(&parts, &widths))
        } else {
            let parts: Vec<&[f32]> = parts.iter().map(|part| part.reals()).collect();
            Data::Real(side_by_side(&parts, &widths))
        }])
    })?;
    Ok(y)
}

/// Rows of `parts`, each of its width, one after the other.
pub(super) fn side_by_side<T: Copy>(parts: &[&[T]], widths: &[usize]) -> Vec<T> {
    let num_rows = parts[0].len() / widths[0];
    let mut out = Vec::with_capacity(num_rows * widths.iter().sum::<usize>());
    for row in 0..num_rows {
        for (part, width) in parts.iter().zip(widths) {
            out.extend_from_slice(&part[row * width..(row + 1) * width]);
        }
    }
    out
}

pub(super) fn transpose_1_2(commands: &mut Commands, x: &Tensor) -> Result<Tensor> {
    let op = Op("transpose");
    op.needs_interleaved("the operand", x.spec().memory)?;
    let [a, b, c, width] = x.spec().shape;
    let spec = TensorSpec { shape: [a, c, b, width], ..*x.spec() };
    let call = Call { op, inputs: &[x], config: &(1, 2) };
    let [y] = commands.on_each_chip(&call, [spec], move |x| {
        Ok([match x[0].data() {
            Data::Real(values) => Data::Real(transposed(values, [a, b, c, width])),
            Data::Whole(values) => Data::Whole(transposed(values, [a, b, c, width])),
        }])
    })?;
    Ok(y)
}

/// `[a, c, b, width]` of `[a, b, c, width]`.
pub(super) fn transposed<T: Copy>(values: &[T], [a, b, c, width]: Shape) -> Vec<T> {
    let mut out = Vec::with_capacity(values.len());
    for outer in 0..a {
        for row in 0..c {
            for column in 0..b {
                let start = ((outer * b + column) * c + row) * width;
                out.extend_from_slice(&values[start..start + width]);
            }
        }
    }
    out
}
