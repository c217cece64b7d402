//! Norms, whole and cut over chips. Sums are f64, so that only the results are
//! rounded.
//!
//! Of a norm over all chips, the first half gives one tile a chip: column 0 is
//! each row's sum of squares, the rest has no meaning and is NaN here, so that
//! whoever reads it is found out.

use super::commands::{Call, Commands};
use super::refusal::Op;
use super::tensor::{Data, Tensor, TensorSpec};
use crate::ops::Result;
use crate::spec::{ComputeConfig, DataType, Layout, MemoryConfig, NormConfig, NormProgram, TILE};

/// Tiles that fit the registers of sums kept in f32, and otherwise.
const SUBBLOCKS: [(bool, usize); 2] = [(true, 4), (false, 8)];

pub(super) fn rms_norm(
    commands: &mut Commands,
    x: &Tensor,
    gain: &Tensor,
    config: &NormConfig,
) -> Result<Tensor> {
    let op = Op("rms_norm");
    check_operands(op, x, gain)?;
    match config.program {
        Some(program) => check_program(op, x.spec(), program, config)?,
        None => {
            op.needs_interleaved("x without a program config", x.spec().memory)?;
            op.needs_interleaved("a result without a program config", config.memory)?;
        }
    }
    let spec = TensorSpec { memory: config.memory, ..*x.spec() };
    let (width, eps) = (spec.width(), config.eps);
    let call = Call { op, inputs: &[x, gain], config };
    let [y] = commands.on_each_chip(&call, [spec], move |inputs| {
        let (x, gain) = (inputs[0].reals(), inputs[1].reals());
        let mut out = Vec::with_capacity(x.len());
        for row in x.chunks_exact(width) {
            normalize(row, sum_of_squares(row) / width as f64, gain, eps, &mut out);
        }
        Ok([Data::Real(out)])
    })?;
    Ok(y)
}

pub(super) fn rms_norm_pre_all_gather(
    commands: &mut Commands,
    x: &Tensor,
    compute: ComputeConfig,
) -> Result<Tensor> {
    let op = Op("rms_norm_pre_all_gather");
    check_x(op, x)?;
    op.needs_interleaved("x without a program config", x.spec().memory)?;
    let mut spec = TensorSpec { dtype: DataType::BFloat16, ..*x.spec() };
    spec.shape[3] = TILE;
    let width = x.spec().width();
    let call = Call { op, inputs: &[x], config: &compute };
    let [y] = commands.on_each_chip(&call, [spec], move |inputs| {
        let mut out = vec![f32::NAN; spec.num_elements()];
        for (tile, row) in out.chunks_exact_mut(TILE).zip(inputs[0].reals().chunks_exact(width)) {
            tile[0] = sum_of_squares(row) as f32;
        }
        Ok([Data::Real(out)])
    })?;
    Ok(y)
}

pub(super) fn rms_norm_post_all_gather(
    commands: &mut Commands,
    x: &Tensor,
    statistics: &Tensor,
    gain: &Tensor,
    eps: f32,
    compute: ComputeConfig,
) -> Result<Tensor> {
    let op = Op("rms_norm_post_all_gather");
    check_operands(op, x, gain)?;
    op.needs_interleaved("x without a program config", x.spec().memory)?;
    op.needs_layout("statistics", statistics.spec(), Layout::Tile)?;
    let mut tiles = x.spec().shape;
    tiles[3] = TILE * commands.num_chips;
    op.needs_shape("statistics", statistics.spec(), tiles)?;
    let (width, all) = (x.spec().width(), x.spec().width() * commands.num_chips);
    let call = Call { op, inputs: &[x, statistics, gain], config: &(eps.to_bits(), compute) };
    let [y] = commands.on_each_chip(&call, [*x.spec()], move |inputs| {
        let (rows, gain) = (inputs[0].reals().chunks_exact(width), inputs[2].reals());
        let mut out = Vec::with_capacity(inputs[0].reals().len());
        for (row, tiles) in rows.zip(inputs[1].reals().chunks_exact(tiles[3])) {
            let sum: f64 = tiles.iter().step_by(TILE).map(|sum| f64::from(*sum)).sum();
            normalize(row, sum / all as f64, gain, eps, &mut out);
        }
        Ok([Data::Real(out)])
    })?;
    Ok(y)
}

fn sum_of_squares(row: &[f32]) -> f64 {
    row.iter().map(|value| f64::from(*value) * f64::from(*value)).sum()
}

fn normalize(row: &[f32], mean_square: f64, gain: &[f32], eps: f32, out: &mut Vec<f32>) {
    let factor = 1.0 / (mean_square + f64::from(eps)).sqrt();
    let scaled = row.iter().zip(gain).map(|(x, g)| (f64::from(*x) * factor * f64::from(*g)) as f32);
    out.extend(scaled);
}

fn check_x(op: Op, x: &Tensor) -> Result<()> {
    op.needs_layout("x", x.spec(), Layout::Tile)?;
    op.needs_dtype("x", x.spec(), &[DataType::BFloat16, DataType::Float32, DataType::BFloat8B])?;
    let width = x.spec().width();
    op.needs(width.is_multiple_of(TILE), "x of whole tiles of columns", width)
}

fn check_operands(op: Op, x: &Tensor, gain: &Tensor) -> Result<()> {
    check_x(op, x)?;
    op.needs_dtype("gain", gain.spec(), &[DataType::BFloat16])?;
    op.needs_layout("gain", gain.spec(), Layout::RowMajor)?;
    op.needs_shape("gain", gain.spec(), [1, 1, x.spec().width() / TILE, TILE])
}

fn check_program(op: Op, x: &TensorSpec, program: NormProgram, config: &NormConfig) -> Result<()> {
    let MemoryConfig::WidthSharded { grid, shard } = x.memory else {
        let found = format_args!("{:?}", x.memory).to_string();
        return Err(op.refusal("x width-sharded for a program config", found));
    };
    op.needs(program.grid == grid, format_args!("the grid of x's shards, {grid}"), program.grid)?;
    let (tiles, block_w) = (shard[1] / TILE, program.block_w);
    op.needs(block_w == tiles, format_args!("block_w of a shard's {tiles} tiles"), block_w)?;
    // Every core normalises a whole shard: none may be empty or cut.
    let all = tiles * grid.num_cores();
    op.needs(
        all * TILE == x.width(),
        format_args!("block_w ({block_w}) to equal K (in tiles) / num_cores"),
        format_args!("{} columns on {grid} cores", x.width()),
    )?;
    let subblock_w = program.subblock_w;
    let divides = subblock_w > 0 && block_w.is_multiple_of(subblock_w);
    op.needs(divides, format_args!("subblock_w that divides block_w ({block_w})"), subblock_w)?;
    for (fp32, most) in SUBBLOCKS {
        if fp32 == config.compute.fp32_accumulate {
            op.needs(subblock_w <= most, format_args!("subblock_w of at most {most}"), subblock_w)?;
        }
    }
    op.needs(
        config.memory == x.memory,
        format_args!("a result where x lies, {:?}", x.memory),
        format_args!("{:?}", config.memory),
    )
}
