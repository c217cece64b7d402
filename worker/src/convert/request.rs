//! A wire request becomes a checked one. The worker checks everything again,
//! whoever sent it: one bad request must not reach the engine that all share.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use proto::v1 as wire;
use tonic::Code;

use crate::error::Refusal;
use crate::generation::{Generation, Sampling};
use crate::identity::{Identity, Limits};

/// Most `stop_token_ids` of one request.
const MAX_STOP_IDS: usize = 128;
/// Most `logit_bias` entries of one request.
const MAX_BIASES: usize = 1024;
/// Longest `cache_salt`, in bytes.
const MAX_SALT_BYTES: usize = 256;
/// A deadline further away than this is none.
const FAR: Duration = Duration::from_secs(7 * 24 * 3600);

/// When a request arrived, on both clocks: deadlines come by the wall's and are
/// kept by the monotonic one.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// Monotonic.
    pub instant: Instant,
    /// Wall clock.
    pub wall: SystemTime,
}

impl Arrival {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        Self { instant: Instant::now(), wall: SystemTime::now() }
    }
}

/// Checks a request against what this worker is.
///
/// # Errors
/// A [`Refusal`] that names the field, its value and the limit.
pub fn generation(
    wire: wire::Generation,
    identity: &Identity,
    arrival: Arrival,
) -> Result<Generation, Refusal> {
    if wire.grammar.is_some() {
        let message = "grammar is not supported by this worker (no CAPABILITY_GRAMMAR)";
        return Err(Refusal::new(Code::Unimplemented, message));
    }
    let vocab_size = identity.model.vocab_size;
    check_lengths(&wire, &identity.limits)?;
    check_ids("prompt_token_ids", &wire.prompt_token_ids, vocab_size)?;
    check_ids("resume_token_ids", &wire.resume_token_ids, vocab_size)?;
    check_ids("stop_token_ids", &wire.stop_token_ids, vocab_size)?;
    at_most("stop_token_ids", wire.stop_token_ids.len(), MAX_STOP_IDS, "ids")?;
    at_most("cache_salt", wire.cache_salt.len(), MAX_SALT_BYTES, "bytes")?;
    let max_logprobs = identity.limits.max_logprobs;
    for (name, value) in [("logprobs", wire.logprobs), ("prompt_logprobs", wire.prompt_logprobs)] {
        if value.is_some_and(|value| value > max_logprobs) {
            let value = value.unwrap_or_default();
            let message = format!("{name} is {value}, the most is {max_logprobs}");
            return Err(Refusal::invalid(message));
        }
    }
    let mut stop_token_ids = wire.stop_token_ids;
    if !wire.ignore_eos {
        stop_token_ids.extend(&identity.model.eos_token_ids);
    }
    stop_token_ids.sort_unstable();
    stop_token_ids.dedup();
    Ok(Generation {
        prompt_token_ids: wire.prompt_token_ids,
        resume_token_ids: wire.resume_token_ids,
        max_new_tokens: wire.max_new_tokens,
        min_new_tokens: wire.min_new_tokens,
        stop_token_ids,
        sampling: sampling(wire.sampling.unwrap_or_default(), vocab_size)?,
        logprobs: wire.logprobs,
        prompt_logprobs: wire.prompt_logprobs,
        priority: wire.priority,
        deadline: wire.deadline_unix_ns.map(|ns| deadline(ns, arrival)).transpose()?.flatten(),
        cache_salt: wire.cache_salt,
    })
}

fn check_lengths(wire: &wire::Generation, limits: &Limits) -> Result<(), Refusal> {
    let prompt = wire.prompt_token_ids.len() as u64;
    let (resumed, max_new) = (wire.resume_token_ids.len() as u64, u64::from(wire.max_new_tokens));
    let max_model_len = limits.max_model_len;
    if prompt == 0 {
        return Err(Refusal::invalid("prompt_token_ids is empty, it must have at least 1 id"));
    }
    if prompt > u64::from(max_model_len) {
        let message = format!("prompt has {prompt} tokens, max_model_len is {max_model_len}");
        return Err(Refusal::invalid(message));
    }
    if prompt + max_new > u64::from(max_model_len) {
        return Err(Refusal::invalid(format!(
            "prompt has {prompt} tokens and max_new_tokens is {max_new}, together {}, \
             max_model_len is {max_model_len}",
            prompt + max_new
        )));
    }
    if max_new == 0 && wire.prompt_logprobs.is_none() {
        let message = "max_new_tokens is 0, it must be at least 1 without prompt_logprobs";
        return Err(Refusal::invalid(message));
    }
    if resumed > max_new {
        return Err(Refusal::invalid(format!(
            "resume_token_ids has {resumed} ids, max_new_tokens is {max_new}"
        )));
    }
    if u64::from(wire.min_new_tokens) > max_new {
        let min_new = wire.min_new_tokens;
        return Err(Refusal::invalid(format!(
            "min_new_tokens is {min_new}, max_new_tokens is {max_new}"
        )));
    }
    Ok(())
}

fn check_ids(name: &str, ids: &[u32], vocab_size: u32) -> Result<(), Refusal> {
    match ids.iter().position(|id| *id >= vocab_size) {
        Some(at) => Err(Refusal::invalid(format!(
            "{name}[{at}] is {}, ids are below the vocabulary size {vocab_size}",
            ids[at]
        ))),
        None => Ok(()),
    }
}

fn at_most(name: &str, count: usize, limit: usize, unit: &str) -> Result<(), Refusal> {
    if count > limit {
        return Err(Refusal::invalid(format!("{name} has {count} {unit}, the most is {limit}")));
    }
    Ok(())
}

fn sampling(wire: wire::Sampling, vocab_size: u32) -> Result<Sampling, Refusal> {
    let neutral = Sampling::default();
    let top_k = match wire.top_k {
        Some(0) => return Err(Refusal::invalid("top_k is 0, it must be at least 1 or unset")),
        top_k => top_k.filter(|top_k| *top_k < vocab_size),
    };
    Ok(Sampling {
        temperature: within("temperature", wire.temperature, neutral.temperature, 0.0, 100.0)?,
        top_k,
        top_p: above_zero("top_p", wire.top_p, neutral.top_p, 1.0)?,
        min_p: within("min_p", wire.min_p, neutral.min_p, 0.0, 1.0)?,
        presence_penalty: within("presence_penalty", wire.presence_penalty, 0.0, -2.0, 2.0)?,
        frequency_penalty: within("frequency_penalty", wire.frequency_penalty, 0.0, -2.0, 2.0)?,
        repetition_penalty: above_zero(
            "repetition_penalty",
            wire.repetition_penalty,
            neutral.repetition_penalty,
            100.0,
        )?,
        logit_bias: logit_bias(wire.logit_bias, vocab_size)?,
        seed: wire.seed,
        any_draw: wire.any_draw,
    })
}

fn within(name: &str, value: Option<f32>, unset: f32, min: f32, max: f32) -> Result<f32, Refusal> {
    let value = value.unwrap_or(unset);
    // NaN is within nothing. A negative zero is a sign that went wrong.
    if !(min..=max).contains(&value) || (min == 0.0 && value.is_sign_negative()) {
        return Err(Refusal::invalid(format!("{name} is {value:?}, it must be {min} to {max}")));
    }
    Ok(value)
}

fn above_zero(name: &str, value: Option<f32>, unset: f32, max: f32) -> Result<f32, Refusal> {
    let value = value.unwrap_or(unset);
    if !(value > 0.0 && value <= max) {
        let message = format!("{name} is {value:?}, it must be above 0 and at most {max}");
        return Err(Refusal::invalid(message));
    }
    Ok(value)
}

fn logit_bias(wire: Vec<wire::LogitBias>, vocab_size: u32) -> Result<Vec<(u32, f32)>, Refusal> {
    at_most("logit_bias", wire.len(), MAX_BIASES, "entries")?;
    let mut biases = Vec::with_capacity(wire.len());
    for (at, entry) in wire.into_iter().enumerate() {
        if entry.token_id >= vocab_size {
            return Err(Refusal::invalid(format!(
                "logit_bias[{at}].token_id is {}, ids are below the vocabulary size {vocab_size}",
                entry.token_id
            )));
        }
        let bias = within("logit_bias", Some(entry.bias), 0.0, -100.0, 100.0)?;
        biases.push((entry.token_id, bias));
    }
    biases.sort_unstable_by_key(|(id, _)| *id);
    if let Some(pair) = biases.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(Refusal::invalid(format!("logit_bias names token {} twice", pair[0].0)));
    }
    Ok(biases)
}

/// `None` for a deadline too far away to matter.
fn deadline(unix_ns: u64, arrival: Arrival) -> Result<Option<Instant>, Refusal> {
    let at = UNIX_EPOCH + Duration::from_nanos(unix_ns);
    let Ok(left) = at.duration_since(arrival.wall) else {
        return Err(Refusal::new(Code::DeadlineExceeded, "the deadline has passed already"));
    };
    Ok((left <= FAR).then(|| arrival.instant + left))
}

#[cfg(test)]
mod tests;
