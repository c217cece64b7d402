//! Whole models on the mock devices of one chip.

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
    Place { cluster: "n150", device: Device::N150, dispatch: Dispatch::Ethernet, grid_rows: 8 };
/// Whose memory is compared with the allocator's.
const LARGE: Llama3Size = Llama3Size::B8;
/// Who has a long context.
const LONG: Llama3Size = Llama3Size::B1;
