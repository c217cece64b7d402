//! What a request gives back: a stream of [`TextEvent`]s, deltas of its answers
//! and then, exactly once and last, what they cost.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;

use crate::error::GatewayError;

/// One event of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum TextEvent {
    /// Something new of one answer.
    Delta(Delta),
    /// Every answer has ended; nothing follows.
    Done(Usage),
}

/// What is new of one answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// Which answer: `prompt_index * n + i`.
    pub choice: u32,
    /// Whether this is the echoed prompt rather than the answer. The prompt is
    /// one delta, before the others of its answer.
    pub prompt: bool,
    /// Whole characters.
    pub text: String,
    /// The tokens whose text begins in `text`, and the token that ended the
    /// answer, which has no text. (In the prompt's delta: the prompt.)
    pub token_ids: Vec<u32>,
    /// One per token of `token_ids`, if asked for; none for the token that
    /// ended the answer.
    pub logprobs: Vec<TokenLogprob>,
    /// On the answer's first delta, if asked for.
    pub prompt_token_ids: Option<Vec<u32>>,
    /// On the answer's last delta.
    pub finish: Option<Finish>,
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
    /// What made it stop, unless the model's own end did.
    pub stop_reason: Option<StopReason>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model's own end, a stop string or a stop id.
    Stop,
    /// `max_tokens` or the context is used up.
    Length,
}

impl FinishReason {
    /// As OpenAI spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// What made an answer stop (the `stop_reason` of vLLM).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// A stop string, which is cut from the text.
    Text(String),
    /// An id of `stop_token_ids`.
    TokenId(u32),
}

/// A token with its log-probability.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token_id: u32,
    /// Its text; U+FFFD for bytes that are no character.
    pub token: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Natural logarithm; `None` for the first token of an echoed prompt.
    pub logprob: Option<f32>,
    /// Most likely first.
    pub top: Vec<TopLogprob>,
    /// Characters of this answer's text (an echoed prompt included) before it.
    pub text_offset: u32,
}

/// A likely token at some position.
#[derive(Clone, Debug, PartialEq)]
pub struct TopLogprob {
    /// The token.
    pub token_id: u32,
    /// Its text; U+FFFD for bytes that are no character.
    pub token: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Natural logarithm.
    pub logprob: f32,
}

/// What a request cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Tokens of all prompts; a prompt counts once however many answers it has.
    pub prompt_tokens: u32,
    /// Tokens of all answers: those that ended them and those cut with a stop
    /// string included.
    pub completion_tokens: u32,
    /// Prompt tokens found in a worker's prefix cache (first answer of each
    /// prompt).
    pub cached_tokens: u32,
    /// Where the time went.
    pub timings: Timings,
}

/// Where the time of a request went, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Template and tokenizer.
    pub tokenize_ms: f64,
    /// From submission to the first admission by a worker.
    pub queue_ms: f64,
    /// From receipt to the first token.
    pub ttft_ms: f64,
    /// In the worker, of the answer that took longest.
    pub prefill_ms: f64,
    /// In the worker, of the answer that took longest.
    pub decode_ms: f64,
    /// From receipt to the end.
    pub total_ms: f64,
}

/// The events of one request. Dropping it cancels whatever is still running and
/// returns every slot. It ends after `Done` or after the first error.
pub struct TextStream {
    inner: Pin<Box<dyn Stream<Item = Result<TextEvent, GatewayError>> + Send>>,
}

impl std::fmt::Debug for TextStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextStream").finish_non_exhaustive()
    }
}

impl Stream for TextStream {
    type Item = Result<TextEvent, GatewayError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.inner.as_mut().poll_next(cx)
    }
}
