//! The single `match` on what the worker runs on. Nothing else names a mesh.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::config::ConfigError;
use common::model::ModelFiles;
use llama::{Checkpoint, LlamaConfig, LoadOptions, LoadProgress, NameCheck, Optimizations, Runner};
use mesh::WeightCacheUse;
use mesh_cpu::{CpuMesh, WeightCacheFile};
use sha2::{Digest as _, Sha256};

use crate::config::{MeshChoice, WorkerConfig};
use crate::engine::{
    ClientLimits, Engine, EngineConfig, EngineHandle, EngineOptions, EngineThread, Forward,
};
use crate::error::WorkerError;
use crate::identity::{DeviceIdentity, Identity, ModelIdentity, eos_token_ids};
use crate::memory;
use crate::sizing::{self, HostMemory};
use crate::weight_cache;

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

/// Loads the model and starts the engine. Blocks for as long as that takes;
/// `progress` hears of every weight.
///
/// # Errors
/// As [`load_model`], or when the operating system gives no thread.
pub fn load(
    config: &WorkerConfig,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Backend, WorkerError> {
    let LoadedModel { forward, identity, .. } = load_model(config, progress)?;
    start(forward, config.waiting_seqs(), identity)
}

/// Loads the model. Blocks for as long as that takes; `progress` hears of every
/// weight.
///
/// Whatever can be refused is refused before a weight is read.
///
/// # Errors
/// By what would help: other settings, other files, another machine.
pub fn load_model(
    config: &WorkerConfig,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<LoadedModel, WorkerError> {
    let started = Instant::now();
    let path = config.model.clone().ok_or_else(no_model)?;
    let files = ModelFiles::locate(&path)?;
    let mesh = config.mesh()?;
    let MeshChoice::Cpu { num_chips, simulates } = mesh;
    // The small files tell what does not fit, however large the weights are.
    let cache = weight_cache::path(config, &files, num_chips);
    let weights_are_mapped = cache.as_ref().is_some_and(|path| path.is_file());
    let host = HostMemory { available: memory::available_bytes(), weights_are_mapped };
    let model_config = LlamaConfig::from_path(files.path())?;
    sizing::limits(config, &model_config, mesh, host)?;
    let name_check = if config.ignore_model_name { NameCheck::Ignore } else { NameCheck::Enforce };
    let checkpoint = Checkpoint::open_with(files.path(), name_check)?;
    let policy = config.policy(checkpoint.config());
    let mut cpu = CpuMesh::new(num_chips as usize, config.num_threads())?;
    if let Some(path) = cache {
        let (checkpoint, policy) = (checkpoint.revision(), policy.weights());
        cpu = cpu.with_weight_cache(WeightCacheFile { path, checkpoint, policy });
    }
    // Once more with what the large files say: their tensors complete the
    // configuration, and a cache may be there and be another model's.
    let host = HostMemory { weights_are_mapped: cpu.maps_weights(), ..host };
    let limits = sizing::limits(config, checkpoint.config(), mesh, host)?;
    let optimizations = Optimizations::from(config.optimizations);
    let options = LoadOptions {
        policy,
        max_model_len: limits.max_model_len as usize,
        kv_blocks: limits.num_kv_blocks as usize,
        kv_block_size: limits.kv_block_size as usize,
    };
    let vocab_size = u32::try_from(checkpoint.config().vocab_size)
        .map_err(|_| ConfigError::value("model", "has a vocabulary beyond 32 bits"))?;
    let model = ModelIdentity {
        name: config.served_model_name.clone().unwrap_or_else(|| files.name()),
        architecture: checkpoint.architecture().to_owned(),
        weight_fingerprint: checkpoint.weight_fingerprint().to_owned(),
        tokenizer_fingerprint: files.tokenizer_fingerprint()?,
        vocab_size,
        eos_token_ids: eos_token_ids(&files, vocab_size),
    };
    tracing::info!(model = model.name, num_chips, %policy, ?limits, "loading");
    let runner = Runner::load(cpu, &checkpoint, &options, progress)?;
    let description = runner.mesh_description();
    let device = DeviceIdentity {
        name: description.device,
        simulates: simulates.map(|card| card.to_string()),
        num_chips,
        optimizations: optimizations.to_string(),
        weight_dtype: policy.attention.to_string(),
        kv_dtype: policy.kv_cache.to_string(),
        logits_dtype: description.logits_dtype.to_string(),
    };
    let rules = description.rules;
    let identity = Identity { model, device, limits, rules, prefix_cache: config.prefix_cache };
    let report = LoadReport { weight_cache: runner.weight_cache(), took: started.elapsed() };
    tracing::info!(weight_cache = %report.weight_cache, took = ?report.took, "loaded");
    Ok(LoadedModel { forward: Box::new(runner), identity, report })
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
