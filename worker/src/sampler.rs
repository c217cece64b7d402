//! From logits to a token: pure, and exactly reproducible.
//!
//! The steps, in this order: log-probabilities of the model's own distribution;
//! logit bias; repetition, then presence and frequency penalties; no end before
//! `min_new_tokens`; temperature; min-p; top-k; top-p; draw. (vLLM's order.)
//! Min-p looks at probabilities after the temperature, top-p at those that
//! min-p and top-k left, scaled to one.
//!
//! A token is a function of its row of logits, the sequence's tokens and
//! parameters, and (seed, index in the answer): never of the batch. Weights are
//! whole numbers, so that sums do not depend on their order.

use std::collections::{HashMap, HashSet};

use crate::generation::{Logprobs, Sampling};

mod candidates;
mod exp;
mod logprobs;
pub mod philox;

use candidates::Candidates;
pub use logprobs::logprobs;

/// How often tokens occurred in a sequence, as far as its penalties ask.
#[derive(Debug, Clone, Default)]
pub struct TokenCounts {
    track: bool,
    generated: HashMap<u32, u32>,
    /// Distinct ids of the prompt; only for the repetition penalty.
    prompt: HashSet<u32>,
}

impl TokenCounts {
    /// Counts for a prompt and what was generated already. Empty, and kept so,
    /// when `sampling` has no penalties.
    pub fn new(sampling: &Sampling, prompt: &[u32], generated: &[u32]) -> Self {
        let repetition = sampling.repetition_penalty != 1.0;
        let track =
            repetition || sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0;
        let mut counts = Self { track, ..Self::default() };
        if repetition {
            counts.prompt.extend(prompt);
        }
        for &token_id in generated {
            counts.add_generated(token_id);
        }
        counts
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.generated.is_empty() && self.prompt.is_empty()
    }

    /// One more token of the answer.
    pub fn add_generated(&mut self, token_id: u32) {
        if self.track {
            *self.generated.entry(token_id).or_default() += 1;
        }
    }
}

/// What a token depends on beside its logits.
#[derive(Debug, Clone, Copy)]
pub struct SampleContext<'a> {
    /// How to choose.
    pub sampling: &'a Sampling,
    /// Of the sequence so far.
    pub counts: &'a TokenCounts,
    /// Place of the token in the answer, resumed tokens included.
    pub index: u32,
    /// Ids that may not be chosen.
    pub banned: &'a [u32],
    /// Chosen when nothing else may be: the sequence's end.
    pub fallback: u32,
    /// Alternatives to report, if any report is wanted.
    pub logprobs: Option<u32>,
}

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub token_id: u32,
    /// If asked for.
    pub logprobs: Option<Logprobs>,
}

/// The model produced a logit that is no number, or infinite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a logit is not finite")]
pub struct NonFinite;

/// Memory to reuse from token to token; holds nothing between calls.
#[derive(Debug, Default)]
pub struct Scratch {
    candidates: Candidates,
}

/// Chooses the next token. `logits` is one row, `[vocab_size]`, and is changed.
///
/// # Errors
/// [`NonFinite`]: there is no distribution to choose from.
///
/// # Panics
/// When an id of the context is not below the vocabulary size.
pub fn sample(
    logits: &mut [f32],
    context: &SampleContext<'_>,
    scratch: &mut Scratch,
) -> Result<Sampled, NonFinite> {
    check_finite(logits)?;
    // The chosen token is only known at the end, the distribution is only
    // there at the beginning.
    let report = context.logprobs.map(|num_top| logprobs::Report::new(logits, num_top));
    let untouched = report.as_ref().map(|_| logits.to_vec());
    adjust(logits, context);
    let token_id = choose(logits, context, scratch);
    let logprobs = report.zip(untouched).map(|(report, logits)| report.of(&logits, token_id));
    Ok(Sampled { token_id, logprobs })
}

/// Says whether every logit of a row is a finite number.
///
/// # Errors
/// When one is not.
pub fn check_finite(logits: &[f32]) -> Result<(), NonFinite> {
    // Without a branch per element, so that it runs at memory speed.
    let all = logits.iter().fold(true, |all, logit| all & logit.is_finite());
    if all { Ok(()) } else { Err(NonFinite) }
}

/// Bias, penalties and bans.
fn adjust(logits: &mut [f32], context: &SampleContext<'_>) {
    let sampling = context.sampling;
    let mut change = |token_id: u32, f: &dyn Fn(f32) -> f32| {
        let logit = &mut logits[token_id as usize];
        // Extreme parameters saturate; only bans make an infinity.
        *logit = f(*logit).clamp(f32::MIN, f32::MAX);
    };
    for &(token_id, bias) in &sampling.logit_bias {
        change(token_id, &|logit| logit + bias);
    }
    let counts = context.counts;
    let penalty = sampling.repetition_penalty;
    if penalty != 1.0 {
        let repeated = |logit: f32| if logit > 0.0 { logit / penalty } else { logit * penalty };
        for &token_id in &counts.prompt {
            change(token_id, &repeated);
        }
        for &token_id in counts.generated.keys().filter(|id| !counts.prompt.contains(id)) {
            change(token_id, &repeated);
        }
    }
    let (presence, frequency) = (sampling.presence_penalty, sampling.frequency_penalty);
    if presence != 0.0 || frequency != 0.0 {
        for (&token_id, &count) in &counts.generated {
            change(token_id, &|logit| logit - presence - frequency * count as f32);
        }
    }
    for &token_id in context.banned {
        logits[token_id as usize] = f32::NEG_INFINITY;
    }
}

fn choose(logits: &[f32], context: &SampleContext<'_>, scratch: &mut Scratch) -> u32 {
    let sampling = context.sampling;
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return context.fallback;
    }
    if sampling.temperature == 0.0 || sampling.top_k == Some(1) {
        let first = logits.iter().position(|logit| *logit == max);
        return u32::try_from(first.expect("the maximum is one of them")).unwrap_or(u32::MAX);
    }
    let candidates = &mut scratch.candidates;
    candidates.weigh(logits, max, sampling);
    if let Some(top_k) = sampling.top_k {
        candidates.keep_top_k(top_k);
    }
    if sampling.top_p < 1.0 {
        candidates.keep_top_p(sampling.top_p);
    }
    candidates.pick(philox::draw(sampling.seed, context.index))
}

#[cfg(test)]
mod tests;
