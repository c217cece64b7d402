//! Products: the formula, and what their programs demand.

use proptest::prelude::*;

use super::*;
use crate::ops::Result;
use crate::spec::{LinearConfig, MatmulProgram};

const BF16: DataType = DataType::BFloat16;

/// A decode product as the programs want it.
#[derive(Debug, Clone, Copy)]
struct Decode {
    rows: usize,
    k: usize,
    n: usize,
    cores: usize,
    in0_block_w: usize,
    per_core_n: usize,
    weight: DataType,
    bank: usize,
    result: DataType,
}

impl Decode {
    fn new(k: usize, n: usize, cores: usize) -> Self {
        Self {
            rows: 32,
            k,
            n,
            cores,
            in0_block_w: 1,
            per_core_n: n.div_ceil(32 * cores),
            weight: BF16,
            bank: n.next_multiple_of(384) / 12,
            result: BF16,
        }
    }

    fn run(self, ops: &mut ReferenceOps) -> Result<Tensor> {
        let Self { rows, k, n, cores, in0_block_w, per_core_n, weight, bank, result } = self;
        let grid = Grid { x: cores, y: 1 };
        let x = Upload::tiles([1, 1, rows, k], BF16)
            .into(width_sharded(rows.next_multiple_of(32), k, grid))
            .reals(ops, &numbers(1, rows * k));
        let weight = Upload::tiles([1, 1, k, n], weight)
            .into(MemoryConfig::DramWidthSharded { banks: 12, shard: [k, bank] })
            .reals(ops, &numbers(2, k * n));
        let config = LinearConfig {
            program: MatmulProgram::DramSharded { in0_block_w, per_core_n },
            compute: COMPUTE,
            memory: MemoryConfig::WidthShardedByOp,
            dtype: result,
        };
        ops.linear(&x, &weight, &config)
    }
}

/// `x [rows, k] · w [k, n]` in f64.
fn product(x: &[f32], w: &[f32], [rows, k, n]: [usize; 3]) -> Vec<f64> {
    let term = |i: usize, j: usize, l: usize| f64::from(x[i * k + l]) * f64::from(w[l * n + j]);
    (0..rows * n).map(|at| (0..k).map(|l| term(at / n, at % n, l)).sum()).collect()
}

#[track_caller]
fn assert_close(values: &[f32], expected: &[f64], relative: f64) {
    assert_eq!(values.len(), expected.len());
    for (value, expected) in values.iter().zip(expected) {
        let error = (f64::from(*value) - expected).abs();
        assert!(error <= expected.abs() * relative + 1e-4, "{value} for {expected}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_decode_product_is_the_sum_of_products(
        rows in 1usize..=32,
        cores in 1usize..=4,
        k_tiles in 1usize..=3,
        n in 1usize..=200,
    ) {
        let mut ops = ReferenceOps::new(1);
        let decode = Decode { rows, ..Decode::new(32 * cores * k_tiles, n, cores) };
        let y = decode.run(&mut ops).unwrap();
        let (k, shape) = (decode.k, [rows, decode.k, n]);
        let expected = product(&numbers(1, rows * k), &numbers(2, k * n), shape);
        assert_close(&ops.read(&y, 0).unwrap(), &expected, 1.0 / 256.0);
    }
}

#[test]
fn a_weight_counts_as_it_is_stored() {
    let mut ops = ReferenceOps::new(1);
    let decode =
        Decode { weight: DataType::BFloat4B, result: DataType::Float32, ..Decode::new(64, 96, 2) };
    let y = decode.run(&mut ops).unwrap();
    let weight =
        Upload::tiles([1, 1, 64, 96], DataType::BFloat4B).reals(&mut ops, &numbers(2, 64 * 96));
    let stored = ops.read(&weight, 0).unwrap();
    assert_ne!(stored, numbers(2, 64 * 96), "rounding matters here");
    let expected = product(&numbers(1, 32 * 64), &stored, [32, 64, 96]);
    assert_close(&ops.read(&y, 0).unwrap(), &expected, 1e-6);
}

#[test]
fn a_rewritten_weight_is_the_one_that_counts() {
    let mut ops = ReferenceOps::new(1);
    let weight = |ops: &mut ReferenceOps, value: f32| {
        ops.pack(HostMatrix {
            shape: [1, 1, 32, 32],
            rank: 4,
            data: bf16s(&[value; 1024]),
            dtype: BF16,
            layout: Layout::Tile,
            spread: Spread::Replicated,
        })
        .unwrap()
    };
    let (ones, twos) = (weight(&mut ops, 1.0), weight(&mut ops, 2.0));
    let x = ops.to_device(&ones, &MemoryConfig::DRAM).unwrap();
    let w = ops.to_device(&ones, &MemoryConfig::DRAM).unwrap();
    let config = multicast(1, 1, 1, 1);
    let before = ops.linear(&x, &w, &config).unwrap();
    ops.write(&twos, &w).unwrap();
    let after = ops.linear(&x, &w, &config).unwrap();
    assert_eq!(ops.read(&before, 0).unwrap(), [32.0; 1024]);
    assert_eq!(ops.read(&after, 0).unwrap(), [64.0; 1024]);
}

#[test]
fn a_decode_product_demands_what_the_kernels_need() {
    let mut ops = ReferenceOps::new(1);
    let good = Decode::new(256, 96, 2);
    good.run(&mut ops).unwrap();
    let cases = [
        (Decode { in0_block_w: 3, ..good }, "in0_block_w that divides K"),
        (Decode { in0_block_w: 8, ..good }, "divides the 4 tiles of x's shard"),
        (Decode { per_core_n: 1, ..good }, "per_core_N 2"),
        (Decode { per_core_n: 3, ..good }, "per_core_N 2"),
        (Decode { bank: 64, ..good }, "the weight in"),
        (Decode { rows: 33, ..good }, "one row of tiles"),
        (Decode { result: DataType::UInt32, ..good }, "a result of reals"),
    ];
    for (decode, needed) in cases {
        assert_refused(decode.run(&mut ops), &["linear", needed]);
    }
}

#[test]
fn a_decode_product_demands_shards() {
    let mut ops = ReferenceOps::new(1);
    let x = Upload::tiles([1, 1, 32, 64], BF16);
    let sharded = x.into(width_sharded(32, 64, Grid { x: 2, y: 1 }));
    let w = Upload::tiles([1, 1, 64, 384], BF16);
    let banks = w.into(MemoryConfig::DramWidthSharded { banks: 12, shard: [64, 32] });
    let values = numbers(3, 96 * 384);
    let mut run = |x: Upload, w: Upload, memory| {
        let x = x.reals(&mut ops, &values[..x.shape[2] * x.shape[3]]);
        let w = w.reals(&mut ops, &values[..w.shape[2] * w.shape[3]]);
        let program = MatmulProgram::DramSharded { in0_block_w: 1, per_core_n: 6 };
        let config = LinearConfig { program, compute: COMPUTE, memory, dtype: BF16 };
        ops.linear(&x, &w, &config)
    };
    let by_op = MemoryConfig::WidthShardedByOp;
    run(sharded, banks, by_op).unwrap();
    assert_refused(run(x, banks, by_op), &["x width-sharded"]);
    assert_refused(run(sharded, w, by_op), &["the weight in DramWidthSharded"]);
    assert_refused(run(sharded, banks, MemoryConfig::DRAM), &["a result width-sharded"]);
    // The last core would have nothing of K.
    let uneven = x.into(MemoryConfig::WidthSharded { grid: Grid { x: 3, y: 1 }, shard: [32, 32] });
    assert_refused(run(uneven, banks, by_op), &["cut evenly"]);
    let taller = Upload::tiles([1, 1, 96, 384], BF16)
        .into(MemoryConfig::DramWidthSharded { banks: 12, shard: [96, 32] });
    assert_refused(run(sharded, taller, by_op), &["as wide as the weight"]);
}

fn multicast(
    in0_block_w: usize,
    out_subblock_w: usize,
    per_core_m: usize,
    per_core_n: usize,
) -> LinearConfig {
    let program = MatmulProgram::Multicast2d {
        grid: Grid { x: 2, y: 2 },
        in0_block_w,
        out_subblock_w,
        per_core_m,
        fuse_batch: false,
        per_core_n,
    };
    LinearConfig { program, compute: COMPUTE, memory: MemoryConfig::DRAM, dtype: BF16 }
}

#[test]
fn a_prefill_product_demands_what_the_package_does() {
    let mut ops = ReferenceOps::new(1);
    let batches = [2, 128, 64];
    let values = numbers(4, batches.iter().product());
    let x = Upload::tiles([1, 2, 128, 64], BF16).reals(&mut ops, &values);
    let w = Upload::tiles([1, 1, 64, 160], BF16).reals(&mut ops, &numbers(5, 64 * 160));
    let y = ops.linear(&x, &w, &multicast(2, 3, 2, 3)).unwrap();
    let expected = product(&values, &numbers(5, 64 * 160), [256, 64, 160]);
    assert_eq!(ops.shape(&y), [1, 2, 128, 160]);
    assert_close(&ops.read(&y, 0).unwrap(), &expected, 1.0 / 256.0);

    let cases = [
        (multicast(4, 3, 2, 3), "in0_block_w that divides K"),
        (multicast(2, 2, 2, 3), "out_subblock_w that divides per_core_N"),
        (multicast(2, 6, 2, 6), "out_subblock_w of at most 4"),
        (multicast(2, 3, 1, 3), "per_core_M of at least 2"),
        (multicast(2, 2, 2, 2), "per_core_N of at least 3"),
    ];
    for (config, needed) in cases {
        assert_refused(ops.linear(&x, &w, &config), &["linear", needed]);
    }
    let changed = |change: fn(&mut Grid, &mut bool)| {
        let mut config = multicast(2, 3, 2, 3);
        if let MatmulProgram::Multicast2d { grid, fuse_batch, .. } = &mut config.program {
            change(grid, fuse_batch);
        }
        config
    };
    let fused = changed(|_, fuse_batch| *fuse_batch = true);
    assert_refused(ops.linear(&x, &w, &fused), &["per_core_M of at least 4"]);
    let wide = changed(|grid, _| grid.x = 9);
    assert_refused(ops.linear(&x, &w, &wide), &["a grid within the chip's 8x8"]);
}
