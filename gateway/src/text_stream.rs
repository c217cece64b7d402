//! What a request gives back: a stream of [`TextEvent`]s, deltas of its answers
//! and then, exactly once and last, what they cost.

mod account;
mod answer;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::Stream;

pub(crate) use account::{Account, Opening};
pub(crate) use answer::{Answer, AnswerSpec};

use crate::error::GatewayError;
use crate::scheduler::ring::{RingReader, Unread};

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
#[derive(Debug)]
pub struct TextStream {
    /// `None` once nothing more will come: that cancels what is left.
    reader: Option<RingReader>,
    answers: Vec<Answer>,
    num_open: usize,
    ready: VecDeque<TextEvent>,
    /// The last event, when `ready` is empty.
    last: Option<Result<TextEvent, GatewayError>>,
    unread: Vec<(usize, Unread)>,
    account: Account,
}

impl TextStream {
    pub(crate) fn new(reader: RingReader, answers: Vec<Answer>, account: Account) -> Self {
        let mut ready = VecDeque::new();
        let mut answers = answers;
        for answer in &mut answers {
            ready.extend(answer.begin().map(TextEvent::Delta));
        }
        let num_open = answers.len();
        let (unread, last) = (Vec::new(), None);
        Self { reader: Some(reader), answers, num_open, ready, last, unread, account }
    }

    /// Takes in what is new of one answer.
    fn take(&mut self, index: usize, unread: Unread) -> Result<(), GatewayError> {
        let answer = &mut self.answers[index];
        if answer.has_ended() {
            return Ok(());
        }
        self.account.take(index, &unread);
        let before = answer.num_tokens();
        let (deltas, result) = answer.take(unread);
        self.account.count(answer.num_tokens() - before);
        if let Some(finish) = deltas.iter().find_map(|delta| delta.finish.as_ref()) {
            self.num_open -= 1;
            self.account.answer_ended(finish.reason);
            if let Some(reader) = &self.reader {
                // Does nothing if the worker has ended it already.
                reader.cancel(index);
            }
        }
        self.ready.extend(deltas.into_iter().map(TextEvent::Delta));
        result
    }

    fn take_all(&mut self) {
        for (index, unread) in std::mem::take(&mut self.unread) {
            if let Err(error) = self.take(index, unread) {
                self.reader = None;
                self.account.failed(&error);
                self.last = Some(Err(error));
                return;
            }
        }
        if self.num_open == 0 {
            self.reader = None;
            self.last = Some(Ok(TextEvent::Done(self.account.done())));
        }
    }
}

impl Stream for TextStream {
    type Item = Result<TextEvent, GatewayError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if let Some(last) = self.last.take() {
                return Poll::Ready(Some(last));
            }
            let this = &mut *self;
            let Some(reader) = &this.reader else { return Poll::Ready(None) };
            ready!(reader.poll_read(cx, &mut this.unread));
            this.take_all();
        }
    }
}
