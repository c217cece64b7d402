//! The real package on the mock devices of one chip.

#[cfg(test)]
#[path = "mock/devices.rs"]
mod devices;
#[cfg(test)]
#[path = "mock/every_operation.rs"]
mod every_operation;
#[cfg(test)]
#[path = "mock/files.rs"]
mod files;
#[cfg(test)]
#[path = "mock/tensors.rs"]
mod tensors;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use mesh::MeshError;
use mesh_ttnn::ops::{Ops, TraceId};
use mesh_ttnn::python::{Dispatch, TtnnOps};
use mesh_ttnn::spec::{DataType, HostData, HostMatrix, Layout, MemoryConfig, Spread};

use tensors::{tiles, tiles_in, width_sharded};

const DRAM: MemoryConfig = MemoryConfig::DRAM;
const BF16: DataType = DataType::BFloat16;

fn open() -> TtnnOps {
    tensors::open("n150", 1, Dispatch::Ethernet)
}

fn device_error<T>(result: Result<T, MeshError>) -> String {
    match result {
        Err(MeshError::Device(message)) => message,
        Err(other) => panic!("not the device's failure: {other}"),
        Ok(_) => panic!("no failure"),
    }
}

#[test]
fn every_operation_passes_on_one_chip() {
    let _alone = devices::alone();
    let mut ops = open();
    assert!(ops.is_mock() && ops.num_chips() == 1 && ops.num_dram_banks() == 12);
    every_operation::check(&mut ops);
}

#[test]
fn a_second_run_of_every_operation_compiles_nothing() {
    let _alone = devices::alone();
    let mut ops = open();
    every_operation::check(&mut ops);
    let first = ops.program_counts();
    every_operation::check(&mut ops);
    // The folder of kernels may get more from other processes.
    assert_eq!(ops.program_counts().programs, first.programs);
    assert!(first.programs > 20 && first.kernels > 20, "{first:?}");
}

#[test]
fn a_refused_operation_is_an_error_that_names_it_and_the_reason() {
    let _alone = devices::alone();
    let mut ops = open();
    let (x, y) = (tiles(&mut ops, [1, 1, 32, 64], BF16), tiles(&mut ops, [1, 1, 32, 96], BF16));
    let error = device_error(ops.add(&x, &y, &DRAM));
    assert!(error.starts_with("ttnn.add: ") && error.contains("roadcast"), "{error}");
    let error = device_error(ops.nlp_concat_heads_decode(&x, 8));
    let name = "ttnn.experimental.nlp_concat_heads_decode: ";
    assert!(error.starts_with(name) && error.contains("sharded"), "{error}");
    let error = device_error(ops.read(&x, 5));
    assert!(error.contains("out of range"), "{error}");
    // The mesh is as good as before.
    assert!(ops.add(&x, &x, &DRAM).is_ok());
}

#[test]
fn what_does_not_fit_the_memory_is_told_apart() {
    let _alone = devices::alone();
    let mut ops = open();
    // 16 GiB of 12.
    let shape = [1, 1, 1 << 17, 1 << 16];
    let dram = ops.zeros(shape, BF16, Layout::Tile, &DRAM).unwrap_err();
    assert!(matches!(&dram, MeshError::DoesNotFit(m) if m.contains("Out of Memory")), "{dram}");
    let l1 = MemoryConfig::L1;
    let error = ops.zeros([1, 1, 1 << 13, 1 << 13], BF16, Layout::Tile, &l1).unwrap_err();
    assert!(matches!(error, MeshError::DoesNotFit(_)), "{error}");
}

#[test]
fn bad_host_tensors_and_files_are_refused() {
    let _alone = devices::alone();
    let mut ops = open();
    let matrix = HostMatrix {
        shape: [1, 1, 2, 3],
        rank: 4,
        data: HostData::Int32(vec![0; 5]),
        dtype: DataType::Int32,
        layout: Layout::RowMajor,
        spread: Spread::Replicated,
    };
    let error = device_error(ops.pack(matrix.clone()));
    assert!(error.contains("[1, 1, 2, 3]") && error.contains('5'), "{error}");
    let whole = HostMatrix { data: HostData::Int32(vec![0; 6]), ..matrix };
    for rank in [0, 1, 5] {
        let error = device_error(ops.pack(HostMatrix { rank, ..whole.clone() }));
        assert!(error.contains("[1, 1, 2, 3]") && error.contains("rank"), "{error}");
    }
    let huge = HostMatrix { shape: [usize::MAX, 2, 1, 1], ..whole.clone() };
    device_error(ops.pack(huge));
    // Block floats are in tiles alone.
    let error = device_error(ops.pack(HostMatrix {
        data: HostData::BFloat16(vec![half::bf16::ONE; 6]),
        dtype: DataType::BFloat8B,
        ..whole
    }));
    assert!(error.contains("TILE"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let error = device_error(ops.load(&folder.path().join("none.tensorbin")));
    assert!(error.contains("does not exist"), "{error}");
    let broken = folder.path().join("broken.tensorbin");
    fs::write(&broken, [0xff; 100]).unwrap();
    device_error(ops.load(&broken));
}

#[test]
fn mock_devices_refuse_to_record() {
    let _alone = devices::alone();
    let mut ops = open();
    assert!(!ops.can_trace());
    assert!(device_error(ops.begin_trace()).contains("record"));
    for refused in
        [ops.end_trace(TraceId(0)), ops.execute_trace(TraceId(0)), ops.release_trace(TraceId(0))]
    {
        device_error(refused);
    }
}

#[test]
fn operations_are_listed_without_running() {
    let _alone = devices::alone();
    let mut ops = open();
    let x = tiles(&mut ops, [1, 1, 32, 512], BF16);
    let programs = ops.program_counts().programs;
    let listed = ops
        .capture(|ops| {
            let sharded = ops.to_memory_config(&x, &width_sharded(8, 1, [32, 64]))?;
            let sum = ops.add(&sharded, &sharded, &DRAM)?;
            ops.typecast(&sum, DataType::BFloat8B)?;
            ops.reshape(&sum, [1, 32, 1, 512]).map(drop)
        })
        .unwrap();
    let sharding = "InterleavedToShardedDeviceOperation";
    assert_eq!(listed[..3], [sharding, "BinaryNgDeviceOperation", "TypecastDeviceOperation"]);
    assert_eq!(ops.program_counts().programs, programs);

    // A failure inside ends the list as well.
    let odd = tiles(&mut ops, [1, 1, 32, 96], BF16);
    device_error(ops.capture(|ops| ops.add(&x, &odd, &DRAM).map(drop)));
    assert_eq!(ops.capture(|ops| ops.add(&x, &x, &DRAM).map(drop)).unwrap().len(), 1);
}

#[test]
fn tensors_take_the_memory_that_their_elements_need() {
    let _alone = devices::alone();
    let mut ops = open();
    let before = ops.dram_use().unwrap();
    // All of a bank but its part of the 64 MiB for traces, in whole pages.
    let (bank, for_traces) = (1_072_693_184, (64 << 20) / 12);
    let taken = bank - before.total_bytes;
    assert_eq!(before.num_banks, 12);
    assert!((for_traces..for_traces + 4096).contains(&taken), "{taken}");
    // 1200 tiles of 1088 bytes over 12 banks.
    let cache = tiles_in(&mut ops, [1, 1, 32, 1200 * 32], DataType::BFloat8B, DRAM);
    let during = ops.dram_use().unwrap();
    assert_eq!(before.free_bytes - during.free_bytes, 100 * 1088);
    assert!(during.largest_free_bytes <= during.free_bytes);
    drop(cache);
    assert_eq!(ops.dram_use().unwrap(), before);
}

#[test]
fn a_mesh_closes_and_opens_any_number_of_times() {
    let _alone = devices::alone();
    for _ in 0..3 {
        let mut ops = open();
        let x = tiles(&mut ops, [1, 1, 32, 64], BF16);
        ops.close();
        // A handle may outlive its mesh.
        let error = device_error(ops.add(&x, &x, &DRAM));
        assert!(error.contains("closed"), "{error}");
        assert_eq!(ops.shape(&x), [1, 1, 32, 64]);
        ops.close();
    }
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let mut ops = open();
        let _x = tiles(&mut ops, [1, 1, 32, 64], BF16);
        panic!("of the test's own");
    }));
    assert!(panicked.is_err());
    let mut ops = open();
    let x = tiles(&mut ops, [1, 1, 32, 64], BF16);
    assert_eq!(ops.read(&x, 0).unwrap(), vec![0.0; 32 * 64]);
}

#[test]
fn packed_files_hold_what_our_own_packing_gives() {
    let _alone = devices::alone();
    let mut ops = open();
    files::packed_as_by_us(&mut ops);
    files::cut_as_by_us(&mut ops);
}

#[test]
fn a_packed_file_comes_back_and_goes_to_the_chip() {
    let _alone = devices::alone();
    files::come_back(&mut open());
}

#[test]
fn a_file_that_we_write_is_the_packages_own() {
    let _alone = devices::alone();
    files::written_as_by_the_package(&mut open());
}
