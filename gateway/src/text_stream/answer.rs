//! One answer: tokens in, text out, until its end or a stop string.
//!
//! A token leaves with the text it begins. While its text is held back, because
//! it may be part of a stop string or is not a whole character yet, so are its
//! id and its log-probability; if a stop string then cuts that text, the token
//! is dropped with it (it still counts as used). A token that is cut in its
//! middle stays. The token that ends an answer has no text and no
//! log-probability, only an id.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Delta, Finish, FinishReason, StopReason, TokenLogprob, TopLogprob};
use crate::error::GatewayError;
use crate::scheduler::ring::Unread;
use crate::scheduler::sequence::{RawLogprob, SequenceEnd};
use crate::text::detokenizer::IncrementalDetokenizer;
use crate::text::stop::{StopMatcher, StopStep};
use crate::text::tokenizer::{SpecialTokens, Tokenizer};

/// What an answer is to look like.
#[derive(Clone, Debug)]
pub(crate) struct AnswerSpec {
    pub(crate) choice: u32,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) prompt: Arc<[u32]>,
    pub(crate) stop: Arc<[String]>,
    pub(crate) stop_token_ids: Arc<[u32]>,
    pub(crate) ignore_eos: bool,
    pub(crate) echo: bool,
    pub(crate) prompt_logprobs: bool,
    pub(crate) return_prompt_token_ids: bool,
}

/// A token whose text is not out yet.
#[derive(Debug)]
struct Held {
    id: u32,
    /// Bytes of text before it.
    begin: usize,
    text_offset: u32,
    logprob: Option<RawLogprob>,
}

#[derive(Debug)]
pub(crate) struct Answer {
    spec: AnswerSpec,
    detokenizer: IncrementalDetokenizer,
    matcher: StopMatcher,
    /// Bytes and characters that the tokens so far came to.
    produced: usize,
    produced_chars: u32,
    /// Bytes that are out.
    released: usize,
    held: VecDeque<Held>,
    /// A token that may be the end: known when the next one or the end comes.
    last: Option<(u32, Option<RawLogprob>)>,
    prompt_logprobs: Vec<RawLogprob>,
    num_tokens: u32,
    is_prompt_due: bool,
    is_first: bool,
    has_ended: bool,
}

impl Answer {
    pub(crate) fn new(spec: AnswerSpec) -> Self {
        let detokenizer =
            IncrementalDetokenizer::new(Arc::clone(&spec.tokenizer), SpecialTokens::Skip);
        Self {
            detokenizer,
            matcher: StopMatcher::new(&spec.stop),
            produced: 0,
            produced_chars: 0,
            released: 0,
            held: VecDeque::new(),
            last: None,
            prompt_logprobs: Vec::new(),
            num_tokens: 0,
            is_prompt_due: spec.echo,
            is_first: true,
            has_ended: false,
            spec,
        }
    }

    /// What can be said before the worker says anything: the echoed prompt.
    pub(super) fn begin(&mut self) -> Option<Delta> {
        if self.spec.prompt_logprobs { None } else { self.take_prompt() }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Tokens so far, those without text included.
    pub(super) fn num_tokens(&self) -> u32 {
        self.num_tokens
    }

    /// Takes what is new, and says it in at most two deltas: the prompt's and
    /// one of the answer's. What came before a failure is still said.
    pub(super) fn take(&mut self, unread: Unread) -> (Vec<Delta>, Result<(), GatewayError>) {
        self.prompt_logprobs.extend(unread.prompt_logprobs);
        let mut deltas = Vec::new();
        if self.prompt_logprobs.len() + 1 >= self.spec.prompt.len() {
            deltas.extend(self.take_prompt());
        }
        let mut delta = Delta { choice: self.spec.choice, ..Delta::default() };
        let mut result = Ok(());
        let mut logprobs = unread.logprobs.into_iter();
        for id in unread.token_ids {
            let logprob = logprobs.next();
            self.num_tokens += 1;
            if let Some((id, logprob)) = self.last.take() {
                self.push(id, logprob, &mut delta);
            }
            if self.has_ended {
                // The token after the match was generated, and is not used.
                self.num_tokens -= 1;
                break;
            }
            if self.may_end(id) {
                self.last = Some((id, logprob));
            } else {
                self.push(id, logprob, &mut delta);
            }
            if self.has_ended {
                break;
            }
        }
        match unread.end {
            Some(Ok(end)) if !self.has_ended => self.end(end, &mut delta),
            Some(Err(error)) if !self.has_ended => result = Err(error),
            _ => {}
        }
        if !delta.text.is_empty() || !delta.token_ids.is_empty() || delta.finish.is_some() {
            deltas.push(self.sign(delta));
        }
        (deltas, result)
    }

    /// Whether a token could be one that ends the answer.
    fn may_end(&self, id: u32) -> bool {
        self.spec.stop_token_ids.contains(&id)
            || (!self.spec.ignore_eos && self.spec.tokenizer.eos_ids().contains(&id))
    }

    /// One token's text.
    fn push(&mut self, id: u32, logprob: Option<RawLogprob>, delta: &mut Delta) {
        let text_offset = self.produced_chars;
        self.held.push_back(Held { id, begin: self.produced, text_offset, logprob });
        let text = self.detokenizer.push(id);
        self.produce(&text, delta);
    }

    fn produce(&mut self, text: &str, delta: &mut Delta) {
        self.produced += text.len();
        self.produced_chars += text.chars().count() as u32;
        let StopStep { text, stopped } = self.matcher.push(text);
        self.release(&text, delta);
        if let Some(index) = stopped {
            self.has_ended = true;
            self.held.clear();
            self.last = None;
            let stop_reason = Some(StopReason::Text(self.spec.stop[index].clone()));
            delta.finish = Some(Finish { reason: FinishReason::Stop, stop_reason });
        }
    }

    fn release(&mut self, text: &str, delta: &mut Delta) {
        delta.text.push_str(text);
        self.released += text.len();
        while self.held.front().is_some_and(|token| token.begin < self.released) {
            self.release_token(delta);
        }
    }

    fn release_token(&mut self, delta: &mut Delta) {
        let Some(token) = self.held.pop_front() else { return };
        delta.token_ids.push(token.id);
        if let Some(raw) = token.logprob {
            let logprob = self.named(token.id, Some(raw), token.text_offset);
            delta.logprobs.push(logprob);
        }
    }

    /// The worker has ended the answer.
    fn end(&mut self, end: SequenceEnd, delta: &mut Delta) {
        let ended_by = end.stop_token.filter(|&id| {
            end.reason == FinishReason::Stop
                && self.last.as_ref().is_some_and(|(last, _)| *last == id)
        });
        if ended_by.is_none()
            && let Some((id, logprob)) = self.last.take()
        {
            self.push(id, logprob, delta);
        }
        if !self.has_ended {
            let rest = self.detokenizer.flush();
            self.produce(&rest, delta);
        }
        if self.has_ended {
            return; // A stop string at the very end.
        }
        let rest = self.matcher.flush();
        self.release(&rest, delta);
        while !self.held.is_empty() {
            self.release_token(delta);
        }
        delta.token_ids.extend(ended_by);
        let stop_reason =
            ended_by.filter(|id| self.spec.stop_token_ids.contains(id)).map(StopReason::TokenId);
        delta.finish = Some(Finish { reason: end.reason, stop_reason });
        self.has_ended = true;
    }

    /// The echoed prompt as a delta, once.
    fn take_prompt(&mut self) -> Option<Delta> {
        if !std::mem::take(&mut self.is_prompt_due) {
            return None;
        }
        let mut delta = Delta { choice: self.spec.choice, prompt: true, ..Delta::default() };
        let tokenizer = Arc::clone(&self.spec.tokenizer);
        let mut detokenizer = IncrementalDetokenizer::new(tokenizer, SpecialTokens::Skip);
        let mut logprobs = std::mem::take(&mut self.prompt_logprobs).into_iter();
        for (i, id) in Arc::clone(&self.spec.prompt).iter().copied().enumerate() {
            if self.spec.prompt_logprobs {
                let raw = if i == 0 { None } else { logprobs.next() };
                delta.logprobs.push(self.named(id, raw, self.produced_chars));
            }
            let text = detokenizer.push(id);
            self.produced_chars += text.chars().count() as u32;
            delta.text.push_str(&text);
        }
        let rest = detokenizer.flush();
        self.produced_chars += rest.chars().count() as u32;
        delta.text.push_str(&rest);
        delta.token_ids = self.spec.prompt.to_vec();
        Some(self.sign(delta))
    }

    /// Adds what every answer's first delta carries.
    fn sign(&mut self, mut delta: Delta) -> Delta {
        if std::mem::take(&mut self.is_first) && self.spec.return_prompt_token_ids {
            delta.prompt_token_ids = Some(self.spec.prompt.to_vec());
        }
        delta
    }

    fn named(&self, id: u32, raw: Option<RawLogprob>, text_offset: u32) -> TokenLogprob {
        let tokenizer = &self.spec.tokenizer;
        let (logprob, top) = raw.map_or((None, Vec::new()), |raw| (Some(raw.logprob), raw.top));
        let top = top.into_iter().map(|(id, logprob)| TopLogprob {
            token_id: id,
            token: tokenizer.token_text(id),
            bytes: tokenizer.token_bytes(id).to_vec(),
            logprob,
        });
        TokenLogprob {
            token_id: id,
            token: tokenizer.token_text(id),
            bytes: tokenizer.token_bytes(id).to_vec(),
            logprob,
            top: top.collect(),
            text_offset,
        }
    }
}
