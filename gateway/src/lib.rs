//! The gateway: text in, text out. It turns requests into token ids, shares
//! the workers between them, and turns the workers' tokens back into text.
//!
//! It must never know a tensor, and nothing behind `grpc` and `worker_pool`
//! names a wire type. Read `generate` first: it is the path of every request.
#![forbid(unsafe_code)]

// The doors, and what a request becomes in them.
pub mod app;
pub mod cli;
pub mod config;
mod grpc;
mod http;
mod listener;

pub mod error;
pub mod request;

// The way to the workers and back.
pub mod generate;
pub mod routing;
pub mod scheduler;
pub mod text;
pub mod text_stream;
pub mod worker_pool;

pub mod metrics;
