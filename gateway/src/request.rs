//! From what a client asked to what the gateway will do: [`GenerateRequest`]
//! (anything) becomes [`ValidRequest`] (in range) in one constructor that HTTP
//! and gRPC share, so the two cannot have different rules.
//!
//! Everything that needs no tokenizer is checked here; whether the prompt fits
//! the context is known only after tokenizing (`generate.rs`).

mod limits;
mod sampling;
mod validate;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

pub use limits::RequestLimits;
pub use sampling::Sampling;
pub(crate) use validate::{check_prompt, check_prompt_ids};

use crate::error::GatewayError;

/// Everything a client may ask, unchecked; both front doors fill it with the
/// numbers as they came.
#[derive(Clone, Debug, Default)]
pub struct GenerateRequest {
    /// Name of the model.
    pub model: String,
    /// One for a chat; one or more for a completion.
    pub prompts: Vec<PromptInput>,
    /// Chat rules (default `max_tokens`, names of fields) instead of the
    /// completion ones.
    pub chat: bool,
    /// Most tokens of an answer.
    pub max_tokens: Option<i64>,
    /// No end before this many tokens.
    pub min_tokens: Option<i64>,
    /// 0 is greedy.
    pub temperature: Option<f64>,
    /// Nucleus.
    pub top_p: Option<f64>,
    /// Most likely tokens to draw from; -1 or 0: all.
    pub top_k: Option<i64>,
    /// Least probability relative to the likeliest token.
    pub min_p: Option<f64>,
    /// OpenAI's presence penalty.
    pub presence_penalty: Option<f64>,
    /// OpenAI's frequency penalty.
    pub frequency_penalty: Option<f64>,
    /// Multiplicative penalty of tokens seen in prompt or answer.
    pub repetition_penalty: Option<f64>,
    /// Same seed, same answer. Unset: drawn from the operating system.
    pub seed: Option<i64>,
    /// Strings that end an answer and are cut from it.
    pub stop: Vec<String>,
    /// Ids that end an answer.
    pub stop_token_ids: Vec<i64>,
    /// Token id and what is added to its logit.
    pub logit_bias: Vec<(i64, f64)>,
    /// Answers per prompt.
    pub n: Option<i64>,
    /// Must equal `n` if set: the gateway does not rank answers.
    pub best_of: Option<i64>,
    /// Log-probabilities with this many alternatives; 0: the chosen token's only.
    pub logprobs: Option<i64>,
    /// Return the prompt in front of the answer (completions).
    pub echo: bool,
    /// Go on after the model's own end.
    pub ignore_eos: bool,
    /// Fill `Delta::prompt_token_ids` on each answer's first delta.
    pub return_prompt_token_ids: bool,
    /// Higher runs first.
    pub priority: Option<i64>,
    /// When the answer is of no more use.
    pub deadline: Option<Instant>,
    /// Whose request it is (an opaque name, never a secret): prefix-cache
    /// blocks are shared within one owner only, and queues are shared fairly
    /// between owners. `None`: the anonymous owner.
    pub user_key: Option<String>,
}

/// One prompt, in one of the forms that the APIs know.
#[derive(Clone, PartialEq)]
pub enum PromptInput {
    /// A conversation, for the chat template.
    Messages(Vec<ChatMessage>),
    /// Raw text; a beginning-of-text id is put in front where the model has one.
    Text(String),
    /// Ids as they are.
    TokenIds(Vec<i64>),
}

/// Prompts never reach a log by way of `Debug`.
impl fmt::Debug for PromptInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Messages(messages) => write!(f, "Messages({})", messages.len()),
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Self::TokenIds(ids) => write!(f, "TokenIds({})", ids.len()),
        }
    }
}

/// One message of a conversation.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `developer`, `user`, `assistant` or `tool` (or `ipython`, what
    /// Llama calls it).
    pub role: String,
    /// Text only.
    pub content: String,
    /// Name of the speaker, if given.
    pub name: Option<String>,
    /// What an assistant's message called.
    pub tool_calls: Vec<ToolCall>,
}

/// A call of a tool, as it came.
#[derive(Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// The caller's name for the call.
    pub id: Option<String>,
    /// The tool.
    pub name: String,
    /// A JSON object.
    pub arguments: String,
}

impl fmt::Debug for ToolCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ToolCall({} bytes)", self.name.len() + self.arguments.len())
    }
}

impl fmt::Debug for ChatMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChatMessage({:?}, {} bytes)", self.role, self.content.len())
    }
}

/// A prompt whose size and ids are in range.
#[derive(Clone, PartialEq)]
pub enum ValidPrompt {
    /// At least one message, every role known.
    Messages(Vec<ChatMessage>),
    /// May be empty only if the model has a beginning-of-text id.
    Text(String),
    /// At least one id, every id below the vocabulary size.
    TokenIds(Vec<u32>),
}

impl fmt::Debug for ValidPrompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Messages(messages) => write!(f, "Messages({})", messages.len()),
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Self::TokenIds(ids) => write!(f, "TokenIds({})", ids.len()),
        }
    }
}

/// A request in range: what the rest of the gateway works on.
#[derive(Clone, Debug)]
pub struct ValidRequest {
    model: String,
    prompts: Vec<ValidPrompt>,
    max_tokens: Option<u32>,
    min_tokens: u32,
    sampling: Arc<Sampling>,
    seed: u64,
    any_draw: bool,
    stop: Vec<String>,
    stop_token_ids: Vec<u32>,
    n: u32,
    logprobs: Option<u32>,
    echo: bool,
    ignore_eos: bool,
    return_prompt_token_ids: bool,
    priority: i32,
    deadline: Option<Instant>,
    user_key: Option<String>,
}

impl ValidRequest {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field out of range, by name, as
    /// [`GatewayError::InvalidValue`]; an unknown model as
    /// [`GatewayError::ModelNotFound`].
    pub fn new(request: GenerateRequest, limits: &RequestLimits) -> Result<Self, GatewayError> {
        validate::validate(request, limits)
    }

    /// Name of the model, one of the served ones.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// At least one.
    pub fn prompts(&self) -> &[ValidPrompt] {
        &self.prompts
    }

    /// Most tokens of one answer; `None`: whatever fits the context.
    pub fn max_tokens(&self) -> Option<u32> {
        self.max_tokens
    }

    /// No end before this many tokens.
    pub fn min_tokens(&self) -> u32 {
        self.min_tokens
    }

    /// How tokens are chosen.
    pub fn sampling(&self) -> &Arc<Sampling> {
        &self.sampling
    }

    /// Seed of answer `i` of each prompt. Answer 0 has the request's own seed,
    /// so that asking for more answers does not change the first; answer `i`
    /// has a mix of seed and `i`. Prompts of one request share their seeds: a
    /// prompt gets the same answer alone as among others.
    pub fn seed_of(&self, i: u32) -> u64 {
        sampling::derived_seed(self.seed, i)
    }

    /// The client gave no seed, so that draws need not be reproducible: the
    /// device may make them.
    pub fn any_draw(&self) -> bool {
        self.any_draw
    }

    /// Strings that end an answer.
    pub fn stop(&self) -> &[String] {
        &self.stop
    }

    /// Ids that end an answer.
    pub fn stop_token_ids(&self) -> &[u32] {
        &self.stop_token_ids
    }

    /// Answers per prompt.
    pub fn n(&self) -> u32 {
        self.n
    }

    /// Alternatives beside each token; `None`: no log-probabilities.
    pub fn logprobs(&self) -> Option<u32> {
        self.logprobs
    }

    /// Whether the prompt is returned in front of the answer.
    pub fn echo(&self) -> bool {
        self.echo
    }

    /// Whether generation goes on after the model's own end.
    pub fn ignore_eos(&self) -> bool {
        self.ignore_eos
    }

    /// Whether first deltas carry the prompt's ids.
    pub fn return_prompt_token_ids(&self) -> bool {
        self.return_prompt_token_ids
    }

    /// Higher runs first.
    pub fn priority(&self) -> i32 {
        self.priority
    }

    /// When the answer is of no more use.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whose request it is.
    pub fn user_key(&self) -> Option<&str> {
        self.user_key.as_deref()
    }
}

#[cfg(test)]
mod tests;
