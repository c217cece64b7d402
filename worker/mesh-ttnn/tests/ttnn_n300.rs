//! The real package on the mock devices of two chips of which a row of cores
//! hands out work.

#[cfg(test)]
#[path = "mock/devices.rs"]
mod devices;
#[cfg(test)]
#[path = "mock/every_operation.rs"]
mod every_operation;

use mesh_ttnn::python::Dispatch;
use mesh_ttnn::spec::Grid;

#[test]
fn every_operation_passes_on_two_chips() {
    let _alone = devices::alone();
    let mut ops = devices::open("n300", 2, Dispatch::Worker);
    assert_eq!(ops.grid(), Grid { x: 8, y: 7 });
    every_operation::check(&mut ops);
}
