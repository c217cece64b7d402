//! A model's files, opened and looked at: what every mesh needs before weights.

use common::config::ConfigError;
use common::model::ModelFiles;
use llama::{Checkpoint, DTypePolicy, LoadOptions, NameCheck, Optimizations};
use mesh::MeshDescription;

use crate::config::{MeshChoice, WorkerConfig};
use crate::error::WorkerError;
use crate::identity::{DeviceIdentity, Identity, Limits, ModelIdentity, eos_token_ids};

/// A model whose weights are still in their files.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) checkpoint: Checkpoint,
    /// Storage formats.
    pub(super) policy: DTypePolicy,
    model: ModelIdentity,
}

/// What a loaded model is, but for what its mesh says of itself.
#[derive(Debug)]
pub(super) struct Described {
    model: ModelIdentity,
    policy: DTypePolicy,
    limits: Limits,
}

impl Opened {
    pub(super) fn new(config: &WorkerConfig, files: &ModelFiles) -> Result<Self, WorkerError> {
        let check = if config.ignore_model_name { NameCheck::Ignore } else { NameCheck::Enforce };
        let checkpoint = Checkpoint::open_with(files.path(), check)?;
        let policy = config.policy(checkpoint.config());
        let vocab_size = u32::try_from(checkpoint.config().vocab_size)
            .map_err(|_| ConfigError::value("model", "has a vocabulary beyond 32 bits"))?;
        let model = ModelIdentity {
            name: config.served_model_name.clone().unwrap_or_else(|| files.name()),
            architecture: checkpoint.architecture().to_owned(),
            weight_fingerprint: checkpoint.weight_fingerprint().to_owned(),
            tokenizer_fingerprint: files.tokenizer_fingerprint()?,
            vocab_size,
            eos_token_ids: eos_token_ids(files, vocab_size),
        };
        Ok(Self { checkpoint, policy, model })
    }

    pub(super) fn options(&self, limits: &Limits) -> LoadOptions {
        LoadOptions {
            policy: self.policy,
            max_model_len: limits.max_model_len as usize,
            kv_blocks: limits.num_kv_blocks as usize,
            kv_block_size: limits.kv_block_size as usize,
        }
    }

    /// Says what is loaded, and lets the checkpoint go its own way.
    pub(super) fn describe(self, limits: Limits, mesh: MeshChoice) -> (Checkpoint, Described) {
        let Self { checkpoint, policy, model } = self;
        let device = mesh.device();
        tracing::info!(model = model.name, %device, %policy, ?limits, "loading");
        (checkpoint, Described { model, policy, limits })
    }
}

impl Described {
    pub(super) fn identity(
        self,
        config: &WorkerConfig,
        mesh: MeshChoice,
        description: MeshDescription,
    ) -> Identity {
        let simulates = match mesh {
            MeshChoice::Cpu { simulates, .. } => simulates.map(|card| card.to_string()),
            MeshChoice::Card { .. } => None,
        };
        let device = DeviceIdentity {
            name: description.device,
            simulates,
            num_chips: u32::try_from(description.num_chips).unwrap_or(u32::MAX),
            optimizations: Optimizations::from(config.optimizations).to_string(),
            weight_dtype: self.policy.attention.to_string(),
            kv_dtype: self.policy.kv_cache.to_string(),
            logits_dtype: description.logits_dtype.to_string(),
        };
        Identity {
            model: self.model,
            device,
            limits: self.limits,
            rules: description.rules,
            prefix_cache: config.prefix_cache,
        }
    }
}
