//! The real package on the mock devices of eight chips whose ethernet cores
//! hand out work.

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

use mesh_ttnn::python::Dispatch;
use mesh_ttnn::spec::Grid;

#[test]
fn every_operation_passes_on_eight_chips() {
    let _alone = devices::alone();
    let mut ops = tensors::open("t3k-h1", 8, Dispatch::Ethernet);
    assert_eq!(ops.grid(), Grid { x: 8, y: 8 });
    every_operation::check(&mut ops);
}

#[test]
fn packed_files_hold_the_parts_of_eight_chips() {
    let _alone = devices::alone();
    let mut ops = tensors::open("t3k-h1", 8, Dispatch::Ethernet);
    files::written_as_by_the_package(&mut ops);
    files::packed_as_by_us(&mut ops);
    files::cut_as_by_us(&mut ops);
    files::come_back(&mut ops);
}
