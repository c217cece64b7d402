//! The worker: tokens in, tokens out.
//!
//! Modules in the order a request meets them. Must never know text or HTTP.
#![forbid(unsafe_code)]

pub mod cli;

pub mod app;
pub mod config;
pub mod error;
pub mod identity;
pub mod listen;
pub mod load_stage;
pub mod memory;
pub mod metrics;
pub mod owner_thread;
mod sizing;

pub mod service;

pub mod convert;
pub mod generation;

pub mod engine;
pub mod sampler;

pub mod backend;
mod weight_cache;
