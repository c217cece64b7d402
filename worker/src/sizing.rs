//! What fits: how long sequences may be and how large the KV cache is, and the
//! refusal of what does not fit, before a weight is read.
//!
//! Two memories bound a simulated device: a chip's own DRAM, as if it were
//! real, and this machine's, which holds every chip. A real card is bound by its
//! own alone.

use common::config::ConfigError;
use llama::{Device, DevicePlan, DoesNotFit, LlamaConfig, Workload};

use crate::config::{MeshChoice, WorkerConfig};
use crate::error::WorkerError;
use crate::identity::Limits;

/// Most memory that the KV cache takes unasked.
const DEFAULT_KV_BYTES: u64 = 1 << 30;

/// This machine's memory, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HostMemory {
    /// Bytes that this process may still take; `None` where nobody says.
    pub(crate) available: Option<u64>,
    /// The weights are mapped from a file, whose pages the kernel may drop and
    /// read again: they need not fit.
    pub(crate) weights_are_mapped: bool,
}

/// Sizes the KV cache, and sequences by it, for `model` on `mesh`.
///
/// # Errors
/// By what would help, with the numbers: other settings, another device, a
/// larger machine.
pub(crate) fn limits(
    config: &WorkerConfig,
    model: &LlamaConfig,
    mesh: MeshChoice,
    host: HostMemory,
) -> Result<Limits, WorkerError> {
    let sizing = Sizing::new(config, model, mesh, host)?;
    let block_size = u64::from(config.kv.block_size);
    let limit = sizing.on(mesh.device(), 1, 0)?.context_limit() as u64;
    let wanted_len = config.max_model_len.map_or(limit, u64::from);
    if wanted_len > limit {
        return Err(too_long(wanted_len, limit, model, mesh).into());
    }
    let num_blocks = match (config.kv.blocks, config.kv.memory_mib) {
        (Some(blocks), _) => u64::from(blocks),
        (None, Some(mib)) => mib.saturating_mul(1 << 20) / sizing.block_bytes()?,
        (None, None) => {
            let useful = wanted_len.div_ceil(block_size) * u64::from(config.max_num_seqs);
            useful.min(sizing.spare_blocks(wanted_len)?)
        }
    };
    let num_kv_blocks = u32::try_from(num_blocks).unwrap_or(u32::MAX);
    let cache_len = u64::from(num_kv_blocks) * block_size;
    let max_model_len = wanted_len.min(cache_len);
    // The memory first: where it is short, a longer cache is no advice.
    sizing.check(max_model_len.max(1), u64::from(num_kv_blocks.max(1)))?;
    if config.max_model_len.is_some() && wanted_len > cache_len || cache_len == 0 {
        let reason = format!(
            "is {wanted_len}, the KV cache of {num_kv_blocks} blocks of {block_size} tokens \
             holds {cache_len}: set kv.blocks or kv.memory_mib higher, or max_model_len lower"
        );
        return Err(ConfigError::value("max_model_len", reason).into());
    }
    Ok(Limits {
        max_model_len: u32::try_from(max_model_len).unwrap_or(u32::MAX),
        max_num_seqs: config.max_num_seqs,
        max_num_batched_tokens: config.num_batched_tokens(),
        num_kv_blocks,
        kv_block_size: config.kv.block_size,
        max_logprobs: config.max_logprobs,
    })
}

/// The table's limit is the device's, any other the model's own.
fn too_long(wanted: u64, limit: u64, model: &LlamaConfig, mesh: MeshChoice) -> ConfigError {
    let reason = if limit < model.max_position_embeddings as u64 {
        format!("is {wanted}, the most for this model on {} is {limit}", mesh.device())
    } else {
        format!("is {wanted}, the model was made for {limit}")
    };
    ConfigError::value("max_model_len", reason)
}

/// The same numbers for every question.
struct Sizing<'a> {
    config: &'a WorkerConfig,
    model: &'a LlamaConfig,
    /// The card that is simulated or used, if one is.
    card: Option<Device>,
    /// The chips that compute, where they are this machine's.
    cpu: Option<Device>,
    host: HostMemory,
}

impl<'a> Sizing<'a> {
    fn new(
        config: &'a WorkerConfig,
        model: &'a LlamaConfig,
        mesh: MeshChoice,
        host: HostMemory,
    ) -> Result<Self, WorkerError> {
        let (card, cpu) = match mesh {
            MeshChoice::Cpu { num_chips, simulates } => {
                (simulates, Some(Device::Cpu { num_chips: num_chips as usize }))
            }
            MeshChoice::Card { device, .. } => (Some(device), None),
        };
        let sizing = Self { config, model, card, cpu, host };
        // For its error, which says how many chips would do.
        sizing.on(cpu.unwrap_or(mesh.device()), 1, 0)?;
        Ok(sizing)
    }

    /// The plan on `device` with a KV cache of `blocks`.
    fn on(
        &self,
        device: Device,
        max_model_len: u64,
        blocks: u64,
    ) -> Result<DevicePlan, WorkerError> {
        let kv_block_size = self.config.kv.block_size as usize;
        let workload = Workload {
            max_model_len: usize::try_from(max_model_len).unwrap_or(usize::MAX),
            kv_tokens: usize::try_from(blocks).unwrap_or(usize::MAX).saturating_mul(kv_block_size),
            kv_block_size,
            prefill_chunk: self.config.num_batched_tokens() as usize,
        };
        Ok(DevicePlan::new(self.model, device, self.config.policy(self.model), workload)?)
    }

    /// Memory of one block over all layers and chips, in bytes, padding included.
    fn block_bytes(&self) -> Result<u64, WorkerError> {
        let computes = self.cpu.or(self.card).expect("a mesh is one or the other");
        let chips = computes.num_chips() as u64;
        Ok((self.on(computes, 1, 1)?.cache_bytes() * chips).max(1))
    }

    /// Blocks of the cache that is made unasked: here at most 1 GiB, half of what
    /// is free, and what the weights leave; what they leave on the card.
    fn spare_blocks(&self, max_model_len: u64) -> Result<u64, WorkerError> {
        let mut blocks = u64::MAX;
        if let Some(cpu) = self.cpu {
            let free = self.host.available.unwrap_or(DEFAULT_KV_BYTES * 2);
            let mut bytes = DEFAULT_KV_BYTES.min(free / 2);
            if self.host.available.is_some() {
                let without = self.on(cpu, max_model_len, 0)?;
                bytes = bytes.min(free.saturating_sub(self.held(&without)));
            }
            blocks = bytes / self.block_bytes()?;
        }
        if let Some((card, memory)) = self.card.and_then(|card| Some((card, card.chip_memory()?))) {
            let without = self.on(card, max_model_len, 0)?.chip_bytes();
            let block = self.on(card, max_model_len, 1)?.cache_bytes().max(1);
            let on_card = memory.saturating_sub(without) / block;
            blocks = blocks.min(on_card.saturating_sub(self.num_spare_blocks()));
        }
        Ok(blocks)
    }

    /// A card keeps one block for what nobody is to read.
    fn num_spare_blocks(&self) -> u64 {
        u64::from(self.cpu.is_none())
    }

    /// Bytes of this machine's memory that cannot be given back.
    fn held(&self, plan: &DevicePlan) -> u64 {
        let mapped = if self.host.weights_are_mapped { plan.total_weight_bytes() } else { 0 };
        plan.total_bytes() - mapped
    }

    fn check(&self, max_model_len: u64, blocks: u64) -> Result<(), WorkerError> {
        if let Some(card) = self.card {
            self.on(card, max_model_len, blocks + self.num_spare_blocks())?.check(None)?;
        }
        let Some(cpu) = self.cpu else { return Ok(()) };
        let plan = self.on(cpu, max_model_len, blocks)?;
        let mapped = if self.host.weights_are_mapped { plan.total_weight_bytes() } else { 0 };
        let available = self.host.available.map(|bytes| bytes.saturating_add(mapped));
        let result: Result<(), DoesNotFit> = plan.check(available);
        Ok(result?)
    }
}

#[cfg(test)]
mod tests;
