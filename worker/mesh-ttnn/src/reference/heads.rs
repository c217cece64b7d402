//! Between rows of all heads and heads of all rows.
//!
//! A fused row is `[q | k | v]`, head by head.

use super::commands::{Call, Commands};
use super::movement::transposed;
use super::refusal::Op;
use super::tensor::{Data, Tensor, TensorSpec};
use crate::ops::Result;
use crate::spec::{DataType, Grid, Layout, MemoryConfig, TILE};

/// Users of a decode step: one row of tiles, one user a core.
pub(super) const USERS: usize = 32;
/// The cores of the users.
pub(super) const USER_GRID: Grid = Grid { x: 8, y: 4 };

/// Where a user's heads lie: all of them on the user's core.
pub(super) fn by_user(num_heads: usize, head_dim: usize) -> MemoryConfig {
    let shard = [num_heads.next_multiple_of(TILE), head_dim];
    MemoryConfig::HeightSharded { grid: USER_GRID, shard }
}

pub(super) fn nlp_create_qkv_heads_decode(
    commands: &mut Commands,
    qkv: &Tensor,
    num_heads: usize,
    num_kv_heads: usize,
) -> Result<[Tensor; 3]> {
    let op = Op("nlp_create_qkv_heads_decode");
    op.needs_dtype("qkv", qkv.spec(), &[DataType::BFloat16, DataType::Float32])?;
    let width = qkv.spec().width();
    op.needs_shape("qkv", qkv.spec(), [1, 1, USERS, width])?;
    // The package lets more pass, which do not fit a user's tile.
    op.needs(num_heads <= TILE, format_args!("at most {TILE} heads"), num_heads)?;
    let head_dim = head_dim(op, qkv.spec(), num_heads, num_kv_heads)?;
    let outputs = [num_heads, num_kv_heads, num_kv_heads].map(|heads| {
        let memory = by_user(heads, head_dim);
        TensorSpec::tiles([1, USERS, heads, head_dim], qkv.spec().dtype, memory)
    });
    let call = Call { op, inputs: &[qkv], config: &(num_heads, num_kv_heads) };
    commands.on_each_chip(&call, outputs, move |inputs| {
        // A user's heads follow one another already.
        Ok(split(inputs[0].reals(), width, outputs.map(|spec| spec.shape[2] * head_dim))
            .map(Data::Real))
    })
}

pub(super) fn nlp_create_qkv_heads(
    commands: &mut Commands,
    qkv: &Tensor,
    num_heads: usize,
    num_kv_heads: usize,
) -> Result<[Tensor; 3]> {
    let op = Op("nlp_create_qkv_heads");
    let floats = [DataType::BFloat16, DataType::Float32, DataType::BFloat8B];
    op.needs_dtype("qkv", qkv.spec(), &floats)?;
    op.needs_interleaved("qkv", qkv.spec().memory)?;
    let [_, _, rows, width] = qkv.spec().shape;
    op.needs_shape("qkv", qkv.spec(), [1, 1, rows, width])?;
    let head_dim = head_dim(op, qkv.spec(), num_heads, num_kv_heads)?;
    let outputs = [num_heads, num_kv_heads, num_kv_heads]
        .map(|heads| TensorSpec { shape: [1, heads, rows, head_dim], ..*qkv.spec() });
    let call = Call { op, inputs: &[qkv], config: &(num_heads, num_kv_heads) };
    commands.on_each_chip(&call, outputs, move |inputs| {
        let columns = outputs.map(|spec| spec.shape[1] * head_dim);
        let mut parts = split(inputs[0].reals(), width, columns);
        for (part, spec) in parts.iter_mut().zip(&outputs) {
            *part = transposed(part, [1, rows, spec.shape[1], head_dim]);
        }
        Ok(parts.map(Data::Real))
    })
}

/// Channels of a head.
fn head_dim(op: Op, qkv: &TensorSpec, num_heads: usize, num_kv_heads: usize) -> Result<usize> {
    op.needs_layout("qkv", qkv, Layout::Tile)?;
    op.needs(
        num_heads > 0 && num_kv_heads > 0 && num_heads.is_multiple_of(num_kv_heads),
        "query heads that are a multiple of the key heads",
        format_args!("{num_heads} and {num_kv_heads}"),
    )?;
    let (width, heads) = (qkv.width(), num_heads + 2 * num_kv_heads);
    op.needs(
        width.is_multiple_of(heads),
        format_args!("columns divisible by num_heads + 2*num_kv_heads = {heads}"),
        width,
    )?;
    let head_dim = width / heads;
    op.needs(head_dim.is_multiple_of(TILE), "heads of whole tiles", head_dim)?;
    Ok(head_dim)
}

/// Every row cut into parts of `columns` each.
fn split<const N: usize>(values: &[f32], width: usize, columns: [usize; N]) -> [Vec<f32>; N] {
    let mut first = 0;
    columns.map(|count| {
        let range = first..first + count;
        first += count;
        values.chunks_exact(width).flat_map(|row| &row[range.clone()]).copied().collect()
    })
}

pub(super) fn nlp_concat_heads_decode(
    commands: &mut Commands,
    x: &Tensor,
    num_heads: usize,
) -> Result<Tensor> {
    let op = Op("nlp_concat_heads_decode");
    op.needs_layout("x", x.spec(), Layout::Tile)?;
    op.needs_dtype("x", x.spec(), &[DataType::BFloat16, DataType::Float32])?;
    let [_, users, heads, head_dim] = x.spec().shape;
    op.needs_shape("x", x.spec(), [1, USERS, heads, head_dim])?;
    op.needs(
        x.spec().memory == by_user(heads, head_dim),
        format_args!("x sharded in {:?}", by_user(heads, head_dim)),
        format_args!("{:?}", x.spec().memory),
    )?;
    // The package takes any number.
    op.needs(num_heads == heads && heads <= TILE, format_args!("num_heads {heads}"), num_heads)?;
    let width = heads * head_dim;
    let grid = Grid { x: heads.min(USER_GRID.x), y: heads.div_ceil(USER_GRID.x) };
    let memory = MemoryConfig::WidthSharded { grid, shard: [TILE, head_dim] };
    let spec = TensorSpec::tiles([1, 1, users, width], x.spec().dtype, memory);
    let call = Call { op, inputs: &[x], config: &num_heads };
    let [y] = commands.on_each_chip(&call, [spec], |x| Ok([x[0].data().clone()]))?;
    Ok(y)
}

pub(super) fn nlp_concat_heads(commands: &mut Commands, x: &Tensor) -> Result<Tensor> {
    let op = Op("nlp_concat_heads");
    op.needs_layout("x", x.spec(), Layout::Tile)?;
    let floats = [DataType::BFloat16, DataType::Float32, DataType::BFloat8B];
    op.needs_dtype("x", x.spec(), &floats)?;
    op.needs_interleaved("x", x.spec().memory)?;
    let shape = x.spec().shape;
    let [_, heads, rows, head_dim] = shape;
    op.needs_shape("x", x.spec(), [1, heads, rows, head_dim])?;
    op.needs(head_dim.is_multiple_of(TILE), "heads of whole tiles", head_dim)?;
    let spec = TensorSpec { shape: [1, 1, rows, heads * head_dim], ..*x.spec() };
    let call = Call { op, inputs: &[x], config: &() };
    let [y] = commands
        .on_each_chip(&call, [spec], move |x| Ok([Data::Real(transposed(x[0].reals(), shape))]))?;
    Ok(y)
}
