//! The gateway: text in, text out. It turns requests into token ids, shares
//! the workers between them, and turns the workers' tokens back into text.
//!
//! It must never know a tensor, and nothing behind `grpc` and `worker_pool`
//! names a wire type. Read `generate` first: it is the path of every request.
#![forbid(unsafe_code)]

// In the order in which a request meets them.
pub mod error;
pub mod generate;
pub mod request;
pub mod text_stream;
pub mod text;
