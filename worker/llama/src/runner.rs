//! A loaded model with its KV cache: what the engine's thread owns.

use std::fmt;

use mesh::{
    AttentionShape, KvCacheShape, Mesh, MeshDescription, MeshError, MeshStatus, StepBatch,
    StepOutput, WeightCacheUse,
};

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::config::LlamaConfig;
use crate::model::Llama;
use crate::policy::DTypePolicy;
use crate::shard::{PlanError, ShardPlan};
use crate::weights::{LoadProgress, WeightLoader};

/// How a model is to be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadOptions {
    /// Storage formats.
    pub policy: DTypePolicy,
    /// Longest sequence, prompt and answer, in tokens; at most the model's
    /// `max_position_embeddings`.
    pub max_model_len: usize,
    /// KV cache size in blocks.
    pub kv_blocks: usize,
    /// Positions in a block.
    pub kv_block_size: usize,
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The checkpoint is damaged, changed meanwhile, or lacks something.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The model cannot be cut for this mesh.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The mesh refused it, or failed.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// An option is out of range.
    #[error("{option} is {value}, must be 1 to {max}")]
    Option {
        /// Name of the field.
        option: &'static str,
        /// What was asked for.
        value: usize,
        /// The most that there can be.
        max: usize,
    },
}

/// Mesh, weights and KV cache of one model. Owned by the engine's thread.
pub struct Runner<M: Mesh> {
    // What lies on the mesh goes before the mesh does.
    model: Llama<M>,
    cache: M::KvCache,
    mesh: M,
    config: LlamaConfig,
    plan: ShardPlan,
    kv_cache: KvCacheShape,
    weight_cache: WeightCacheUse,
}

impl<M: Mesh> Runner<M> {
    /// Loads `checkpoint` onto `mesh`, calling `progress` after every weight.
    ///
    /// # Errors
    /// [`LoadError`] by what would help: another file, another mesh, other
    /// options.
    pub fn load(
        mut mesh: M,
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, LoadError> {
        let config = checkpoint.config().clone();
        options.validate(&config)?;
        // The plan first: it says what would fit, a failed upload only that it
        // does not.
        let plan = ShardPlan::new(&config, mesh.describe().num_chips)?;
        let kv_cache = KvCacheShape {
            num_layers: config.num_hidden_layers,
            num_blocks: options.kv_blocks,
            block_size: options.kv_block_size,
            dtype: options.policy.kv_cache,
        };
        let attention = AttentionShape {
            num_attention_heads: config.num_attention_heads,
            num_key_value_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        };
        let cache = mesh.new_kv_cache(kv_cache, attention)?;
        let (model, weight_cache) =
            WeightLoader::new(&mut mesh, checkpoint, &plan, &options.policy, progress)?
                .load_model(options.max_model_len)?;
        Ok(Self { mesh, model, cache, config, plan, kv_cache, weight_cache })
    }

    /// Runs one step: `out` becomes the logits of `batch.logit_rows`, or the
    /// tokens chosen by them; with no logit rows the LM head does not run.
    ///
    /// # Errors
    /// [`MeshError::Device`]: the mesh cannot be used any further.
    ///
    /// # Panics
    /// When the batch is not what [`StepBatch`] promises: token ids below the
    /// vocabulary, positions below `max_model_len`, block tables that cover
    /// them. The engine checks requests before they become batches.
    pub fn forward(&mut self, batch: &StepBatch, out: &mut StepOutput) -> Result<(), MeshError> {
        self.model.forward(&mut self.mesh, &mut self.cache, batch, out)
    }

    /// The model's shape.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Where each weight lies.
    pub fn shard_plan(&self) -> &ShardPlan {
        &self.plan
    }

    /// Size and format of the KV cache.
    pub fn kv_cache(&self) -> &KvCacheShape {
        &self.kv_cache
    }

    /// Whether the mesh had the weights from an earlier start.
    pub fn weight_cache(&self) -> WeightCacheUse {
        self.weight_cache
    }

    /// The mesh itself, for those who look at what it does.
    pub fn mesh_mut(&mut self) -> &mut M {
        &mut self.mesh
    }

    /// How the mesh is doing.
    pub fn mesh_status(&self) -> MeshStatus {
        self.mesh.status()
    }

    /// What the mesh is.
    pub fn mesh_description(&self) -> MeshDescription {
        self.mesh.describe()
    }
}

impl LoadOptions {
    fn validate(&self, config: &LlamaConfig) -> Result<(), LoadError> {
        // Block ids are 32 bits wide in block tables.
        let limits = [
            ("max_model_len", self.max_model_len, config.max_position_embeddings),
            ("kv_blocks", self.kv_blocks, u32::MAX as usize),
            ("kv_block_size", self.kv_block_size, 1 << 16),
        ];
        for (option, value, max) in limits {
            if value == 0 || value > max {
                return Err(LoadError::Option { option, value, max });
            }
        }
        Ok(())
    }
}

impl<M: Mesh> fmt::Debug for Runner<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runner")
            .field("mesh", &self.mesh.describe())
            .field("config", &self.config)
            .field("kv_cache", &self.kv_cache)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
