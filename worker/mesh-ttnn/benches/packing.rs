//! Preparing a weight's file: packed here with every thread, and packed by the
//! package.
//!
//! `LLAMA_MESH_TTNN_SITE_PACKAGES=… cargo bench -p mesh-ttnn --features ttnn
//! --bench packing`. No chip is needed: the package's own mock devices take the
//! parts.

#[path = "../tests/mock/devices.rs"]
mod devices;

use std::fs::File;
use std::io::Write;
use std::path::Path;

use divan::Bencher;
use divan::counter::ItemsCount;
use half::bf16;
use mesh_ttnn::ops::Ops;
use mesh_ttnn::packing::Packing;
use mesh_ttnn::python::{Dispatch, TtnnOps};
use mesh_ttnn::spec::{DataType, HostData, HostMatrix, Layout, Spread};

/// Input and output channels of an 8B's gate.
const SHAPE: [usize; 4] = [1, 1, 4096, 14336];
const FORMATS: [DataType; 2] = [DataType::BFloat8B, DataType::BFloat4B];

fn main() {
    divan::main();
}

fn matrix(dtype: DataType) -> HostMatrix {
    let len = SHAPE.iter().product();
    let value = |i: usize| bf16::from_f32(((i * 7919) % 2003) as f32 / 1001.5 - 1.0);
    HostMatrix {
        shape: SHAPE,
        rank: 4,
        data: HostData::BFloat16((0..len).map(value).collect()),
        dtype,
        layout: Layout::Tile,
        spread: Spread::Cut(3),
    }
}

fn measured(
    bencher: Bencher<'_, '_>,
    dtype: DataType,
    prepare: fn(&mut TtnnOps, HostMatrix, &Path),
) {
    let _alone = devices::alone();
    let mut ops = TtnnOps::open(&devices::options("n150", 1, Dispatch::Ethernet)).expect("a mock");
    let matrix = matrix(dtype);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("weight.tensorbin");
    bencher
        .counter(ItemsCount::new(SHAPE.iter().product::<usize>()))
        .with_inputs(|| matrix.clone())
        .bench_local_values(|matrix| prepare(&mut ops, matrix, &file));
}

/// Packed, written and mapped here.
#[divan::bench(args = FORMATS, sample_count = 5, sample_size = 1)]
fn here(bencher: Bencher<'_, '_>, dtype: DataType) {
    measured(bencher, dtype, |ops, matrix, path| {
        let scratch = path.with_extension("scratch.tensorbin");
        let header = ops.file_header(matrix.shape, matrix.dtype, matrix.spread, &scratch);
        let header = header.expect("a mock writes files").expect("in the format that is known");
        let packing = Packing::new(&matrix, 1).expect("a matrix of block floats");
        let mut file = File::create(path).expect("a file");
        file.write_all(&header).expect("room for it");
        packing.write(&mut file).expect("room for it");
        ops.load(path).expect("its own format");
    });
}

/// Packed into memory here.
#[divan::bench(args = FORMATS, sample_count = 5, sample_size = 1)]
fn here_without_a_file(bencher: Bencher<'_, '_>, dtype: DataType) {
    let matrix = matrix(dtype);
    let packing = Packing::new(&matrix, 1).expect("a matrix of block floats");
    bencher.counter(ItemsCount::new(SHAPE.iter().product::<usize>())).bench_local(|| {
        packing.write(&mut std::io::sink()).expect("nothing is kept");
    });
}

/// Packed and written by the package.
#[divan::bench(args = FORMATS, sample_count = 2, sample_size = 1)]
fn by_the_package(bencher: Bencher<'_, '_>, dtype: DataType) {
    measured(bencher, dtype, |ops, matrix, path| {
        let packed = ops.pack(matrix).expect("a matrix");
        ops.dump(&packed, path).expect("room for it");
    });
}
