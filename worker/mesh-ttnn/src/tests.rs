//! The Llama graph on these operations in plain Rust, against the CPU mesh.

mod models;
mod numerics;
