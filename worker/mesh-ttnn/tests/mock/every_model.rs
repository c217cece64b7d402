//! The tests of one kind of mock devices, which `PLACE` of the including file
//! describes.

use llama::{Device, Llama3Size};

use crate::whole_models::{
    check, check_long_context, check_memory, check_operations, check_weight_cache,
};
use crate::{LARGE, LONG, PLACE};

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
    if PLACE.device == Device::T3K {
        check_operations(PLACE, Llama3Size::B70);
    }
}

#[test]
fn memory_is_refused_before_it_runs_out() {
    check_memory(PLACE, LARGE);
}

#[test]
fn weights_are_mapped_from_the_second_start_on() {
    check_weight_cache(PLACE);
}

#[test]
fn a_context_of_128k_runs_to_its_end() {
    check_long_context(PLACE, LONG);
}
