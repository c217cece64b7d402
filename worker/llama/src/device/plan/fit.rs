//! Whether a plan fits its device, and what would.

use std::fmt;

use mesh::DType;

use super::{DevicePlan, Workload};
use crate::device::Device;
use crate::policy::{DTypePolicy, Optimizations};

/// Contexts shorter than this are no advice.
const SHORT_CONTEXT: usize = 512;

/// A plan that a device cannot hold. The text has the numbers and says what
/// would fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DoesNotFit {
    /// Longer sequences than the device's table, or the model, allows.
    #[error("max_model_len is {max_model_len}, the most on {device} is {limit}{}", Longer(longer))]
    Context {
        /// What was asked for.
        max_model_len: usize,
        /// The device.
        device: String,
        /// The most.
        limit: usize,
        /// Devices that allow as much.
        longer: Vec<String>,
    },
    /// More bytes than there are.
    #[error(
        "the model needs {} {place} and there are {}: weights {}, KV cache of {kv_tokens} tokens \
         {}, activations {}. {}",
        bytes_text(*needed), bytes_text(*available), bytes_text(*weights), bytes_text(*caches),
        bytes_text(*activations), Advice(advice)
    )]
    Memory {
        /// "on each chip of N300", or "of this machine's memory".
        place: String,
        /// Bytes in all.
        needed: u64,
        /// Bytes that there are.
        available: u64,
        /// Of which for weights,
        weights: u64,
        /// for keys and values,
        caches: u64,
        /// and for activations.
        activations: u64,
        /// Tokens that the caches hold.
        kv_tokens: usize,
        /// Settings with which it would fit.
        advice: Vec<String>,
    },
}

impl DevicePlan {
    /// Checks the context against the device's table, and the bytes against a
    /// chip's memory, or on the CPU against `host_memory`, where it is known.
    ///
    /// # Errors
    /// [`DoesNotFit`] says what would fit.
    pub fn check(&self, host_memory: Option<u64>) -> Result<(), DoesNotFit> {
        let (max_model_len, limit) = (self.workload.max_model_len, self.context_limit());
        if max_model_len > limit {
            let longer = self.larger().filter(|plan| plan.context_limit() >= max_model_len);
            let longer = longer.map(|plan| plan.device.to_string()).collect();
            let device = self.device.to_string();
            return Err(DoesNotFit::Context { max_model_len, device, limit, longer });
        }
        let Some(available) = self.memory(host_memory) else { return Ok(()) };
        if self.needed() <= available {
            return Ok(());
        }
        let is_card = self.device.is_card();
        Err(DoesNotFit::Memory {
            place: match is_card {
                true => format!("on each chip of {}", self.device),
                false => "of this machine's memory".to_owned(),
            },
            needed: self.needed(),
            available,
            weights: if is_card { self.weight_bytes() } else { self.total_weight_bytes() },
            caches: self.cache_bytes() * self.holders(),
            activations: self.activation_bytes() * self.holders(),
            kv_tokens: self.workload.kv_tokens,
            advice: self.advice(host_memory),
        })
    }

    /// The longest context that fits, every other number as it is and with KV
    /// for `max_num_seqs` sequences of that length; 0 when the weights alone do
    /// not fit.
    pub fn longest_context(&self, max_num_seqs: usize, host_memory: Option<u64>) -> usize {
        let Some(available) = self.memory(host_memory) else { return self.context_limit() };
        let block = self.workload.kv_block_size.max(1);
        let fits = |blocks: usize| {
            let max_model_len = blocks * block;
            let kv_tokens = max_model_len * max_num_seqs.max(1);
            self.with(self.policy, Workload { max_model_len, kv_tokens, ..self.workload })
                .is_some_and(|plan| plan.needed() <= available)
        };
        // Bytes grow with the length: the last that fits lies between.
        let (mut low, mut high) = (0, self.context_limit() / block);
        while low < high {
            let middle = (low + high).div_ceil(2);
            if fits(middle) { low = middle } else { high = middle - 1 }
        }
        low * block
    }

    /// Bytes that there are: of a chip, or of the host.
    pub fn memory(&self, host_memory: Option<u64>) -> Option<u64> {
        self.device.chip_memory().or(host_memory)
    }

    /// Bytes that are needed where [`DevicePlan::memory`] counts them.
    pub fn needed(&self) -> u64 {
        if self.device.is_card() { self.chip_bytes() } else { self.total_bytes() }
    }

    /// Chips whose bytes count together.
    fn holders(&self) -> u64 {
        if self.device.is_card() { 1 } else { self.device.num_chips() as u64 }
    }

    fn with(&self, policy: DTypePolicy, workload: Workload) -> Option<Self> {
        Self::new(&self.config, self.device, policy, workload).ok()
    }

    /// The same model on every card with more chips that it can be cut for.
    fn larger(&self) -> impl Iterator<Item = Self> + '_ {
        let own = if self.device.is_card() { self.device.num_chips() } else { usize::MAX };
        let larger = Device::CARDS.into_iter().filter(move |card| card.num_chips() > own);
        larger.filter_map(|card| Self::new(&self.config, card, self.policy, self.workload).ok())
    }

    fn advice(&self, host_memory: Option<u64>) -> Vec<String> {
        let fits = |plan: &Self| {
            plan.memory(host_memory).is_none_or(|available| plan.needed() <= available)
        };
        let fits_with = |policy| self.with(policy, self.workload).is_some_and(|plan| fits(&plan));
        let mut advice = Vec::new();
        let kv_cache = self.policy.kv_cache;
        let smaller = DTypePolicy {
            kv_cache,
            ..DTypePolicy::choose(&self.config, Optimizations::Performance)
        };
        if smaller != self.policy && fits_with(smaller) {
            advice.push("--optimizations performance".to_owned());
        }
        let bfp8 = DTypePolicy { kv_cache: DType::Bfp8, ..self.policy };
        if kv_cache != DType::Bfp8 && fits_with(bfp8) {
            advice.push("--kv-dtype bfp8".to_owned());
        }
        let shorter = self.longest_context(1, host_memory);
        let fewer = self.workload.kv_tokens > shorter;
        if shorter >= SHORT_CONTEXT && fewer {
            advice.push(format!("a KV cache of {shorter} tokens"));
        }
        advice.extend(self.larger().filter(fits).map(|plan| format!("--device {}", plan.device)));
        advice
    }
}

/// Bytes as people read them: GB of 1e9 bytes, as device memory is sold.
pub fn bytes_text(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// "; N300 and T3K allow it".
struct Longer<'a>(&'a [String]);

impl fmt::Display for Longer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => Ok(()),
            [one] => write!(f, "; {one} allows it"),
            several => write!(f, "; {} allow it", several.join(" and ")),
        }
    }
}

/// "It fits with a, or b".
struct Advice<'a>(&'a [String]);

impl fmt::Display for Advice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("No other setting makes it fit"),
            advice => write!(f, "It fits with {}", advice.join(", or ")),
        }
    }
}
