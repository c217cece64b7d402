//! Domain types to wire types and back. Nothing else behind the front doors
//! names a wire type of the worker's contract.
//!
//! What comes from a worker is checked for shape here: columns of the lengths
//! they claim, ids inside the vocabulary, finite numbers. A frame that fails is
//! a [`BadFrame`], and the link drops the worker.

use std::collections::HashMap;
use std::time::{Instant, SystemTime};

use proto::v1;

use crate::scheduler::credit::Credit;
use crate::scheduler::sequence::{
    Assignment, Fault, Load, RawLogprob, SequenceTiming, StepEntry, WorkerFinish,
};
use crate::scheduler::state::{WorkerFrame, WorkerProfile};

/// Longest text of a worker that is passed on.
const MAX_MESSAGE_CHARS: usize = 256;
/// What stands for a probability of zero, whose logarithm JSON cannot say.
const LEAST_LOGPROB: f32 = -9999.0;

/// A frame that does not keep the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad frame: {0}")]
pub struct BadFrame(pub &'static str);

/// What decoding needs to know of the stream.
#[derive(Clone, Copy, Debug)]
pub struct FrameContext {
    /// Of the stream: outputs of other epochs are late.
    pub epoch: u32,
    /// Ids are below this.
    pub vocab_size: u32,
    /// Most alternatives that anybody can have asked for.
    pub max_logprobs: u32,
}

/// The profile in a worker's description of itself.
///
/// # Errors
/// A description without limits, or with limits of zero.
pub fn profile(described: &v1::DescribeResponse) -> Result<WorkerProfile, BadFrame> {
    let limits = described.limits.as_ref().ok_or(BadFrame("description without limits"))?;
    if limits.max_model_len == 0 || limits.num_kv_blocks == 0 || limits.kv_block_size == 0 {
        return Err(BadFrame("description with a limit of 0"));
    }
    Ok(WorkerProfile {
        max_model_len: limits.max_model_len,
        num_kv_blocks: limits.num_kv_blocks,
        kv_block_size: limits.kv_block_size,
        prompt_logprobs: described.capabilities().any(|c| c == v1::Capability::PromptLogprobs),
    })
}

/// The `Admit` of an assignment.
pub fn admit(assignment: Assignment, epoch: u32) -> v1::Admit {
    let Assignment { key, spec, resume, wants_prompt_logprobs } = assignment;
    let generation = v1::Generation {
        prompt_token_ids: spec.prompt.to_vec(),
        resume_token_ids: resume,
        max_new_tokens: spec.max_new_tokens,
        min_new_tokens: spec.min_new_tokens,
        stop_token_ids: spec.stop_token_ids.to_vec(),
        ignore_eos: spec.ignore_eos,
        sampling: Some(v1::Sampling {
            temperature: Some(spec.sampling.temperature),
            top_k: spec.sampling.top_k,
            top_p: spec.sampling.top_p,
            min_p: spec.sampling.min_p,
            presence_penalty: spec.sampling.presence_penalty,
            frequency_penalty: spec.sampling.frequency_penalty,
            repetition_penalty: spec.sampling.repetition_penalty,
            logit_bias: spec
                .sampling
                .logit_bias
                .iter()
                .map(|&(token_id, bias)| v1::LogitBias { token_id, bias })
                .collect(),
            seed: spec.seed,
            any_draw: spec.any_draw,
        }),
        logprobs: spec.logprobs,
        prompt_logprobs: spec.prompt_logprobs.filter(|_| wants_prompt_logprobs),
        priority: spec.priority,
        deadline_unix_ns: spec.deadline.map(unix_ns),
        cache_salt: spec.cache_salt.to_vec(),
        grammar: None,
    };
    let trace = v1::TraceContext {
        traceparent: spec.trace.traceparent.clone(),
        tracestate: spec.trace.tracestate.clone(),
    };
    v1::Admit {
        request_key: key,
        request_id: spec.request_id.to_string(),
        epoch,
        generation: Some(generation),
        trace: Some(trace),
    }
}

/// A monotonic time as wall-clock nanoseconds, as of now.
fn unix_ns(deadline: Instant) -> u64 {
    let left = deadline.saturating_duration_since(Instant::now());
    let at = SystemTime::now() + left;
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// A frame of a worker, checked for shape.
///
/// # Errors
/// [`BadFrame`] says what is wrong with it.
pub fn frame(frame: v1::WorkerFrame, ctx: FrameContext) -> Result<WorkerFrame, BadFrame> {
    use v1::worker_frame::Body;
    let Some(body) = frame.body else { return Ok(WorkerFrame::Other) };
    Ok(match body {
        Body::Credit(v1::Credit { slots, kv_blocks, admits_seen }) => {
            WorkerFrame::Credit(Credit { slots, kv_blocks, admits_seen })
        }
        Body::Admitted(admitted) if admitted.epoch == ctx.epoch => WorkerFrame::Admitted {
            key: admitted.request_key,
            cached_tokens: admitted.cached_tokens,
        },
        Body::Rejected(rejected) if rejected.epoch == ctx.epoch => WorkerFrame::Rejected {
            key: rejected.request_key,
            fault: fault(rejected.code),
            message: bounded(&rejected.message),
        },
        Body::Step(output) => step(output, ctx)?,
        Body::Draining(_) => WorkerFrame::Draining,
        Body::Heartbeat(beat) => WorkerFrame::Heartbeat(beat.load.map(load).unwrap_or_default()),
        Body::Admitted(_) | Body::Rejected(_) | Body::CacheEvents(_) => WorkerFrame::Other,
    })
}

/// The columns of a step, by sequence.
fn step(output: v1::StepOutput, ctx: FrameContext) -> Result<WorkerFrame, BadFrame> {
    let num_entries = output.request_keys.len();
    let has_all = |column: usize| column == 0 || column == num_entries;
    if !has_all(output.epochs.len()) || !has_all(output.token_counts.len()) {
        return Err(BadFrame("ragged columns"));
    }
    let counts = || -> Box<dyn Iterator<Item = u32>> {
        match output.token_counts.as_slice() {
            [] => Box::new(std::iter::repeat_n(1, num_entries)),
            counts => Box::new(counts.iter().copied()),
        }
    };
    let num_tokens: u64 = counts().map(u64::from).sum();
    if num_tokens != output.token_ids.len() as u64 {
        return Err(BadFrame("token counts do not add up to the tokens"));
    }
    if output.token_ids.iter().any(|&id| id >= ctx.vocab_size) {
        return Err(BadFrame("token outside the vocabulary"));
    }
    let mut logprobs: HashMap<u32, RawLogprob> = HashMap::new();
    for entry in output.logprobs {
        if u64::from(entry.token_index) >= num_tokens {
            return Err(BadFrame("log-probability of a token that is not there"));
        }
        let value = raw_logprob(entry.logprob, &entry.top_token_ids, &entry.top_logprobs, ctx)?;
        logprobs.insert(entry.token_index, value);
    }
    let mut entries = Vec::with_capacity(num_entries);
    let mut late = Vec::new();
    let mut start = 0usize;
    for (i, count) in counts().enumerate() {
        let end = start + count as usize;
        let key = output.request_keys[i];
        let entry = StepEntry {
            key,
            token_ids: output.token_ids[start..end].to_vec(),
            logprobs: (start..end).filter_map(|at| logprobs.remove(&(at as u32))).collect(),
            ..StepEntry::default()
        };
        start = end;
        if output.epochs.get(i).is_none_or(|&epoch| epoch == ctx.epoch) {
            entries.push(entry);
        } else {
            late.push(key);
        }
    }
    let num_late = late.len() as u64;
    let mut by_key = Entries::new(entries, late)?;
    for prompt in output.prompt_logprobs {
        by_key.add_prompt(prompt, ctx)?;
    }
    for finish in output.finishes {
        by_key.add_finish(finish)?;
    }
    Ok(WorkerFrame::Step { entries: by_key.entries, load: output.load.map(load), num_late })
}

/// A step's entries with an index by key. Sparse columns may name sequences
/// that have no token in this step.
struct Entries {
    entries: Vec<StepEntry>,
    index: HashMap<u32, usize>,
    late: Vec<u32>,
}

impl Entries {
    fn new(entries: Vec<StepEntry>, late: Vec<u32>) -> Result<Self, BadFrame> {
        let index: HashMap<u32, usize> =
            entries.iter().enumerate().map(|(i, entry)| (entry.key, i)).collect();
        if index.len() != entries.len() {
            return Err(BadFrame("a sequence twice in one step"));
        }
        Ok(Self { entries, index, late })
    }

    /// `None`: the sequence is that of a given-up assignment.
    fn entry(&mut self, key: u32) -> Option<&mut StepEntry> {
        if self.late.contains(&key) {
            return None;
        }
        let i = *self.index.entry(key).or_insert_with(|| {
            self.entries.push(StepEntry { key, ..StepEntry::default() });
            self.entries.len() - 1
        });
        Some(&mut self.entries[i])
    }

    fn add_prompt(
        &mut self,
        prompt: v1::PromptLogprobs,
        ctx: FrameContext,
    ) -> Result<(), BadFrame> {
        let Some(entry) = self.entry(prompt.request_key) else { return Ok(()) };
        if !entry.prompt_logprobs.is_empty() {
            return Err(BadFrame("prompt log-probabilities twice in one step"));
        }
        entry.first_position = prompt.first_position;
        for token in &prompt.tokens {
            let (ids, values) = (&token.top_token_ids, &token.top_logprobs);
            entry.prompt_logprobs.push(raw_logprob(token.logprob, ids, values, ctx)?);
        }
        Ok(())
    }

    fn add_finish(&mut self, finish: v1::Finish) -> Result<(), BadFrame> {
        let reason = match finish.reason() {
            v1::FinishReason::Stop => WorkerFinish::Stop,
            v1::FinishReason::Length => WorkerFinish::Length,
            v1::FinishReason::Cancelled => WorkerFinish::Cancelled,
            v1::FinishReason::Deadline => WorkerFinish::Deadline,
            v1::FinishReason::Error => WorkerFinish::Error {
                fault: fault(finish.code.unwrap_or(tonic::Code::Internal as i32)),
                message: bounded(finish.message.as_deref().unwrap_or("worker failed")),
            },
            v1::FinishReason::Unspecified => return Err(BadFrame("finish without a reason")),
        };
        let Some(entry) = self.entry(finish.request_key) else { return Ok(()) };
        if entry.finish.is_some() {
            return Err(BadFrame("a sequence ended twice in one step"));
        }
        let timing = finish.timing.unwrap_or_default();
        let timing = SequenceTiming {
            queue_ns: timing.queue_ns,
            prefill_ns: timing.prefill_ns,
            decode_ns: timing.decode_ns,
        };
        entry.finish = Some((reason, timing));
        Ok(())
    }
}

fn raw_logprob(
    logprob: f32,
    ids: &[u32],
    values: &[f32],
    ctx: FrameContext,
) -> Result<RawLogprob, BadFrame> {
    if ids.len() != values.len() || ids.len() > ctx.max_logprobs as usize {
        return Err(BadFrame("ragged or too many alternatives"));
    }
    if ids.iter().any(|&id| id >= ctx.vocab_size) {
        return Err(BadFrame("alternative outside the vocabulary"));
    }
    let top: Result<Vec<_>, _> =
        ids.iter().zip(values).map(|(&id, &value)| Ok((id, finite(value)?))).collect();
    Ok(RawLogprob { logprob: finite(logprob)?, top: top? })
}

fn finite(value: f32) -> Result<f32, BadFrame> {
    if value.is_nan() {
        return Err(BadFrame("log-probability is not a number"));
    }
    Ok(value.clamp(LEAST_LOGPROB, 0.0))
}

fn load(load: v1::Load) -> Load {
    Load {
        running: load.running,
        waiting: load.waiting,
        kv_blocks_used: load.kv_blocks_used,
        kv_blocks_total: load.kv_blocks_total,
    }
}

/// What a google.rpc.Code means to us.
fn fault(code: i32) -> Fault {
    use tonic::Code;
    match Code::from(code) {
        Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented => Fault::Request,
        Code::ResourceExhausted | Code::Unavailable => Fault::Capacity,
        Code::DeadlineExceeded => Fault::Deadline,
        _ => Fault::Internal,
    }
}

/// What a worker runs on, for people: "CPU", or "CPU simulating N300".
pub(super) fn device_name(device: &v1::Device) -> String {
    match device.simulates.as_str() {
        "" => device.name.clone(),
        card => format!("{} simulating {card}", device.name),
    }
}

/// A worker's text, cut to a length and to printable characters.
pub(super) fn bounded(message: &str) -> String {
    message.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE_CHARS).collect()
}
