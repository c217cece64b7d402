//! Whole models on the mock devices of one chip.

#[cfg(test)]
#[path = "mock/devices.rs"]
mod devices;
#[cfg(test)]
#[path = "mock/model.rs"]
mod model;
#[cfg(test)]
#[path = "mock/whole_models.rs"]
mod whole_models;

use llama::{Device, Llama3Size};
use mesh_ttnn::python::Dispatch;
use model::Place;
use whole_models::{check, check_long_context, check_memory, check_operations, check_weight_cache};

const PLACE: Place =
    Place { cluster: "n150", device: Device::N150, dispatch: Dispatch::Ethernet, grid_rows: 8 };

#[test]
fn llama_1b_runs() {
    check(PLACE, Llama3Size::B1);
}

#[test]
fn llama_3b_runs() {
    check(PLACE, Llama3Size::B3);
}

#[test]
fn llama_8b_runs() {
    check(PLACE, Llama3Size::B8);
}

#[test]
fn llama_11b_runs() {
    check(PLACE, Llama3Size::B11);
}

#[test]
fn a_decode_step_has_the_listed_operations() {
    for size in [Llama3Size::B1, Llama3Size::B3, Llama3Size::B8] {
        check_operations(PLACE, size);
    }
}

#[test]
fn memory_is_refused_before_it_runs_out() {
    check_memory(PLACE, Llama3Size::B8);
}

#[test]
fn weights_are_mapped_from_the_second_start_on() {
    check_weight_cache(PLACE);
}

#[test]
fn a_context_of_128k_runs_to_its_end() {
    check_long_context(PLACE, Llama3Size::B1);
}
