//! The Llama 3 family against Meta's own code, on checkpoints in Meta's format.
#![forbid(unsafe_code)]

#[path = "family/checkpoints.rs"]
mod checkpoints;
#[path = "family/compare.rs"]
mod compare;
#[path = "family/full_size.rs"]
mod full_size;
#[path = "family/golden.rs"]
mod golden;
#[path = "family/layouts.rs"]
mod layouts;
#[path = "family/miniatures.rs"]
mod miniatures;
#[path = "family/run.rs"]
mod run;
#[path = "family/torch_saved.rs"]
mod torch_saved;
