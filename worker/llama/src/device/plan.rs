//! One model on one device: every weight and cache, chip by chip, in bytes.
//!
//! The cut is [`ShardPlan`]'s. On Wormhole chips matrices lie as `ttnn` stores
//! them, transposed, `[in, out]`; the CPU mesh keeps the same slices in squares.

mod fit;
mod footprint;

use mesh::DType;

pub use fit::{DoesNotFit, bytes_text};
pub use footprint::{CacheFootprint, WeightFootprint};

use super::{Device, max_context};
use crate::config::LlamaConfig;
use crate::names::{LayerWeight, WeightName};
use crate::policy::DTypePolicy;
use crate::shard::{PlanError, ShardPlan, Split};

/// Rows that a decode step has, whatever the batch: one tile.
const DECODE_ROWS: usize = 32;
/// Rows of logits that one step gives back at most.
const LOGIT_ROWS: usize = 64;

/// What the memory beside the weights is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// Longest sequence, prompt and answer, in tokens.
    pub max_model_len: usize,
    /// Tokens that the KV cache holds, of all sequences.
    pub kv_tokens: usize,
    /// Tokens in a KV block.
    pub kv_block_size: usize,
    /// Most tokens that one step computes.
    pub prefill_chunk: usize,
}

/// A collective of the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Collective {
    /// `all_gather` or `reduce_scatter`.
    pub operation: &'static str,
    /// What it is of.
    pub of: &'static str,
    /// Channels of the whole value; a row of it is a token.
    pub width: usize,
    /// How often in one step.
    pub count: usize,
}

/// One model on one device.
#[derive(Debug, Clone)]
pub struct DevicePlan {
    config: LlamaConfig,
    device: Device,
    policy: DTypePolicy,
    workload: Workload,
    output_projection: Split,
    weights: Vec<WeightFootprint>,
    caches: Vec<CacheFootprint>,
}

impl DevicePlan {
    /// Plans `config` on `device`. Says nothing yet of whether it fits: see
    /// [`DevicePlan::check`].
    ///
    /// # Errors
    /// [`PlanError`] when the model cannot be cut for the device's chips.
    pub fn new(
        config: &LlamaConfig,
        device: Device,
        policy: DTypePolicy,
        workload: Workload,
    ) -> Result<Self, PlanError> {
        let plan = ShardPlan::new(config, device.num_chips())?;
        let output_projection = plan.split(WeightName::Layer(0, LayerWeight::OProj));
        let mut planned = Self {
            config: config.clone(),
            device,
            policy,
            workload,
            output_projection,
            weights: Vec::new(),
            caches: Vec::new(),
        };
        planned.weights = footprint::weights(&planned);
        planned.caches = footprint::caches(&planned);
        Ok(planned)
    }

    /// The model's shape.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// What it is planned for.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Number formats.
    pub fn policy(&self) -> &DTypePolicy {
        &self.policy
    }

    /// What the memory beside the weights is for.
    pub fn workload(&self) -> Workload {
        self.workload
    }

    /// Every weight, in the order of use; a layer's are listed once.
    pub fn weights(&self) -> &[WeightFootprint] {
        &self.weights
    }

    /// Keys and values; a layer's are listed once.
    pub fn caches(&self) -> &[CacheFootprint] {
        &self.caches
    }

    /// Most tokens of a sequence that the model and the device's table allow,
    /// whatever the memory.
    pub fn context_limit(&self) -> usize {
        let model = self.config.max_position_embeddings;
        max_context(self.config.llama3_size(), self.device).map_or(model, |max| max.min(model))
    }

    /// Bytes of weights on one chip.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.iter().map(|weight| weight.bytes * weight.count as u64).sum()
    }

    /// Bytes of keys and values on one chip.
    pub fn cache_bytes(&self) -> u64 {
        self.caches.iter().map(|cache| cache.bytes * cache.count as u64).sum()
    }

    /// Bytes of activations on one chip while a prefill chunk is computed: an
    /// estimate. At its widest point a layer holds the residual, the gathered
    /// norm, gate and up (bf16) and their product (bfp8); or, in attention, the
    /// fused projection twice, cut into heads and not. The CPU mesh computes in
    /// f32 and keeps what is replicated once.
    pub fn activation_bytes(&self) -> u64 {
        let (config, chips) = (&self.config, self.device.num_chips());
        let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
        let qkv = config.query_size() + 2 * config.key_value_size();
        let Workload { prefill_chunk, max_model_len, kv_tokens, .. } = self.workload;
        if !self.device.is_card() {
            // A step has rows of several sequences.
            let rows = prefill_chunk.min(kv_tokens.max(max_model_len));
            let widest = usize::max(3 * ffn, 2 * qkv) + 4 * hidden;
            let logits = LOGIT_ROWS * config.vocab_size;
            return (4 * (rows.max(1) * widest + logits) / chips) as u64;
        }
        let rows = prefill_chunk.min(max_model_len);
        let mlp = 5 * (ffn / chips) + ffn / chips / 16;
        let attention = 4 * (qkv / chips);
        (rows * (2 * hidden / chips + 2 * hidden + mlp.max(attention))) as u64
    }

    /// Bytes of everything on one chip.
    pub fn chip_bytes(&self) -> u64 {
        self.weight_bytes() + self.cache_bytes() + self.activation_bytes()
    }

    /// Bytes of everything on all chips. The CPU's chips share what is
    /// replicated.
    pub fn total_bytes(&self) -> u64 {
        let chips = self.device.num_chips() as u64;
        let shared = if self.device.is_card() { 0 } else { self.replicated_bytes() };
        chips * self.chip_bytes() - (chips - 1) * shared
    }

    /// Bytes of weights on all chips.
    pub fn total_weight_bytes(&self) -> u64 {
        let chips = self.device.num_chips() as u64;
        let shared = if self.device.is_card() { 0 } else { self.replicated_bytes() };
        chips * self.weight_bytes() - (chips - 1) * shared
    }

    fn replicated_bytes(&self) -> u64 {
        let replicated = self.weights.iter().filter(|weight| weight.split == Split::Replicated);
        replicated.map(|weight| weight.bytes * weight.count as u64).sum()
    }

    /// Bytes of matrices that a chip reads in every decode step.
    pub fn step_bytes(&self) -> u64 {
        let matrices = self.weights.iter().filter(|weight| weight.read_each_step);
        matrices.map(|weight| weight.bytes * weight.count as u64).sum()
    }

    /// Upper bound of decoded tokens a second for one sequence of `context`
    /// tokens: bandwidth over the bytes that must be read. No measurement, and
    /// no chip reaches it. `None` for the CPU.
    pub fn decode_bound(&self, context: usize) -> Option<f64> {
        let cached = self.cache_bytes() as f64 * context as f64;
        let cached = cached / self.workload.kv_tokens.max(1) as f64;
        let bytes = self.step_bytes() as f64 + cached;
        (self.device.is_card() && bytes > 0.0).then(|| Device::DRAM_BANDWIDTH / bytes)
    }

    /// What crosses chips in one step, in order; nothing on one chip.
    pub fn collectives(&self) -> Vec<Collective> {
        if self.device.num_chips() == 1 {
            return Vec::new();
        }
        let (hidden, layers) = (self.config.hidden_size, self.config.num_hidden_layers);
        let of = |operation, of, width, count| Collective { operation, of, width, count };
        let mut all = vec![of("all_gather", "residual, for the attention norm", hidden, layers)];
        if self.output_projection == Split::Output {
            all.push(of("all_gather", "heads, before wo", self.config.query_size(), layers));
        } else {
            all.push(of("reduce_scatter", "attention output", hidden, layers));
        }
        all.push(of("all_gather", "residual, for the MLP norm", hidden, layers));
        all.push(of("reduce_scatter", "MLP output", hidden, layers));
        all.push(of("all_gather", "residual, for the last norm", hidden, 1));
        all.push(of("all_gather", "logits, to the host", self.config.vocab_size, 1));
        all
    }

    /// Bytes that a chip receives in the layers of one decode step: 32 rows of
    /// bf16, whatever the batch. Either collective brings a chip what the others
    /// have of a row.
    pub fn received_bytes(&self) -> u64 {
        let (chips, layers) = (self.device.num_chips(), self.config.num_hidden_layers);
        let per_layer = self.collectives().into_iter().filter(|c| c.count == layers && layers > 1);
        let widths = per_layer.map(|collective| collective.width * collective.count);
        let row_bytes = 2 * widths.sum::<usize>();
        (DECODE_ROWS * row_bytes * (chips - 1) / chips) as u64
    }

    /// Stored type of norm gains and rotary tables.
    fn gain_dtype(&self) -> DType {
        if self.device.is_card() { DType::Bf16 } else { DType::F32 }
    }
}

#[cfg(test)]
mod tests;
