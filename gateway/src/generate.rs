//! The spine: every request of every protocol goes through
//! [`Spine::generate`]. Read this first.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::GatewayError;
use crate::request::{PromptInput, RequestLimits, ValidRequest};
use crate::text_stream::TextStream;

/// When a client should come back if there is no worker.
const NO_WORKER_RETRY: Duration = Duration::from_secs(2);

/// The way of every request, of HTTP and gRPC alike; clones are one handle.
#[derive(Clone, Debug)]
pub struct Spine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    limits: RequestLimits,
}

impl Spine {
    /// Starts the answers of a request.
    ///
    /// # Errors
    /// Whatever keeps the request from being queued: a prompt that does not
    /// fit, a full queue, no worker, a drain.
    pub async fn generate(
        &self,
        _request: ValidRequest,
        _ctx: RequestContext,
    ) -> Result<TextStream, GatewayError> {
        Err(GatewayError::NoWorker { retry_after: NO_WORKER_RETRY })
    }

    /// The ids that a prompt becomes. `add_special_tokens` (default: true for
    /// text, false for messages, whose template has its own) puts the
    /// beginning-of-text id in front.
    ///
    /// # Errors
    /// As for a prompt of a request.
    pub async fn tokenize(
        &self,
        _input: PromptInput,
        _add_special_tokens: Option<bool>,
    ) -> Result<Vec<u32>, GatewayError> {
        Err(GatewayError::NoWorker { retry_after: NO_WORKER_RETRY })
    }

    /// The text of these ids, special tokens by name.
    ///
    /// # Errors
    /// An id outside the vocabulary, or more ids than the context holds.
    pub async fn detokenize(&self, _ids: Vec<i64>) -> Result<String, GatewayError> {
        Err(GatewayError::NoWorker { retry_after: NO_WORKER_RETRY })
    }

    /// The served models.
    pub fn models(&self) -> Vec<ModelInfo> {
        Vec::new()
    }

    /// Whether a request would be taken now.
    pub fn readiness(&self) -> Readiness {
        Readiness { ready: false, reason: "starting".into(), workers: Vec::new() }
    }

    /// What a request may ask at most.
    pub fn limits(&self) -> &RequestLimits {
        &self.inner.limits
    }

    /// Most tokens of prompt and answer together that a worker takes now.
    pub fn max_model_len(&self) -> u32 {
        self.inner.limits.max_model_len
    }
}

/// What accompanies a request besides its content.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// For logs, traces and the client.
    pub request_id: String,
    /// The request's span; children are made under it and its attributes filled.
    pub span: tracing::Span,
    /// When the request's head arrived.
    pub received: Instant,
}

/// One served model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// Name that clients use.
    pub id: String,
    /// Most tokens of prompt and answer together.
    pub max_model_len: u32,
    /// Workers that are ready.
    pub num_workers: u32,
    /// Where the chat template comes from.
    pub chat_template: String,
    /// Seconds since the epoch when the gateway loaded it.
    pub created_unix_s: u64,
}

/// Whether the gateway can serve, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// Whether a request would be taken now.
    pub ready: bool,
    /// For people.
    pub reason: String,
    /// Every known worker.
    pub workers: Vec<WorkerInfo>,
}

/// One worker as the gateway sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerInfo {
    /// Where it is.
    pub endpoint: String,
    /// `connecting`, `ready`, `draining` or `down`.
    pub state: &'static str,
    /// Why it is not ready.
    pub reason: String,
    /// For example `CPU`; empty until it has described itself.
    pub device: String,
    /// Sequences of this gateway on it.
    pub num_running: u32,
}
