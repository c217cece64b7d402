//! The real package on the mock devices of two chips of which a row of cores
//! hands out work.

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

use mesh_ttnn::ops::Ops;
use mesh_ttnn::python::{Dispatch, OpenError, TtnnOps};
use mesh_ttnn::spec::Grid;

#[test]
fn every_operation_passes_on_two_chips() {
    let _alone = devices::alone();
    let mut ops = tensors::open("n300", 2, Dispatch::Worker);
    assert_eq!(ops.grid(), Grid { x: 8, y: 7 });
    every_operation::check(&mut ops);
}

#[test]
fn more_chips_than_there_are_is_an_error_that_names_both() {
    let _alone = devices::alone();
    let error = TtnnOps::open(&devices::options("n300", 8, Dispatch::Worker)).unwrap_err();
    let OpenError::TooFewChips { wanted, found, cluster } = &error else {
        panic!("{error}");
    };
    assert_eq!((*wanted, *found, cluster.as_str()), (8, 2, "N300"));
    // Nothing is left behind of it.
    every_operation::check(&mut tensors::open("n300", 2, Dispatch::Worker));
}

#[test]
fn chips_talk_in_every_mesh_that_is_opened() {
    let _alone = devices::alone();
    let dram = mesh_ttnn::spec::MemoryConfig::DRAM;
    for num_chips in [2, 1, 2] {
        let mut ops = tensors::open("n300", num_chips, Dispatch::Worker);
        let x = tensors::tiles(&mut ops, [1, 1, 32, 64], mesh_ttnn::spec::DataType::BFloat16);
        let gathered = ops.all_gather(&x, &dram);
        assert_eq!(gathered.is_ok(), num_chips == 2, "{num_chips} chips");
    }
}

#[test]
fn packed_files_hold_the_parts_of_both_chips() {
    let _alone = devices::alone();
    let mut ops = tensors::open("n300", 2, Dispatch::Worker);
    files::cut_as_by_us(&mut ops);
    files::packed_as_by_us(&mut ops);
    files::come_back(&mut ops);
}

#[test]
fn a_file_that_we_write_is_the_packages_own() {
    let _alone = devices::alone();
    files::written_as_by_the_package(&mut tensors::open("n300", 2, Dispatch::Worker));
}
