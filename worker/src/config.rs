//! The worker's settings. Every default stands in `Default` and, with its
//! meaning, in `deploy/worker.toml`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use common::config::ConfigError;
use common::telemetry::TelemetryConfig;
use llama::DTypePolicy;
use serde::{Deserialize, Serialize};

use crate::listen::ListenAddress;

mod device;
mod ttnn;

pub use device::{DeviceEnvironment, DeviceKind, DispatchReport, MeshChoice};
pub use ttnn::{DispatchKind, TtnnConfig};

/// Prefix of the environment's settings.
pub const ENV_PREFIX: &str = "LLAMA_MESH_WORKER";

/// Most chips that a mesh here can have.
const MAX_CHIPS: u32 = 8;
/// Upper bound of `max_num_seqs`: far beyond where batching helps.
const MAX_NUM_SEQS: u32 = 1024;
/// Upper bound of `threads`.
const MAX_THREADS: u32 = 1024;
/// Tokens of a step on the CPU unless asked for.
const CPU_BATCHED_TOKENS: u32 = 256;
/// Most alternatives that one step may report, of all its sequences: they take
/// 8 bytes each, and go out in one message of at most 4 MiB.
const MAX_ALTERNATIVES: u32 = 1 << 18;

/// Settings of one worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerConfig {
    /// A GGUF file, or a directory with a checkpoint. `$LLAMA_DIR` stands in
    /// where it is unset.
    pub model: Option<PathBuf>,
    /// The name that clients use; the model's own where unset.
    pub served_model_name: Option<String>,
    /// Serve a Meta directory even if its path names another model of the
    /// family than its files hold.
    pub ignore_model_name: bool,
    /// `ADDRESS:PORT`, or `unix:/path`.
    pub listen: String,
    /// Listen on other than loopback without TLS, in a network that is trusted.
    pub insecure_listen: bool,
    /// Prometheus endpoint; none where unset.
    pub metrics_listen: Option<String>,
    /// What to run on.
    pub device: DeviceKind,
    /// Run the plan of `device` on simulated chips.
    pub simulate: bool,
    /// Degree of tensor parallelism; the device's where unset.
    pub chips: Option<u32>,
    /// Threads of the CPU mesh; all cores where unset.
    pub threads: Option<NonZeroUsize>,
    /// Number formats.
    pub optimizations: OptimizationsKind,
    /// Keep the packed weights beside the checkpoint for the next start.
    pub weight_cache: bool,
    /// Most tokens of a sequence; the model's own, as far as the device allows
    /// and the KV cache holds it, where unset.
    pub max_model_len: Option<u32>,
    /// Most sequences in one step.
    pub max_num_seqs: u32,
    /// Sequences accepted beyond those, so that a finished one is replaced
    /// without asking; a quarter of `max_num_seqs` where unset.
    pub max_waiting_seqs: Option<u32>,
    /// Most tokens in one step; 256 on the CPU, 2048 on a card where unset.
    pub max_num_batched_tokens: Option<u32>,
    /// Most alternatives reported beside a token.
    pub max_logprobs: u32,
    /// Find KV blocks again by content.
    pub prefix_cache: bool,
    /// Size of the KV cache.
    pub kv: KvConfig,
    /// Tenstorrent cards.
    pub ttnn: TtnnConfig,
    /// How long admitted sequences may take to finish when the worker stops.
    pub grace_ms: u64,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
}

/// Size of the KV cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KvConfig {
    /// Storage type; the optimizations' own where unset.
    pub dtype: Option<KvDType>,
    /// Tokens in a block.
    pub block_size: u32,
    /// Blocks; goes over `memory_mib`.
    pub blocks: Option<u32>,
    /// Memory to fill with blocks; where unset as much as `max_num_seqs`
    /// sequences of full length take, at most 1 GiB or half of what is free.
    pub memory_mib: Option<u64>,
}

/// Number formats; see `llama::DTypePolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum OptimizationsKind {
    /// The fewest bits that keep the model's answers.
    Performance,
    /// More bits where few cost most.
    Accuracy,
    /// bfloat16 throughout.
    Bf16,
    /// Single precision throughout.
    F32,
}

/// Storage type of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum KvDType {
    /// Single precision; for the optimizations `f32` alone.
    F32,
    /// bfloat16.
    Bf16,
    /// 16 values share an exponent.
    Bfp8,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            model: None,
            served_model_name: None,
            ignore_model_name: false,
            listen: "127.0.0.1:50051".to_owned(),
            insecure_listen: false,
            metrics_listen: None,
            device: DeviceKind::Auto,
            simulate: false,
            chips: None,
            threads: None,
            optimizations: OptimizationsKind::Performance,
            weight_cache: true,
            max_model_len: None,
            max_num_seqs: 32,
            max_waiting_seqs: None,
            max_num_batched_tokens: None,
            max_logprobs: 20,
            prefix_cache: true,
            kv: KvConfig::default(),
            ttnn: TtnnConfig::default(),
            grace_ms: 30_000,
            telemetry: TelemetryConfig::default(),
        }
    }
}

impl Default for KvConfig {
    fn default() -> Self {
        Self { dtype: None, block_size: 32, blocks: None, memory_mib: None }
    }
}

impl WorkerConfig {
    /// Checks every setting that can be checked without the model.
    ///
    /// # Errors
    /// Names the first key whose value cannot be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mesh = self.mesh()?;
        if mesh.is_card() {
            self.check_card(mesh.device())?;
        }
        if self.kv.dtype == Some(KvDType::F32) && self.optimizations != OptimizationsKind::F32 {
            let reason = "is f32, which only the optimizations f32 may have: use bf16 or bfp8";
            return Err(ConfigError::value("kv.dtype", reason));
        }
        self.listen_address()?;
        self.metrics_address()?;
        let at_least_one = [
            ("max_model_len", self.max_model_len),
            ("max_num_seqs", Some(self.max_num_seqs)),
            ("kv.blocks", self.kv.blocks),
            ("kv.block_size", Some(self.kv.block_size)),
        ];
        for (key, value) in at_least_one {
            if value == Some(0) {
                return Err(ConfigError::value(key, "is 0, it must be at least 1"));
            }
        }
        let threads = u32::try_from(self.num_threads()).unwrap_or(u32::MAX);
        let at_most = [
            ("threads", threads, MAX_THREADS),
            ("max_num_seqs", self.max_num_seqs, MAX_NUM_SEQS),
            ("max_waiting_seqs", self.max_waiting_seqs.unwrap_or_default(), MAX_NUM_SEQS),
            ("kv.block_size", self.kv.block_size, 1024),
            ("max_logprobs", self.max_logprobs, 1024),
        ];
        for (key, value, limit) in at_most {
            if value > limit {
                return Err(ConfigError::value(key, format!("is {value}, the most is {limit}")));
            }
        }
        let (alternatives, seqs) = (self.max_logprobs, self.max_num_seqs);
        if alternatives * seqs > MAX_ALTERNATIVES {
            let reason = format!(
                "is {alternatives}, with max_num_seqs = {seqs} the most is {}",
                MAX_ALTERNATIVES / seqs
            );
            return Err(ConfigError::value("max_logprobs", reason));
        }
        let budget = self.num_batched_tokens();
        if budget < seqs {
            let reason = format!("is {budget}, it must be at least max_num_seqs, {seqs}");
            return Err(ConfigError::value("max_num_batched_tokens", reason));
        }
        Ok(())
    }

    /// Where to serve gRPC.
    ///
    /// # Errors
    /// Text that is no address, or an address that others can reach without
    /// `insecure_listen`.
    pub fn listen_address(&self) -> Result<ListenAddress, ConfigError> {
        let address: ListenAddress =
            self.listen.parse().map_err(|reason: String| ConfigError::value("listen", reason))?;
        if !address.is_local() && !self.insecure_listen {
            let reason = format!(
                "is {address}, which other hosts can reach, and the worker has no TLS: listen on \
                 127.0.0.1 or unix:/path, or set insecure_listen (--insecure-listen) where the \
                 network is trusted"
            );
            return Err(ConfigError::value("listen", reason));
        }
        Ok(address)
    }

    /// Where to serve Prometheus, if anywhere. Metrics hold no prompt text and
    /// may be listened for on any address.
    ///
    /// # Errors
    /// Text that is no TCP address.
    pub fn metrics_address(&self) -> Result<Option<std::net::SocketAddr>, ConfigError> {
        let parse = |text: &String| {
            text.parse().map_err(|_| {
                ConfigError::value("metrics_listen", format!("is {text:?}, it must be IP:PORT"))
            })
        };
        self.metrics_listen.as_ref().map(parse).transpose()
    }

    /// The storage formats for `model`.
    #[must_use]
    pub fn policy(&self, model: &llama::LlamaConfig) -> DTypePolicy {
        let preset = DTypePolicy::choose(model, self.optimizations.into());
        match self.kv.dtype {
            Some(dtype) => DTypePolicy { kv_cache: dtype.into(), ..preset },
            None => preset,
        }
    }

    /// How long a drain may take.
    #[must_use]
    pub fn grace(&self) -> Duration {
        Duration::from_millis(self.grace_ms)
    }

    /// Sequences accepted beyond `max_num_seqs`.
    #[must_use]
    pub fn waiting_seqs(&self) -> u32 {
        self.max_waiting_seqs.unwrap_or(self.max_num_seqs.div_ceil(4))
    }

    /// Threads of the CPU mesh.
    #[must_use]
    pub fn num_threads(&self) -> usize {
        let all = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        self.threads.unwrap_or_else(all).get()
    }
}

impl From<OptimizationsKind> for llama::Optimizations {
    fn from(kind: OptimizationsKind) -> Self {
        match kind {
            OptimizationsKind::Performance => Self::Performance,
            OptimizationsKind::Accuracy => Self::Accuracy,
            OptimizationsKind::Bf16 => Self::Bf16,
            OptimizationsKind::F32 => Self::F32,
        }
    }
}

impl From<KvDType> for mesh::DType {
    fn from(dtype: KvDType) -> Self {
        match dtype {
            KvDType::F32 => Self::F32,
            KvDType::Bf16 => Self::Bf16,
            KvDType::Bfp8 => Self::Bfp8,
        }
    }
}

#[cfg(test)]
mod tests;
