//! The single `match` on what the worker runs on. Nothing else names a mesh.

mod cpu;
mod opened;
#[cfg_attr(feature = "ttnn", path = "backend/ttnn.rs")]
#[cfg_attr(not(feature = "ttnn"), path = "backend/ttnn_missing.rs")]
mod ttnn;
#[cfg(any(test, feature = "ttnn"))]
mod warm_up;

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::config::ConfigError;
use common::model::ModelFiles;
use mesh::WeightCacheUse;
use sha2::{Digest as _, Sha256};

use crate::config::{MeshChoice, WorkerConfig};
use crate::engine::{
    ClientLimits, Engine, EngineConfig, EngineHandle, EngineOptions, EngineThread, Forward,
};
use crate::error::WorkerError;
use crate::identity::Identity;
use crate::load_stage::LoadStage;

/// Rows of logits in one step: bounds the memory of prompt log-probabilities.
const MAX_LOGIT_ROWS: usize = 64;
/// Steps in a client's channel; it reads each at once unless it is slow.
const CHANNEL_CAPACITY: usize = 64;
/// Tokens kept for a slow client before its sequences are paused.
const OUTBOX_TOKENS: usize = 4096;
/// How long a client may take nothing before its sequences are cancelled.
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);

/// A loaded model that nothing steps yet: what the engine's thread is to own,
/// and what the tools that measure a model drive themselves.
pub struct LoadedModel {
    /// The forward pass with its KV cache, sized by `identity.limits`.
    pub forward: Box<dyn Forward>,
    /// What it is.
    pub identity: Identity,
    /// How it was loaded.
    pub report: LoadReport,
}

/// How a load went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadReport {
    /// Whether the weights came from, or are now in, a weight cache.
    pub weight_cache: WeightCacheUse,
    /// From the first look at the files until the model can step.
    pub took: Duration,
}

impl std::fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadedModel")
            .field("identity", &self.identity)
            .field("report", &self.report)
            .finish_non_exhaustive()
    }
}

/// A loaded model in a running engine.
#[derive(Debug)]
pub struct Backend {
    /// To talk to the engine.
    pub engine: EngineHandle,
    /// The thread, to join when every handle is gone.
    pub thread: EngineThread,
    /// What it is.
    pub identity: Identity,
}

/// What a mesh's own file has loaded.
struct Loaded {
    forward: Box<dyn Forward>,
    identity: Identity,
    weight_cache: WeightCacheUse,
}

/// Loads the model and starts the engine. Blocks for as long as that takes;
/// `progress` hears of every weight, and of every step that is compiled.
///
/// # Errors
/// As [`load_model`], or when the operating system gives no thread.
pub fn load(
    config: &WorkerConfig,
    progress: &mut dyn FnMut(LoadStage),
) -> Result<Backend, WorkerError> {
    let LoadedModel { forward, identity, .. } = load_model(config, progress)?;
    start(forward, config.waiting_seqs(), identity)
}

/// Loads the model. Blocks for as long as that takes; `progress` hears of every
/// weight, and of every step that is compiled.
///
/// Whatever can be refused is refused before a weight is read.
///
/// # Errors
/// By what would help: other settings, other files, another machine.
pub fn load_model(
    config: &WorkerConfig,
    progress: &mut dyn FnMut(LoadStage),
) -> Result<LoadedModel, WorkerError> {
    let started = Instant::now();
    let path = config.model.clone().ok_or_else(no_model)?;
    let files = ModelFiles::locate(&path)?;
    let mesh = config.mesh()?;
    let loaded = match mesh {
        MeshChoice::Cpu { num_chips, .. } => cpu::load(config, mesh, num_chips, &files, progress),
        MeshChoice::Card { .. } => ttnn::load(config, mesh, &files, progress),
    };
    let Loaded { forward, identity, weight_cache } = loaded?;
    let report = LoadReport { weight_cache, took: started.elapsed() };
    tracing::info!(weight_cache = %report.weight_cache, took = ?report.took, "loaded");
    Ok(LoadedModel { forward, identity, report })
}

/// Starts an engine that steps `forward` within the identity's limits.
///
/// # Errors
/// The operating system gives no thread.
pub fn start<F: Forward + 'static>(
    forward: F,
    waiting_seqs: u32,
    identity: Identity,
) -> Result<Backend, WorkerError> {
    let limits = identity.limits;
    let max_num_seqs = limits.max_num_seqs as usize;
    let rules = identity.rules;
    let options = EngineOptions {
        config: EngineConfig {
            max_num_seqs,
            max_num_batched_tokens: limits.max_num_batched_tokens as usize,
            max_model_len: limits.max_model_len as usize,
            num_kv_blocks: limits.num_kv_blocks as usize,
            kv_block_size: limits.kv_block_size as usize,
            max_logit_rows: max_num_seqs.max(MAX_LOGIT_ROWS).max(rules.prefill_multiple),
            prefix_cache: identity.prefix_cache,
            rules,
        },
        // All that the credits allow may arrive between two steps.
        max_waiting_seqs: max_num_seqs + waiting_seqs as usize,
        client_limits: ClientLimits {
            channel_capacity: CHANNEL_CAPACITY,
            outbox_tokens: OUTBOX_TOKENS,
            patience: CLIENT_PATIENCE,
        },
        cache_key: random_key(),
    };
    let (engine, thread) = Engine::start(forward, options)?;
    Ok(Backend { engine, thread, identity })
}

/// The model's path: the setting, else `$LLAMA_DIR`.
#[must_use]
pub fn model_path(config: &WorkerConfig, llama_dir: Option<PathBuf>) -> Option<PathBuf> {
    config.model.clone().or(llama_dir.filter(|path| !path.as_os_str().is_empty()))
}

fn no_model() -> ConfigError {
    ConfigError::value("model", "is unset, and so is $LLAMA_DIR: name a directory or a .gguf file")
}

/// 32 bytes that others cannot guess, from the keys that the standard library
/// draws from the operating system for its hash maps.
fn random_key() -> [u8; 32] {
    let mut hash = Sha256::new();
    for _ in 0..4 {
        hash.update(RandomState::new().build_hasher().finish().to_le_bytes());
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn the_path_comes_from_the_setting_else_from_the_environment() {
        let unset = WorkerConfig::default();
        let set = WorkerConfig { model: Some("/a".into()), ..unset.clone() };
        assert_eq!(model_path(&set, Some("/b".into())), Some("/a".into()));
        assert_eq!(model_path(&unset, Some("/b".into())), Some("/b".into()));
        assert_eq!(model_path(&unset, Some("".into())), None);
    }

    #[test]
    fn cache_keys_differ() {
        assert_ne!(random_key(), random_key());
    }
}
