//! One sequence: what was asked, and the log of what came of it, which is all
//! that another worker needs to go on in its place.
//!
//! Random numbers are a function of (seed, position), so the log needs no
//! sampler state: prompt, tokens so far and the request's own fields suffice.

use std::sync::Arc;
use std::time::Instant;

use common::telemetry::TraceContext;

use crate::error::GatewayError;
use crate::request::Sampling;
use crate::text_stream::FinishReason;

/// A sequence of this gateway; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// A worker of this gateway's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u32);

/// What a sequence is to be; never changes.
#[derive(Clone, Debug)]
pub struct SequenceSpec {
    /// For logs and traces.
    pub request_id: Arc<str>,
    /// At least one id.
    pub prompt: Arc<[u32]>,
    /// At most this many tokens; with the prompt at most the context.
    pub max_new_tokens: u32,
    /// No end before this many tokens.
    pub min_new_tokens: u32,
    /// Ids that end it.
    pub stop_token_ids: Arc<[u32]>,
    /// Go on after the model's own end.
    pub ignore_eos: bool,
    /// How tokens are chosen.
    pub sampling: Arc<Sampling>,
    /// Of the random numbers.
    pub seed: u64,
    /// The client gave no seed: any draw will do.
    pub any_draw: bool,
    /// Alternatives beside each token.
    pub logprobs: Option<u32>,
    /// Alternatives beside each prompt token but the first.
    pub prompt_logprobs: Option<u32>,
    /// Higher runs first.
    pub priority: i32,
    /// When it is of no more use.
    pub deadline: Option<Instant>,
    /// Prefix-cache blocks are shared within one salt.
    pub cache_salt: Arc<[u8]>,
    /// Parent of the worker's spans.
    pub trace: TraceContext,
}

impl SequenceSpec {
    /// Most tokens it can come to.
    pub fn max_tokens(&self) -> u64 {
        self.prompt.len() as u64 + u64::from(self.max_new_tokens)
    }

    /// Entries of prompt log-probabilities that are due.
    pub fn num_prompt_logprobs(&self) -> u32 {
        let entries = self.prompt.len().saturating_sub(1) as u32;
        if self.prompt_logprobs.is_some() { entries } else { 0 }
    }
}

/// A sequence given to a worker: everything its `Admit` needs.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// Names it on the worker's stream.
    pub key: u32,
    /// What was asked.
    pub spec: Arc<SequenceSpec>,
    /// Tokens generated on earlier streams.
    pub resume: Vec<u32>,
    /// Whether prompt log-probabilities are still (partly) missing.
    pub wants_prompt_logprobs: bool,
}

/// Log-probability of a token and of the likeliest ones in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct RawLogprob {
    /// Natural logarithm, finite.
    pub logprob: f32,
    /// Most likely first.
    pub top: Vec<(u32, f32)>,
}

/// Times and counts that a worker reports at the end, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SequenceTiming {
    /// In the worker before the first prefill chunk.
    pub queue_ns: u64,
    /// Prefill.
    pub prefill_ns: u64,
    /// Decode.
    pub decode_ns: u64,
}

/// Why a worker ended a sequence.
#[derive(Clone, Debug, PartialEq)]
pub enum WorkerFinish {
    /// An end-of-turn or stop id, which is the last token.
    Stop,
    /// `max_new_tokens` or its context is used up.
    Length,
    /// The worker gave it up without our asking.
    Cancelled,
    /// Its deadline passed.
    Deadline,
    /// It failed.
    Error {
        /// Whose fault, as far as it concerns us.
        fault: Fault,
        /// For people, bounded.
        message: String,
    },
}

/// What to do about a worker's refusal or failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request is wrong: tell the client.
    Request,
    /// The worker has no room or goes away: try elsewhere.
    Capacity,
    /// The deadline passed.
    Deadline,
    /// Anything else.
    Internal,
}

/// Output of one sequence in one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepEntry {
    /// Names the sequence on the stream.
    pub key: u32,
    /// New tokens.
    pub token_ids: Vec<u32>,
    /// One per token, or none.
    pub logprobs: Vec<RawLogprob>,
    /// Position in the prompt of the first of `prompt_logprobs`.
    pub first_position: u32,
    /// Of consecutive prompt tokens.
    pub prompt_logprobs: Vec<RawLogprob>,
    /// On the last one.
    pub finish: Option<(WorkerFinish, SequenceTiming)>,
}

/// How busy a worker is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Sequences in its steps.
    pub running: u32,
    /// Sequences it has admitted and not begun.
    pub waiting: u32,
    /// KV blocks in use.
    pub kv_blocks_used: u32,
    /// KV blocks there are.
    pub kv_blocks_total: u32,
}

/// What a sequence's reader gets.
#[derive(Clone, Debug, PartialEq)]
pub enum Delivery {
    /// A worker took it (once, however often it is resumed).
    Admitted {
        /// Prompt tokens found in its prefix cache.
        cached_tokens: u32,
    },
    /// New output.
    Output {
        /// New tokens.
        token_ids: Vec<u32>,
        /// One per token, if asked for.
        logprobs: Vec<RawLogprob>,
        /// Next entries of the prompt's log-probabilities.
        prompt_logprobs: Vec<RawLogprob>,
    },
    /// It ended well.
    Finished(SequenceEnd),
    /// It ended badly.
    Failed(GatewayError),
}

/// How a sequence ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceEnd {
    /// Why.
    pub reason: FinishReason,
    /// The last token, if it is the one that ended the sequence.
    pub stop_token: Option<u32>,
    /// As the worker measured it.
    pub timing: SequenceTiming,
}

/// One sequence on its way, as the scheduler keeps it.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) spec: Arc<SequenceSpec>,
    /// Order of arrival among all sequences; kept through re-queueing.
    pub(super) arrival: u64,
    pub(super) place: Place,
    /// The log: every token that was delivered.
    pub(super) generated: Vec<u32>,
    pub(super) prompt_logprobs_seen: u32,
    /// Workers that went away with it.
    pub(super) losses: u32,
    /// Times a worker had no room after all.
    pub(super) refusals: u32,
    pub(super) was_admitted: bool,
}

/// Where a sequence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Waiting {
        since: Instant,
        /// Since when no ready worker could take it, however empty.
        no_worker_since: Option<Instant>,
    },
    Running {
        worker: WorkerId,
        key: u32,
    },
    /// Given up by its worker until the client has read what there is.
    Parked {
        since: Instant,
    },
}

impl Sequence {
    /// Tokens that a worker must make room for at once: what is there, and
    /// `reserve` more or as many as may still come.
    pub(super) fn reserved_tokens(&self, reserve: u32) -> u64 {
        let left = u64::from(self.spec.max_new_tokens).saturating_sub(self.generated.len() as u64);
        self.spec.prompt.len() as u64 + self.generated.len() as u64 + left.min(u64::from(reserve))
    }
}
