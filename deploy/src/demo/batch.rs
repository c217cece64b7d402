//! One batch of users: prefill one by one, then decode in lock-step.
//!
//! A user whose answer has ended goes on being computed, so that the width of
//! the batch, and with it the speed that is measured, stays what it is; its
//! further tokens are dropped.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use worker::generation::Sampling;
use worker::sampler::{SampleContext, Scratch, TokenCounts, sample};

use super::encode::Encoded;
use crate::driver::{Driver, Sequence};

/// How tokens are chosen and when an answer ends.
#[derive(Debug, Clone)]
pub(super) struct Decoding {
    /// Most iterations after the first token.
    pub(super) iterations: usize,
    /// Ids that end an answer.
    pub(super) stop_ids: Vec<u32>,
    /// Greedy unless it has a temperature.
    pub(super) temperature: f32,
    /// Share of the probability that is drawn from.
    pub(super) top_p: f32,
    /// User `j` draws with `seed + j`.
    pub(super) seed: u64,
}

/// What happens, for whoever watches.
#[derive(Debug, Clone, Copy)]
pub(super) enum Event {
    /// A user's prompt is computed.
    Prefilled { user: usize, took: Duration },
    /// An answer has one more token.
    Token { id: u32 },
    /// A decode iteration is over, so many users are still answering.
    Step { number: usize, took: Duration, answering: usize },
}

/// What became of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// Without the one that ended it.
    pub(super) ids: Vec<u32>,
    /// The id that ended it; none when the iterations did.
    pub(super) stopped_by: Option<u32>,
}

/// What a batch did, and how long it took.
#[derive(Debug, Clone)]
pub(super) struct BatchRun {
    /// By user.
    pub(super) answers: Vec<Answer>,
    /// Start of each user's prefill to its first token.
    pub(super) prefill: Vec<Duration>,
    /// Forward pass and sampling of each iteration.
    pub(super) steps: Vec<Duration>,
    /// Tokens that each iteration added to answers.
    pub(super) kept: Vec<usize>,
}

/// Users whose sequences are computed together.
struct Users<'a> {
    decoding: &'a Decoding,
    answers: Vec<Answer>,
    sampling: Vec<Sampling>,
    /// The token that each feeds next.
    next: Vec<u32>,
    scratch: Scratch,
}

/// Runs one batch on fresh sequences, one a prompt.
///
/// # Errors
/// When the mesh fails, or its logits are not finite.
pub(super) fn run(
    driver: &mut Driver,
    mut sequences: Vec<Sequence>,
    prompts: &[&Encoded],
    decoding: &Decoding,
    watch: &mut dyn FnMut(Event),
) -> anyhow::Result<BatchRun> {
    let mut users = Users::new(decoding, prompts.len());
    let mut run =
        BatchRun { answers: Vec::new(), prefill: Vec::new(), steps: Vec::new(), kept: Vec::new() };
    for (user, (sequence, prompt)) in sequences.iter_mut().zip(prompts).enumerate() {
        let start = Instant::now();
        let logits = driver.prefill(sequence, &prompt.ids)?;
        let kept =
            users.take(user, 0, logits).with_context(|| format!("prefill of user {user}"))?;
        let took = start.elapsed();
        run.prefill.push(took);
        watch(Event::Prefilled { user, took });
        users.tell(user, kept, watch);
    }
    let vocab_size = driver.vocab_size();
    for number in 1..=decoding.iterations {
        if users.answering() == 0 {
            break;
        }
        let start = Instant::now();
        let logits = driver.decode(&mut sequences, &users.next)?;
        let mut kept = Vec::with_capacity(prompts.len());
        for (user, row) in logits.chunks_mut(vocab_size).enumerate() {
            let taken = users.take(user, number, row);
            kept.push(taken.with_context(|| format!("iteration {number}, user {user}"))?);
        }
        let took = start.elapsed();
        run.steps.push(took);
        run.kept.push(kept.iter().filter(|kept| **kept).count());
        for (user, kept) in kept.into_iter().enumerate() {
            users.tell(user, kept, watch);
        }
        watch(Event::Step { number, took, answering: users.answering() });
    }
    run.answers = users.answers;
    Ok(run)
}

impl<'a> Users<'a> {
    fn new(decoding: &'a Decoding, count: usize) -> Self {
        let sampling = (0..count as u64).map(|user| Sampling {
            temperature: decoding.temperature,
            top_p: decoding.top_p,
            seed: decoding.seed.wrapping_add(user),
            ..Sampling::default()
        });
        Self {
            decoding,
            answers: vec![Answer { ids: Vec::new(), stopped_by: None }; count],
            sampling: sampling.collect(),
            next: vec![0; count],
            scratch: Scratch::default(),
        }
    }

    /// Chooses the user's token number `index`, and says whether its answer has
    /// it.
    fn take(&mut self, user: usize, index: usize, logits: &mut [f32]) -> anyhow::Result<bool> {
        let context = SampleContext {
            sampling: &self.sampling[user],
            counts: &TokenCounts::default(),
            index: u32::try_from(index).unwrap_or(u32::MAX),
            banned: &[],
            fallback: 0,
            logprobs: None,
        };
        let id = sample(logits, &context, &mut self.scratch)?.token_id;
        self.next[user] = id;
        let answer = &mut self.answers[user];
        if answer.stopped_by.is_some() {
            return Ok(false);
        }
        if self.decoding.stop_ids.contains(&id) {
            answer.stopped_by = Some(id);
            return Ok(false);
        }
        answer.ids.push(id);
        Ok(true)
    }

    fn tell(&self, user: usize, kept: bool, watch: &mut dyn FnMut(Event)) {
        if kept {
            watch(Event::Token { id: self.next[user] });
        }
    }

    fn answering(&self) -> usize {
        self.answers.iter().filter(|answer| answer.stopped_by.is_none()).count()
    }
}

#[cfg(test)]
mod tests;
