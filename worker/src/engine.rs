//! The engine: one OS thread that owns mesh, weights and KV cache, and steps.
//!
//! Everything outside talks to it through an [`EngineHandle`]. The thread never
//! waits for anybody while it has work; without work it sleeps on its channel.
//! Read [`state`] and `plan` for what is computed when, [`step`] for how.

pub mod batch;
pub mod blocks;
mod choice;
mod chunk;
mod clients;
mod handle;
mod plan;
mod sequence;
mod spans;
pub mod state;
pub mod step;
mod thread;

pub use blocks::{BlockHash, CacheEvents};
pub use clients::ClientLimits;
pub use handle::{Client, EngineHandle, EngineStatus, Stopped, SubmitError};
pub use state::{EngineConfig, Totals};
pub use step::Forward;
pub use thread::{Engine, EngineThread};

/// How an engine is set up.
#[derive(Clone)]
pub struct EngineOptions {
    /// What a step may hold.
    pub config: EngineConfig,
    /// Most sequences that wait for their first admission.
    pub max_waiting_seqs: usize,
    /// How far clients may fall behind.
    pub client_limits: ClientLimits,
    /// Secret of this process that keys the prefix cache's hashes; random.
    pub cache_key: [u8; 32],
}

impl std::fmt::Debug for EngineOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineOptions")
            .field("config", &self.config)
            .field("max_waiting_seqs", &self.max_waiting_seqs)
            .field("client_limits", &self.client_limits)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
