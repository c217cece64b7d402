//! Whole models on the mock devices of eight chips whose ethernet cores hand out work.

#[cfg(test)]
#[path = "mock/devices.rs"]
mod devices;
#[cfg(test)]
#[path = "mock/every_model.rs"]
mod every_model;
#[cfg(test)]
#[path = "mock/model.rs"]
mod model;
#[cfg(test)]
#[path = "mock/whole_models.rs"]
mod whole_models;

use llama::{Device, Llama3Size};
use mesh_ttnn::python::Dispatch;
use model::Place;

const PLACE: Place =
    Place { cluster: "t3k-h1", device: Device::T3K, dispatch: Dispatch::Ethernet, grid_rows: 8 };
/// Whose memory is compared with the allocator's.
const LARGE: Llama3Size = Llama3Size::B70;
/// Who has a long context.
const LONG: Llama3Size = Llama3Size::B70;

#[test]
fn llama_70b_runs() {
    whole_models::check(PLACE, Llama3Size::B70);
}
