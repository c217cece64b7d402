//! Llama: configuration, checkpoints, shard plan, and the graph, written once
//! over [`mesh::Mesh`].
//!
//! Must never know: kernels, requests, text, or which mesh runs it. Read
//! `block.rs` first; it is the transformer block as the paper draws it.
//!
//! Weights are named as Hugging Face names them. Inside, the rows of the q and
//! k projections are in *interleaved* order (channels `2i` and `2i + 1` of a
//! head turn together), which is Meta's and GGUF's order; the Hugging Face
//! loader undoes that library's half-split order while it reads.
#![deny(unsafe_code)]

mod block;
mod checkpoint;
mod config;
mod device;
mod model;
mod names;
mod policy;
pub mod pth;
pub mod repack;
mod rope;
mod runner;
mod shard;
mod weights;

#[cfg(test)]
mod reference;
#[cfg(any(test, feature = "testing"))]
pub mod tiny;

pub use checkpoint::{Checkpoint, CheckpointError, NameCheck, TensorMatrix};
pub use config::{ConfigError, Llama3Size, LlamaConfig, RopeScaling};
pub use device::{
    CacheFootprint, Collective, Device, DevicePlan, Dispatch, DoesNotFit, Layout, UnknownDevice,
    WeightFootprint, Workload, bytes_text, max_context, max_prefill_chunk,
};
pub use model::Llama;
pub use names::{LayerWeight, MetaSplit, WeightName};
pub use policy::{DTypePolicy, Optimizations, UnknownOptimizations};
pub use rope::{RopeTables, inverse_frequencies};
pub use runner::{LoadError, LoadOptions, Runner};
pub use shard::{PlanError, ShardPlan, Split, WeightShard, chips_that_fit};
pub use weights::LoadProgress;
