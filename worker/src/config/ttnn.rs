//! Settings of Tenstorrent cards, and what a card asks of the others.

use std::path::PathBuf;
use std::time::Duration;

use common::config::ConfigError;
use llama::{Device, Dispatch};
use serde::{Deserialize, Serialize};

use super::{KvDType, OptimizationsKind, WorkerConfig};
use crate::owner_thread::StepBounds;

/// Whether this build can drive a card.
pub(super) const IN_THIS_BUILD: bool = cfg!(feature = "ttnn");

/// Sequences that a card decodes in one step.
const MAX_NUM_SEQS: u32 = 32;
/// Tokens of a tile, of which a block is made.
const TILE: u32 = 32;
/// Shortest prompt that a card computes.
const MIN_BATCHED_TOKENS: u32 = 128;
/// Tokens of a step unless asked for: a card reads a prompt in larger chunks
/// than the CPU, between two decodes of everybody else.
pub(super) const BATCHED_TOKENS: u32 = 2048;

/// Settings of Tenstorrent cards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TtnnConfig {
    /// Which cores dispatch commands; what `$WH_ARCH_YAML` says, else Ethernet,
    /// where unset.
    pub dispatch: Option<DispatchKind>,
    /// Folder with the Python package `ttnn`; where Python looks itself where
    /// unset.
    pub site_packages: Option<PathBuf>,
    /// Cluster descriptor whose mock devices are opened instead of cards;
    /// `$TT_METAL_MOCK_CLUSTER_DESC_PATH` where unset.
    pub mock: Option<PathBuf>,
    /// Folder of compiled kernels; the package's own where unset.
    pub kernel_cache: Option<PathBuf>,
    /// Folder of the locks by which workers of one host keep off each other's
    /// cards; `/run/lock`, or `/tmp`, where unset. Mock devices are locked only
    /// where it is set.
    pub lock_dir: Option<PathBuf>,
    /// How long a step of a known kind may take before the device is given up.
    pub step_timeout_ms: u64,
    /// The same for the first step of a kind, which may be compiled.
    pub compile_timeout_ms: u64,
    /// Command with its arguments that resets the cards, run when the device
    /// has failed, before the process ends; none where empty.
    pub reset_command: Vec<String>,
    /// How long that may take.
    pub reset_timeout_ms: u64,
}

/// Which cores dispatch commands to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum DispatchKind {
    /// Idle Ethernet cores.
    #[serde(alias = "ethernet")]
    #[value(alias = "ethernet")]
    Eth,
    /// A row of worker cores.
    Worker,
}

impl Default for TtnnConfig {
    fn default() -> Self {
        Self {
            dispatch: None,
            site_packages: None,
            mock: None,
            kernel_cache: None,
            lock_dir: None,
            step_timeout_ms: 30_000,
            compile_timeout_ms: 1_800_000,
            reset_command: Vec::new(),
            reset_timeout_ms: 120_000,
        }
    }
}

impl TtnnConfig {
    /// How long the device may take for a step.
    #[must_use]
    pub fn step_bounds(&self) -> StepBounds {
        let known = Duration::from_millis(self.step_timeout_ms);
        StepBounds { known, first: Duration::from_millis(self.compile_timeout_ms).max(known) }
    }

    /// How long a reset may take.
    #[must_use]
    pub fn reset_timeout(&self) -> Duration {
        Duration::from_millis(self.reset_timeout_ms)
    }
}

impl WorkerConfig {
    /// What `card` itself, not its simulation, asks of the settings.
    pub(super) fn check_card(&self, card: Device) -> Result<(), ConfigError> {
        let f32 = (self.optimizations == OptimizationsKind::F32, self.kv.dtype);
        if f32.0 || f32.1 == Some(KvDType::F32) {
            let reason =
                format!("f32 is for the CPU mesh: {card} computes with at most bf16, use bf16");
            let key = if f32.0 { "optimizations" } else { "kv.dtype" };
            return Err(ConfigError::value(key, reason));
        }
        let block_size = self.kv.block_size;
        if !block_size.is_multiple_of(TILE) {
            let reason = format!("is {block_size}, on {card} it must be a multiple of {TILE}");
            return Err(ConfigError::value("kv.block_size", reason));
        }
        let seqs = self.max_num_seqs;
        if seqs > MAX_NUM_SEQS {
            let reason = format!("is {seqs}, {card} decodes at most {MAX_NUM_SEQS} in a step");
            return Err(ConfigError::value("max_num_seqs", reason));
        }
        let tokens = self.num_batched_tokens();
        if tokens < MIN_BATCHED_TOKENS {
            let reason = format!("is {tokens}, on {card} it must be {MIN_BATCHED_TOKENS} or more");
            return Err(ConfigError::value("max_num_batched_tokens", reason));
        }
        if self.ttnn.step_timeout_ms == 0 {
            return Err(ConfigError::value("ttnn.step_timeout_ms", "is 0, it must be at least 1"));
        }
        Ok(())
    }

    /// Most tokens in one step, where unset by what computes them.
    #[must_use]
    pub fn num_batched_tokens(&self) -> u32 {
        let on_card = self.mesh().is_ok_and(|mesh| mesh.is_card());
        let unasked = if on_card { BATCHED_TOKENS } else { super::CPU_BATCHED_TOKENS };
        self.max_num_batched_tokens.unwrap_or(unasked)
    }
}

impl From<DispatchKind> for Dispatch {
    fn from(kind: DispatchKind) -> Self {
        match kind {
            DispatchKind::Eth => Self::Ethernet,
            DispatchKind::Worker => Self::Worker,
        }
    }
}

impl From<Dispatch> for DispatchKind {
    fn from(dispatch: Dispatch) -> Self {
        match dispatch {
            Dispatch::Ethernet => Self::Eth,
            Dispatch::Worker => Self::Worker,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(change: impl FnOnce(&mut WorkerConfig)) -> String {
        let mut config = WorkerConfig::default();
        change(&mut config);
        config.check_card(Device::N300).unwrap_err().to_string()
    }

    #[test]
    fn what_a_card_cannot_do_is_refused_by_name() {
        WorkerConfig::default().check_card(Device::N300).unwrap();
        let text = refusal(|config| config.optimizations = OptimizationsKind::F32);
        assert!(text.contains("optimizations f32 is for the CPU mesh"), "{text}");
        let text = refusal(|config| config.kv.dtype = Some(KvDType::F32));
        assert!(text.contains("kv.dtype f32 is for the CPU mesh"), "{text}");
        let text = refusal(|config| config.kv.block_size = 48);
        assert!(text.contains("48") && text.contains("multiple of 32"), "{text}");
        let text = refusal(|config| config.max_num_seqs = 33);
        assert!(text.contains("33") && text.contains("at most 32"), "{text}");
        let text = refusal(|config| config.max_num_batched_tokens = Some(64));
        assert!(text.contains("64") && text.contains("128"), "{text}");
        let text = refusal(|config| config.ttnn.step_timeout_ms = 0);
        assert!(text.contains("ttnn.step_timeout_ms"), "{text}");
    }

    #[test]
    fn the_first_step_of_a_kind_is_never_given_less_time() {
        let bounds = TtnnConfig::default().step_bounds();
        assert_eq!((bounds.known.as_secs(), bounds.first.as_secs()), (30, 1800));
        let short = TtnnConfig { compile_timeout_ms: 1, ..TtnnConfig::default() };
        assert_eq!(short.step_bounds().first, bounds.known);
    }
}
