//! What a call of `ttnn` costs the host, on mock devices: checks, allocation and
//! the look-up of its program, but no enqueueing.
//!
//! Needs the environment of `deploy/mock/setup.sh`:
//! `cargo bench -p mesh-ttnn --features ttnn --bench calls`.

#[path = "../tests/mock/devices.rs"]
mod devices;

use divan::Bencher;
use mesh_ttnn::ops::Ops;
use mesh_ttnn::python::{Dispatch, Tensor, TtnnOps};
use mesh_ttnn::spec::{
    ComputeConfig, DataType, Fidelity, Layout, LinearConfig, MatmulProgram, MemoryConfig,
};

const BF16: DataType = DataType::BFloat16;
const WIDTH: usize = 512;

fn main() {
    divan::main();
}

fn open(num_chips: usize) -> TtnnOps {
    let options = devices::options("t3k-h1", num_chips, Dispatch::Ethernet);
    TtnnOps::open(&options).expect("mock devices open")
}

fn zeros(ops: &mut TtnnOps, columns: usize, rows: usize, memory: MemoryConfig) -> Tensor {
    ops.zeros([1, 1, rows, columns], BF16, Layout::Tile, &memory).expect("zeros")
}

/// A product as decoding has it: sharded activations, weight over DRAM's banks.
#[divan::bench(args = [1, 8])]
fn linear(bencher: Bencher<'_, '_>, num_chips: usize) {
    let _alone = devices::alone();
    let mut ops = open(num_chips);
    let grid = mesh_ttnn::spec::Grid { x: 8, y: 1 };
    let x = MemoryConfig::WidthSharded { grid, shard: [32, WIDTH / 8] };
    let x = zeros(&mut ops, WIDTH, 32, x);
    let over_banks = MemoryConfig::DramWidthSharded { banks: 12, shard: [WIDTH, 64] };
    let weight = zeros(&mut ops, WIDTH, WIDTH, over_banks);
    let config = LinearConfig {
        program: MatmulProgram::DramSharded { in0_block_w: 2, per_core_n: 2 },
        compute: ComputeConfig { fidelity: Fidelity::HiFi2, fp32_accumulate: false },
        memory: MemoryConfig::WidthShardedByOp,
        dtype: BF16,
    };
    bencher.bench_local(|| ops.linear(&x, &weight, &config).expect("linear"));
}

/// A sum of two interleaved tensors.
#[divan::bench(args = [1, 8])]
fn add(bencher: Bencher<'_, '_>, num_chips: usize) {
    let _alone = devices::alone();
    let mut ops = open(num_chips);
    let x = zeros(&mut ops, WIDTH, 32, MemoryConfig::DRAM);
    bencher.bench_local(|| ops.add(&x, &x, &MemoryConfig::DRAM).expect("add"));
}

/// The shape of a tensor: no more than entering Python.
#[divan::bench]
fn shape(bencher: Bencher<'_, '_>) {
    let _alone = devices::alone();
    let mut ops = open(1);
    let x = zeros(&mut ops, WIDTH, 32, MemoryConfig::DRAM);
    bencher.bench_local(|| ops.shape(&x));
}
