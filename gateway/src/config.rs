//! The gateway's settings: one struct a room, every default in `Default`, and
//! the same keys in the file, the environment and on the command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use common::config::ConfigError;
use common::telemetry::TelemetryConfig;
use serde::{Deserialize, Serialize};

use crate::listener::ConnectionBudget;
use crate::request::RequestLimits;
use crate::scheduler::queue::QueueBounds;
use crate::scheduler::state::SchedulerConfig;
use crate::worker_pool::PoolConfig;

/// Prefix of the environment's settings.
pub const ENV_PREFIX: &str = "LLAMA_MESH_GATEWAY";

/// Most prompts, answers and the like that a limit may allow.
const MAX_LIMIT: u32 = 1 << 20;
/// Most that `limits.max_n` may allow.
const MAX_N: u32 = 128;

/// Settings of one gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayConfig {
    /// A GGUF file, or a directory with a checkpoint, for its tokenizer and
    /// template. `$LLAMA_DIR` stands in where it is unset.
    pub model: Option<PathBuf>,
    /// The name that clients use; the model's own where unset.
    pub served_model_name: Option<String>,
    /// Workers: `http://HOST:PORT`, `HOST:PORT` or `unix:/path`. May be empty:
    /// then nothing can be served.
    pub workers: Vec<String>,
    /// How patiently workers are treated.
    pub pool: PoolSettings,
    /// Ports and connections.
    pub listen: ListenConfig,
    /// What one request may ask at most.
    pub limits: LimitsConfig,
    /// The queue.
    pub queue: QueueConfig,
    /// The end.
    pub shutdown: ShutdownConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
}

/// Ports and connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenConfig {
    /// HTTP, and gRPC beside it; port 0 picks a free one.
    pub http: SocketAddr,
    /// gRPC alone, if wanted.
    pub grpc: Option<SocketAddr>,
    /// Host names that are answered to besides addresses and `localhost`; `*`
    /// is all. Empty: none on loopback, all elsewhere.
    pub allowed_hosts: Vec<String>,
    /// Largest request body, and largest gRPC message.
    pub max_body_bytes: usize,
    /// Most bytes of bodies that are being read, together.
    pub max_total_body_bytes: usize,
    /// Most connections of one port.
    pub max_connections: usize,
    /// Most connections from one address.
    pub max_connections_per_ip: usize,
    /// From a connection to its first byte.
    pub first_byte_timeout_ms: u64,
    /// From a request head's first byte to its last.
    pub head_timeout_ms: u64,
    /// Between two requests of an HTTP/1 connection.
    pub idle_timeout_ms: u64,
    /// Without progress while there is something to send.
    pub write_timeout_ms: u64,
    /// After this a connection takes no further requests.
    pub max_connection_age_ms: u64,
}

/// How patiently workers are treated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolSettings {
    /// Longest wait for a connection.
    pub connect_timeout_ms: u64,
    /// A worker that says nothing for so long is down.
    pub silence_timeout_ms: u64,
    /// A worker with work whose step counter stands still for so long is down:
    /// 10 s suits the CPU mesh, 2 s a card.
    pub stall_timeout_ms: u64,
}

/// What one request may ask at most.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Tokens of prompt and answer together; the model's own, as far as its
    /// workers have it, where unset.
    pub max_model_len: Option<u32>,
    /// Answers per prompt.
    pub max_n: u32,
    /// Prompts of one completion request.
    pub max_prompts: u32,
    /// Answers of one request, over all its prompts.
    pub max_sequences: u32,
    /// Messages of a conversation.
    pub max_messages: u32,
    /// Stop strings, and stop ids.
    pub max_stop: u32,
    /// Bytes of a stop string.
    pub max_stop_bytes: u32,
    /// Entries of `logit_bias`.
    pub max_logit_bias: u32,
    /// Alternatives beside a token.
    pub max_logprobs: u32,
}

/// The queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueConfig {
    /// Sequences that may wait; past that, 429 at once.
    pub max_waiting_sequences: u32,
    /// Tokens (of prompts, and asked for) that may wait.
    pub max_waiting_tokens: u64,
    /// Longest wait.
    pub max_wait_ms: u64,
    /// How long a request waits for a worker to come (back).
    pub worker_wait_ms: u64,
    /// How long a client may leave a full stream unread.
    pub slow_client_ms: u64,
}

/// The end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShutdownConfig {
    /// How long requests in flight may take to end.
    pub grace_seconds: u64,
}

impl Default for ListenConfig {
    fn default() -> Self {
        let budget = ConnectionBudget::default();
        let ms = |duration: Duration| duration.as_millis() as u64;
        Self {
            http: SocketAddr::from(([127, 0, 0, 1], 8000)),
            grpc: None,
            allowed_hosts: Vec::new(),
            max_body_bytes: 8 << 20,
            max_total_body_bytes: 256 << 20,
            max_connections: budget.max_connections,
            max_connections_per_ip: budget.max_connections_per_ip,
            first_byte_timeout_ms: ms(budget.first_byte_timeout),
            head_timeout_ms: ms(budget.head_timeout),
            idle_timeout_ms: ms(budget.idle_timeout),
            write_timeout_ms: ms(budget.write_timeout),
            max_connection_age_ms: ms(budget.max_age),
        }
    }
}

impl Default for PoolSettings {
    fn default() -> Self {
        let pool = PoolConfig::new(Vec::new(), "");
        let ms = |duration: Duration| duration.as_millis() as u64;
        Self {
            connect_timeout_ms: ms(pool.connect_timeout),
            silence_timeout_ms: ms(pool.silence_timeout),
            stall_timeout_ms: ms(pool.stall_timeout),
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let limits = RequestLimits::new("", 0, 0);
        Self {
            max_model_len: None,
            max_n: limits.max_n,
            max_prompts: limits.max_prompts as u32,
            max_sequences: limits.max_sequences,
            max_messages: limits.max_messages as u32,
            max_stop: limits.max_stop as u32,
            max_stop_bytes: limits.max_stop_bytes as u32,
            max_logit_bias: limits.max_logit_bias as u32,
            max_logprobs: limits.max_logprobs,
        }
    }
}

impl Default for QueueConfig {
    fn default() -> Self {
        let scheduler = SchedulerConfig::default();
        let ms = |duration: Duration| duration.as_millis() as u64;
        Self {
            max_waiting_sequences: scheduler.queue.max_sequences as u32,
            max_waiting_tokens: scheduler.queue.max_tokens,
            max_wait_ms: ms(scheduler.max_queue_wait),
            worker_wait_ms: ms(scheduler.worker_wait),
            slow_client_ms: ms(scheduler.slow_client),
        }
    }
}

impl Default for ShutdownConfig {
    fn default() -> Self {
        Self { grace_seconds: 30 }
    }
}

impl GatewayConfig {
    /// Checks what types cannot say.
    ///
    /// # Errors
    /// The first value that cannot be used, by its key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (i, endpoint) in self.workers.iter().enumerate() {
            check_endpoint(endpoint)
                .map_err(|reason| ConfigError::value(format!("workers[{i}]"), reason))?;
        }
        if self.served_model_name.as_ref().is_some_and(String::is_empty) {
            return Err(ConfigError::value("served_model_name", "is empty"));
        }
        for (key, ms) in [
            ("pool.connect_timeout_ms", self.pool.connect_timeout_ms),
            ("pool.silence_timeout_ms", self.pool.silence_timeout_ms),
            ("pool.stall_timeout_ms", self.pool.stall_timeout_ms),
        ] {
            within(key, ms, 100, 3600 * 1000)?;
        }
        self.listen.validate()?;
        self.limits.validate()?;
        self.queue.validate()?;
        within("shutdown.grace_seconds", self.shutdown.grace_seconds, 0, 3600)
    }
}

impl GatewayConfig {
    /// The workers to reach, for the gateway of that name.
    pub fn pool(&self, gateway_id: String) -> PoolConfig {
        let endpoint = |endpoint: &String| match endpoint.contains("://") {
            true => endpoint.clone(),
            false if endpoint.starts_with("unix:") => endpoint.clone(),
            false => format!("http://{endpoint}"),
        };
        let endpoints = self.workers.iter().map(endpoint).collect();
        PoolConfig {
            connect_timeout: Duration::from_millis(self.pool.connect_timeout_ms),
            silence_timeout: Duration::from_millis(self.pool.silence_timeout_ms),
            stall_timeout: Duration::from_millis(self.pool.stall_timeout_ms),
            ..PoolConfig::new(endpoints, gateway_id)
        }
    }
}

impl ListenConfig {
    /// Bounds on connections.
    pub(crate) fn budget(&self) -> ConnectionBudget {
        ConnectionBudget {
            max_connections: self.max_connections,
            max_connections_per_ip: self.max_connections_per_ip,
            first_byte_timeout: Duration::from_millis(self.first_byte_timeout_ms),
            head_timeout: Duration::from_millis(self.head_timeout_ms),
            idle_timeout: Duration::from_millis(self.idle_timeout_ms),
            write_timeout: Duration::from_millis(self.write_timeout_ms),
            max_age: Duration::from_millis(self.max_connection_age_ms),
            ..ConnectionBudget::default()
        }
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let body = self.max_body_bytes as u64;
        within("listen.max_body_bytes", body, 1024, 1 << 30)?;
        let total = self.max_total_body_bytes as u64;
        within("listen.max_total_body_bytes", total, body, 1 << 40)?;
        within("listen.max_connections", self.max_connections as u64, 1, 1 << 20)?;
        let per_ip = self.max_connections_per_ip as u64;
        within("listen.max_connections_per_ip", per_ip, 1, 1 << 20)?;
        for (key, ms) in [
            ("listen.first_byte_timeout_ms", self.first_byte_timeout_ms),
            ("listen.head_timeout_ms", self.head_timeout_ms),
            ("listen.idle_timeout_ms", self.idle_timeout_ms),
            ("listen.write_timeout_ms", self.write_timeout_ms),
            ("listen.max_connection_age_ms", self.max_connection_age_ms),
        ] {
            within(key, ms, 1, 7 * 24 * 3600 * 1000)?;
        }
        if let Some(empty) = self.allowed_hosts.iter().position(String::is_empty) {
            return Err(ConfigError::value(format!("listen.allowed_hosts[{empty}]"), "is empty"));
        }
        Ok(())
    }
}

impl LimitsConfig {
    /// Writes these limits over those of a model.
    pub fn apply(&self, limits: &mut RequestLimits) {
        if let Some(max_model_len) = self.max_model_len {
            limits.max_model_len = limits.max_model_len.min(max_model_len);
        }
        limits.max_n = self.max_n;
        limits.max_prompts = self.max_prompts as usize;
        limits.max_sequences = self.max_sequences;
        limits.max_messages = self.max_messages as usize;
        limits.max_stop = self.max_stop as usize;
        limits.max_stop_bytes = self.max_stop_bytes as usize;
        limits.max_logit_bias = self.max_logit_bias as usize;
        limits.max_logprobs = self.max_logprobs;
    }

    fn validate(&self) -> Result<(), ConfigError> {
        if let Some(max_model_len) = self.max_model_len {
            within("limits.max_model_len", max_model_len.into(), 1, u32::MAX.into())?;
        }
        within("limits.max_n", self.max_n.into(), 1, MAX_N.into())?;
        within("limits.max_stop_bytes", self.max_stop_bytes.into(), 1, 65_536)?;
        for (key, value, least) in [
            ("limits.max_prompts", self.max_prompts, 1),
            ("limits.max_sequences", self.max_sequences, 1),
            ("limits.max_messages", self.max_messages, 1),
            ("limits.max_stop", self.max_stop, 0),
            ("limits.max_logit_bias", self.max_logit_bias, 0),
            ("limits.max_logprobs", self.max_logprobs, 0),
        ] {
            within(key, value.into(), least, MAX_LIMIT.into())?;
        }
        Ok(())
    }
}

impl QueueConfig {
    /// The scheduler's numbers.
    pub fn scheduler(&self) -> SchedulerConfig {
        SchedulerConfig {
            queue: QueueBounds {
                max_sequences: self.max_waiting_sequences as usize,
                max_tokens: self.max_waiting_tokens,
            },
            max_queue_wait: Duration::from_millis(self.max_wait_ms),
            worker_wait: Duration::from_millis(self.worker_wait_ms),
            slow_client: Duration::from_millis(self.slow_client_ms),
            ..SchedulerConfig::default()
        }
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let sequences = self.max_waiting_sequences.into();
        within("queue.max_waiting_sequences", sequences, 1, MAX_LIMIT.into())?;
        within("queue.max_waiting_tokens", self.max_waiting_tokens, 1, 1 << 40)?;
        for (key, ms) in [
            ("queue.max_wait_ms", self.max_wait_ms),
            ("queue.worker_wait_ms", self.worker_wait_ms),
            ("queue.slow_client_ms", self.slow_client_ms),
        ] {
            within(key, ms, 1, 24 * 3600 * 1000)?;
        }
        Ok(())
    }
}

fn within(key: &str, value: u64, least: u64, most: u64) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::value(key, format!("is {value}, it must be {least} to {most}")))
}

fn check_endpoint(endpoint: &str) -> Result<(), String> {
    if let Some(path) = endpoint.strip_prefix("unix:") {
        return match path.is_empty() {
            true => Err("names no socket".to_owned()),
            false => Ok(()),
        };
    }
    let address = endpoint.strip_prefix("http://").unwrap_or(endpoint);
    let port = address.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>()));
    match port {
        Some((host, Ok(1..))) if !host.is_empty() && !host.contains('/') => Ok(()),
        _ => Err(format!("is {endpoint:?}, it must be HOST:PORT, http://HOST:PORT or unix:/path")),
    }
}

#[cfg(test)]
mod tests;
