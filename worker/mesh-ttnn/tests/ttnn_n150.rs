//! The real package on the mock devices of one chip.

#[cfg(test)]
#[path = "mock/devices.rs"]
mod devices;
#[cfg(test)]
#[path = "mock/every_operation.rs"]
mod every_operation;

use mesh_ttnn::python::Dispatch;

#[test]
fn every_operation_passes_on_one_chip() {
    let _alone = devices::alone();
    let mut ops = devices::open("n150", 1, Dispatch::Ethernet);
    every_operation::check(&mut ops);
}
