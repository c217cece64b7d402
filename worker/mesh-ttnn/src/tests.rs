//! The Llama graph on these operations in plain Rust, against the CPU mesh.

mod choosing;
mod loading;
mod models;
mod numerics;
mod recording;
