//! The mesh of Tenstorrent chips, through `ttnn`.
//!
//! [`TtnnMesh`] turns the graph's coarse operations into the calls of [`Ops`],
//! with layouts and program configurations from [`layout`]. Behind the calls
//! stands the real package (`python`, feature `ttnn`: cards, or its own mock
//! devices) or plain Rust that computes the same numbers (`reference`).
//!
//! Must never know: models by name, checkpoints, requests. Read `chips` and
//! `attention` first: a step as a list of operations.
//!
//! [`Ops`]: ops::Ops
#![deny(unsafe_code)]

mod attention;
pub mod board;
mod cache;
mod chips;
mod choose;
mod kv_cache;
pub mod layout;
mod load;
mod mesh;
pub mod ops;
pub mod packing;
#[cfg(feature = "ttnn")]
pub mod python;
mod readback;
mod record;
#[cfg(any(test, feature = "reference"))]
pub mod reference;
pub mod spec;
mod step;
mod tensor;
#[cfg(test)]
mod tests;
mod weight;

pub use cache::WeightCacheDir;
pub use kv_cache::{KvCache, Rope};
pub use mesh::{TtnnMesh, TtnnOptions};
pub use record::MAX_RECORDS;
pub use tensor::Tensor;
pub use weight::{Gain, Linear, Weight};
