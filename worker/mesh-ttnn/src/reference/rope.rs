//! Rotation: `x·cos + (x·T)·sin`, T a tile applied to each 32 channels of a head.

use super::commands::{Call, Commands};
use super::heads::{USER_GRID, USERS};
use super::refusal::Op;
use super::tensor::{Data, Tensor};
use crate::ops::{Result, RopeTensors};
use crate::spec::{DataType, Layout, MemoryConfig, Shape, TILE};

const OP: Op = Op("rotary_embedding_llama");

pub(super) fn rotary_embedding_llama(
    commands: &mut Commands,
    x: &Tensor,
    rope: &RopeTensors<'_, Tensor>,
    is_decode: bool,
) -> Result<Tensor> {
    let tensors = [x, rope.cos, rope.sin, rope.transformation];
    for (what, tensor) in ["x", "cos", "sin", "the transformation"].into_iter().zip(tensors) {
        OP.needs_dtype(what, tensor.spec(), &[DataType::BFloat16])?;
        OP.needs_layout(what, tensor.spec(), Layout::Tile)?;
        let memory = tensor.spec().memory;
        if is_decode {
            check_user_sharded(what, memory)?;
        } else {
            OP.needs_interleaved(what, memory)?;
        }
    }
    let shape = x.spec().shape;
    let head_dim = shape[3];
    OP.needs(head_dim.is_multiple_of(TILE), "heads of whole tiles", head_dim)?;
    let (table, tiles) =
        if is_decode { ([1, USERS, 1, head_dim], USERS) } else { ([1, 1, shape[2], head_dim], 1) };
    OP.needs_shape("cos", rope.cos.spec(), table)?;
    OP.needs_shape("sin", rope.sin.spec(), table)?;
    OP.needs_shape("the transformation", rope.transformation.spec(), [1, 1, TILE * tiles, TILE])?;
    let expected =
        if is_decode { [1, USERS, shape[2], head_dim] } else { [1, shape[1], shape[2], head_dim] };
    OP.needs_shape("x", x.spec(), expected)?;
    let call = Call { op: OP, inputs: &tensors, config: &is_decode };
    let [y] = commands.on_each_chip(&call, [*x.spec()], move |inputs| {
        let [cos, sin, tiles] = [1, 2, 3].map(|n| inputs[n].reals());
        let mut out = Vec::with_capacity(inputs[0].reals().len());
        for (row, x) in inputs[0].reals().chunks_exact(head_dim).enumerate() {
            let Angle { table_row, tile } = Angle::of_row(row, shape, is_decode);
            let table = table_row * head_dim..(table_row + 1) * head_dim;
            let tile = &tiles[tile * TILE * TILE..(tile + 1) * TILE * TILE];
            rotate(x, &cos[table.clone()], &sin[table], tile, &mut out);
        }
        Ok([Data::Real(out)])
    })?;
    Ok(y)
}

fn check_user_sharded(what: &str, memory: MemoryConfig) -> Result<()> {
    OP.needs(
        matches!(memory, MemoryConfig::HeightSharded { grid, .. } if grid == USER_GRID),
        format_args!("{what} height-sharded, one user a core of {USER_GRID}"),
        format_args!("{memory:?}"),
    )
}

/// Which row of the tables, and which tile, turn a row of x.
struct Angle {
    table_row: usize,
    tile: usize,
}

impl Angle {
    fn of_row(row: usize, [_, _, rows, _]: Shape, is_decode: bool) -> Self {
        if is_decode {
            // Rows are a user's heads.
            let user = row / rows;
            Self { table_row: user, tile: user }
        } else {
            Self { table_row: row % rows, tile: 0 }
        }
    }
}

fn rotate(x: &[f32], cos: &[f32], sin: &[f32], tile: &[f32], out: &mut Vec<f32>) {
    for (first, x) in x.chunks_exact(TILE).enumerate() {
        let mut turned = [0.0; TILE];
        for (x, row) in x.iter().zip(tile.chunks_exact(TILE)) {
            for (turned, t) in turned.iter_mut().zip(row) {
                *turned += x * t;
            }
        }
        let columns = first * TILE..(first + 1) * TILE;
        let angles = cos[columns.clone()].iter().zip(&sin[columns]);
        out.extend(x.iter().zip(turned).zip(angles).map(|((x, t), (cos, sin))| x * cos + t * sin));
    }
}
