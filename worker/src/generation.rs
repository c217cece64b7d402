//! What the engine is asked to generate and what it reports: the worker's
//! domain types. Wire types are turned into these at the edge (`service`),
//! after which nothing is unchecked.

use std::time::{Duration, Instant};

/// One request inside this engine, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// One consumer of the engine's output: a gateway's stream, or one plain
/// `Generate` call. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub u64);

/// A checked request: every id is below the vocabulary size, every number is
/// finite and in range, prompt and answer fit the model's length.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// At least one id.
    pub prompt_token_ids: Vec<u32>,
    /// Generated elsewhere before; generation goes on after them.
    pub resume_token_ids: Vec<u32>,
    /// Resumed tokens included. 0 only with `prompt_logprobs`.
    pub max_new_tokens: u32,
    /// Ends are ignored before this many tokens.
    pub min_new_tokens: u32,
    /// Ids that end the generation; the model's own are added unless the
    /// request ignores them. Sorted.
    pub stop_token_ids: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Alternatives to report beside each token; `Some(0)` is the token alone.
    pub logprobs: Option<u32>,
    /// The same for each prompt token but the first.
    pub prompt_logprobs: Option<u32>,
    /// Higher runs first; pre-emption takes the lowest, then the newest.
    pub priority: i32,
    /// End of the request on this host's monotonic clock.
    pub deadline: Option<Instant>,
    /// Prefix-cache blocks are shared only within one salt.
    pub cache_salt: Vec<u8>,
}

/// How a token is chosen. `None` and the neutral values skip a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 is greedy: the highest logit, the lowest id on a tie.
    pub temperature: f32,
    /// Keep this many most likely tokens.
    pub top_k: Option<u32>,
    /// Keep the smallest set of most likely tokens with this probability; 1
    /// keeps all.
    pub top_p: f32,
    /// Drop tokens below this share of the most likely one's probability.
    pub min_p: f32,
    /// Subtracted once from tokens already generated.
    pub presence_penalty: f32,
    /// Subtracted once per earlier generation of the token.
    pub frequency_penalty: f32,
    /// Divides positive, multiplies negative logits of tokens seen in prompt or
    /// answer; 1 is none.
    pub repetition_penalty: f32,
    /// (id, bias), sorted by id, ids distinct.
    pub logit_bias: Vec<(u32, f32)>,
    /// Random numbers are a function of (seed, index in the answer) alone.
    pub seed: u64,
    /// Unless any draw will do: then the mesh may make it.
    pub any_draw: bool,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: 0,
            any_draw: false,
        }
    }
}

/// Log-probability of a token, and of the likeliest at its place (natural
/// logarithm, of the model's own distribution before any sampling step).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Logprobs {
    /// The token's own.
    pub logprob: f32,
    /// (id, logprob), most likely first, lowest id first on a tie.
    pub top: Vec<(u32, f32)>,
}

/// Why a sequence ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop id, which is the last token reported.
    Stop(u32),
    /// `max_new_tokens` or the model's length.
    Length,
    /// The client cancelled, or left.
    Cancelled,
    /// Its deadline passed.
    Deadline,
    /// The logits were not finite.
    Numerical,
    /// The mesh failed on this sequence; the text says how.
    Device(String),
    /// The mesh has failed as a whole, whatever the sequence: it can go on
    /// elsewhere. The text says how.
    DeviceFailed(String),
}

/// What the engine tells a client, in the order it happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The sequence is resident; so many prompt tokens came from the cache.
    Admitted {
        /// Which.
        sequence: SequenceId,
        /// Prompt tokens not computed.
        cached_tokens: u32,
    },
    /// Log-probabilities of prompt tokens, in order.
    PromptLogprobs {
        /// Which.
        sequence: SequenceId,
        /// Position in the prompt of the first entry.
        first_position: u32,
        /// One per token.
        tokens: Vec<Logprobs>,
    },
    /// One more token.
    Token {
        /// Which.
        sequence: SequenceId,
        /// The id.
        token_id: u32,
        /// If asked for.
        logprobs: Option<Logprobs>,
    },
    /// The last event of a sequence.
    Finished {
        /// Which.
        sequence: SequenceId,
        /// Why.
        reason: FinishReason,
        /// Where its time went.
        timing: SequenceTiming,
    },
}

/// Where a sequence's time went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SequenceTiming {
    /// Before its first prefill chunk.
    pub queue: Duration,
    /// First chunk to first token.
    pub prefill: Duration,
    /// First token to the end.
    pub decode: Duration,
    /// Ids in the prompt.
    pub prompt_tokens: u32,
    /// Of which found in the prefix cache at first admission.
    pub cached_tokens: u32,
    /// Ids generated, resumed ones included.
    pub generated_tokens: u32,
    /// Times its blocks were taken away.
    pub preemptions: u32,
}

/// One engine step's events for one client.
#[derive(Debug, Clone, PartialEq)]
pub struct StepEvents {
    /// Counts engine steps.
    pub step: u64,
    /// In order.
    pub events: Vec<Event>,
    /// After the step.
    pub load: Load,
    /// Of the step.
    pub timing: StepTiming,
}

/// How full the engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Sequences resident.
    pub running: u32,
    /// Sequences not yet (or no longer) resident.
    pub waiting: u32,
    /// KV blocks held by sequences (cached but unheld blocks are free).
    pub kv_blocks_used: u32,
    /// All KV blocks.
    pub kv_blocks_total: u32,
}

/// Time and work of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepTiming {
    /// Planning to sampling.
    pub step: Duration,
    /// On the mesh alone.
    pub forward: Duration,
    /// Tokens computed in prefill chunks.
    pub prefill_tokens: u32,
    /// Tokens computed as decodes.
    pub decode_tokens: u32,
}
