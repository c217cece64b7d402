//! What the endpoints answer, as OpenAI and vLLM spell it.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Map, Value};

/// Of every completion reply, so that clients can tell versions apart.
pub(crate) const SYSTEM_FINGERPRINT: &str = concat!("fp_llama_mesh_", env!("CARGO_PKG_VERSION"));

/// What all replies and events of one request have in common.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// `chatcmpl-...` or `cmpl-...`.
    pub(crate) id: String,
    /// Seconds since the epoch.
    pub(crate) created: u64,
    pub(crate) model: String,
}

impl Identity {
    /// A fresh one, made now.
    pub(crate) fn new(prefix: &str, model: &str) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            id: format!("{prefix}-{}", uuid::Uuid::new_v4().simple()),
            // A clock before 1970 is no reason to refuse an answer.
            created: since.map_or(0, |since| since.as_secs()),
            model: model.to_owned(),
        }
    }
}

impl ChatChunkChoice {
    /// A chunk with nothing but a delta.
    pub(crate) fn new(index: u32, delta: ChatDelta) -> Self {
        Self {
            index,
            delta,
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
            token_ids: None,
        }
    }
}

/// A whole reply, or one event of a stream.
#[derive(Debug, Serialize)]
pub(crate) struct Reply<'a, C> {
    pub(crate) id: &'a str,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: &'a str,
    pub(crate) system_fingerprint: &'static str,
    pub(crate) choices: Vec<C>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<UsageBody>,
    /// vLLM's, beside the choices in a chat reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_token_ids: Option<Vec<u32>>,
}

/// Token counts.
#[derive(Debug, Serialize)]
pub(crate) struct UsageBody {
    pub(crate) prompt_tokens: u32,
    pub(crate) completion_tokens: u32,
    pub(crate) total_tokens: u32,
    pub(crate) prompt_tokens_details: PromptTokensDetails,
    /// Ours: where the time went.
    pub(crate) timings: TimingsBody,
}

#[derive(Debug, Serialize)]
pub(crate) struct PromptTokensDetails {
    pub(crate) cached_tokens: u32,
}

/// Milliseconds.
#[derive(Debug, Serialize)]
pub(crate) struct TimingsBody {
    pub(crate) tokenize_ms: f64,
    pub(crate) queue_ms: f64,
    pub(crate) ttft_ms: f64,
    pub(crate) prefill_ms: f64,
    pub(crate) decode_ms: f64,
    pub(crate) total_ms: f64,
}

/// One answer of a chat.
#[derive(Debug, Serialize)]
pub(crate) struct ChatChoice {
    pub(crate) index: u32,
    pub(crate) message: AssistantMessage,
    pub(crate) logprobs: Option<ChatLogprobs>,
    pub(crate) finish_reason: &'static str,
    /// vLLM's: the stop string or id that ended it.
    pub(crate) stop_reason: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Serialize)]
pub(crate) struct AssistantMessage {
    pub(crate) role: &'static str,
    pub(crate) content: String,
    pub(crate) refusal: Option<String>,
}

/// What is new of one answer of a chat.
#[derive(Debug, Serialize)]
pub(crate) struct ChatChunkChoice {
    pub(crate) index: u32,
    pub(crate) delta: ChatDelta,
    pub(crate) logprobs: Option<ChatLogprobs>,
    pub(crate) finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stop_reason: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct ChatDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ChatLogprobs {
    pub(crate) content: Vec<ChatTokenLogprob>,
    pub(crate) refusal: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ChatTokenLogprob {
    pub(crate) token: String,
    pub(crate) logprob: f32,
    pub(crate) bytes: Vec<u8>,
    pub(crate) top_logprobs: Vec<ChatTopLogprob>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ChatTopLogprob {
    pub(crate) token: String,
    pub(crate) logprob: f32,
    pub(crate) bytes: Vec<u8>,
}

/// One answer of a completion, whole or what is new of it.
#[derive(Debug, Serialize)]
pub(crate) struct CompletionChoice {
    pub(crate) index: u32,
    pub(crate) text: String,
    pub(crate) logprobs: Option<CompletionLogprobs>,
    pub(crate) finish_reason: Option<&'static str>,
    pub(crate) stop_reason: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_token_ids: Option<Vec<u32>>,
}

/// Four columns, one row a token.
#[derive(Debug, Default, Serialize)]
pub(crate) struct CompletionLogprobs {
    pub(crate) tokens: Vec<String>,
    pub(crate) token_logprobs: Vec<Option<f32>>,
    /// Token to log-probability; null for a prompt's first token.
    pub(crate) top_logprobs: Vec<Option<Map<String, Value>>>,
    pub(crate) text_offset: Vec<u32>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ModelList {
    pub(crate) object: &'static str,
    pub(crate) data: Vec<ModelBody>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ModelBody {
    pub(crate) id: String,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) owned_by: &'static str,
    pub(crate) max_model_len: u32,
    /// Workers that are ready.
    pub(crate) workers: u32,
    /// Where the chat template comes from.
    pub(crate) chat_template: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct TokenizeReply {
    pub(crate) count: usize,
    pub(crate) max_model_len: u32,
    pub(crate) tokens: Vec<u32>,
}

#[derive(Debug, Serialize)]
pub(crate) struct DetokenizeReply {
    pub(crate) prompt: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct ReadyBody {
    pub(crate) ready: bool,
    pub(crate) reason: String,
    pub(crate) workers: Vec<WorkerBody>,
}

#[derive(Debug, Serialize)]
pub(crate) struct WorkerBody {
    pub(crate) endpoint: String,
    pub(crate) state: &'static str,
    pub(crate) reason: String,
    pub(crate) device: String,
    pub(crate) num_running: u32,
}
