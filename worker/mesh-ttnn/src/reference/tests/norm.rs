//! Norms: the formula, on one chip and over several, and what they demand.

use super::*;
use crate::spec::{NormConfig, NormProgram};

const BF16: DataType = DataType::BFloat16;
const DRAM: MemoryConfig = MemoryConfig::DRAM;
const EPS: f32 = 1e-5;

fn formula(x: &[f32], gain: &[f32]) -> Vec<f64> {
    let width = gain.len();
    x.chunks(width)
        .flat_map(|row| {
            let squares: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
            let factor = (squares / width as f64 + f64::from(EPS)).sqrt().recip();
            row.iter().zip(gain).map(move |(x, g)| f64::from(*x) * factor * f64::from(*g))
        })
        .collect()
}

fn config(program: Option<NormProgram>, memory: MemoryConfig) -> NormConfig {
    NormConfig { eps: EPS, program, compute: COMPUTE, memory }
}

#[test]
fn a_sharded_norm_is_the_formula() {
    let mut ops = ReferenceOps::new(1);
    let grid = Grid { x: 2, y: 2 };
    let (x, gain) = (numbers(1, 5 * 512), numbers(2, 512));
    let memory = width_sharded(32, 512, grid);
    let program = NormProgram { grid, subblock_w: 2, block_w: 4 };
    let tensor = Upload::tiles([1, 1, 5, 512], BF16).into(memory).reals(&mut ops, &x);
    let g = Upload::rows([1, 1, 16, 32], BF16).reals(&mut ops, &gain);
    let y = ops.rms_norm(&tensor, &g, &config(Some(program), memory)).unwrap();
    assert_close(&ops.read(&y, 0).unwrap(), formula(&x, &gain));
}

#[test]
fn a_norm_over_chips_is_the_norm_of_the_whole_row() {
    let (x, gain) = (numbers(3, 40 * 256), numbers(4, 256));
    let mut ops = ReferenceOps::new(4);
    let tensor = Upload::tiles([1, 1, 40, 256], BF16).spread(Spread::Cut(3)).reals(&mut ops, &x);
    let g = Upload::rows([1, 1, 8, 32], BF16).spread(Spread::Cut(2)).reals(&mut ops, &gain);
    let statistics = ops.rms_norm_pre_all_gather(&tensor, COMPUTE).unwrap();
    assert_eq!(ops.shape(&statistics), [1, 1, 40, 32]);
    let statistics = ops.all_gather(&statistics, &DRAM).unwrap();
    let y = ops.rms_norm_post_all_gather(&tensor, &statistics, &g, EPS, COMPUTE).unwrap();
    let y = ops.all_gather(&y, &DRAM).unwrap();
    // The statistics are bf16: half of its relative step, as a root has it.
    for (value, expected) in ops.read(&y, 2).unwrap().iter().zip(formula(&x, &gain)) {
        let error = (f64::from(*value) - expected).abs();
        assert!(error <= expected.abs() / 128.0, "{value} for {expected}");
    }
}

#[test]
fn only_the_first_column_of_statistics_has_a_meaning() {
    let mut ops = ReferenceOps::new(1);
    let x = Upload::tiles([1, 1, 2, 64], BF16).reals(&mut ops, &[2.0; 128]);
    let statistics = ops.rms_norm_pre_all_gather(&x, COMPUTE).unwrap();
    let values = ops.read(&statistics, 0).unwrap();
    for row in values.chunks(32) {
        assert_eq!(row[0], 256.0);
        assert!(row[1..].iter().all(|value| value.is_nan()));
    }
}

#[test]
fn a_sharded_norm_demands_a_program_that_fits() {
    let mut ops = ReferenceOps::new(1);
    let grid = Grid { x: 4, y: 1 };
    let memory = width_sharded(32, 256, grid);
    let x = Upload::tiles([1, 1, 32, 256], BF16).reals(&mut ops, &numbers(1, 32 * 256));
    let sharded = ops.to_memory_config(&x, &memory).unwrap();
    let gain = Upload::rows([1, 1, 8, 32], BF16).reals(&mut ops, &numbers(2, 256));
    let good = NormProgram { grid, subblock_w: 2, block_w: 2 };
    let mut run = |x: &Tensor, program, memory| ops.rms_norm(x, &gain, &config(program, memory));
    run(&sharded, Some(good), memory).unwrap();
    run(&x, None, DRAM).unwrap();

    let block = NormProgram { block_w: 4, ..good };
    assert_refused(run(&sharded, Some(block), memory), &["block_w of a shard's 2 tiles"]);
    let subblock = NormProgram { subblock_w: 3, ..good };
    assert_refused(run(&sharded, Some(subblock), memory), &["divides block_w (2)"]);
    // The package takes a larger grid than the shards'.
    let larger = NormProgram { grid: Grid { x: 8, y: 1 }, ..good };
    assert_refused(run(&sharded, Some(larger), memory), &["the grid of x's shards, 4x1"]);
    assert_refused(run(&sharded, Some(good), DRAM), &["where x lies"]);
    assert_refused(run(&x, Some(good), memory), &["x width-sharded"]);
    assert_refused(run(&sharded, None, DRAM), &["x without a program config interleaved"]);
    assert_refused(run(&x, None, memory), &["a result without a program config"]);
}

#[test]
fn sums_in_f32_leave_room_for_four_tiles() {
    let mut ops = ReferenceOps::new(1);
    let grid = Grid { x: 1, y: 1 };
    let memory = width_sharded(32, 256, grid);
    let x = Upload::tiles([1, 1, 32, 256], BF16).into(memory).reals(&mut ops, &numbers(1, 8192));
    let gain = Upload::rows([1, 1, 8, 32], BF16).reals(&mut ops, &numbers(2, 256));
    let mut config = config(Some(NormProgram { grid, subblock_w: 8, block_w: 8 }), memory);
    assert_refused(ops.rms_norm(&x, &gain, &config), &["subblock_w of at most 4", "found 8"]);
    config.compute.fp32_accumulate = false;
    ops.rms_norm(&x, &gain, &config).unwrap();
}

#[test]
fn a_gain_demands_rows_of_32() {
    let mut ops = ReferenceOps::new(2);
    let x = Upload::tiles([1, 1, 1, 64], BF16).reals(&mut ops, &[1.0; 64]);
    let flat = Upload::rows([1, 1, 1, 64], BF16).reals(&mut ops, &[1.0; 64]);
    let blocks = Upload::tiles([1, 1, 2, 32], BF16).reals(&mut ops, &[1.0; 64]);
    let good = Upload::rows([1, 1, 2, 32], BF16).reals(&mut ops, &[1.0; 64]);
    let plain = config(None, DRAM);
    assert_refused(ops.rms_norm(&x, &flat, &plain), &["gain of shape [1, 1, 2, 32]"]);
    assert_refused(ops.rms_norm(&x, &blocks, &plain), &["gain in layout RowMajor"]);
    assert_refused(
        ops.rms_norm_post_all_gather(&x, &x, &flat, EPS, COMPUTE),
        &["rms_norm_post_all_gather", "gain of shape"],
    );
    let one_chip = ops.rms_norm_pre_all_gather(&x, COMPUTE).unwrap();
    assert_refused(
        ops.rms_norm_post_all_gather(&x, &one_chip, &good, EPS, COMPUTE),
        &["statistics of shape [1, 1, 1, 64]"],
    );
}

#[test]
fn epsilon_counts_where_a_row_is_small() {
    let mut ops = ReferenceOps::new(1);
    let (x, gain) = ([1.0 / 1024.0; 64], numbers(2, 64));
    let tensor = Upload::tiles([1, 1, 1, 64], BF16).reals(&mut ops, &x);
    let g = Upload::rows([1, 1, 2, 32], BF16).reals(&mut ops, &gain);
    let whole = ops.rms_norm(&tensor, &g, &config(None, DRAM)).unwrap();
    let statistics = ops.rms_norm_pre_all_gather(&tensor, COMPUTE).unwrap();
    let halves = ops.rms_norm_post_all_gather(&tensor, &statistics, &g, EPS, COMPUTE).unwrap();
    for y in [whole, halves] {
        assert_close(&ops.read(&y, 0).unwrap(), formula(&x, &gain));
    }
}
