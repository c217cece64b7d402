//! The worker: tokens in, tokens out.
//!
//! Modules in the order a request meets them. Must never know text or HTTP.
#![forbid(unsafe_code)]

pub mod engine;
pub mod generation;
pub mod sampler;
