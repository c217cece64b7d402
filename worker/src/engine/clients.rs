//! Consumers of the engine's output, which the engine never waits for.
//!
//! Events go into a client's bounded channel; while that is full they gather,
//! merged, in its outbox; past a number of tokens there the client's sequences
//! are paused; and when it has taken nothing for a while, cancelled.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::select_all;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::generation::{ClientId, Event, Load, Logprobs, StepEvents, StepTiming};

/// How much a client may leave unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientLimits {
    /// Steps in its channel.
    pub channel_capacity: usize,
    /// Tokens beyond those before its sequences are paused.
    pub outbox_tokens: usize,
    /// How long it may stay paused before they are cancelled and its channel
    /// is closed.
    pub patience: Duration,
}

#[derive(Debug)]
struct Outbox {
    sender: mpsc::Sender<StepEvents>,
    events: Vec<Event>,
    /// What `events` weigh.
    num_tokens: usize,
    paused_since: Option<Instant>,
}

/// What the engine is to do about a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Plan its sequences, or no longer do.
    Paused(ClientId, bool),
    /// It reads too slowly.
    TooSlow(ClientId),
    /// It has left.
    Gone(ClientId),
}

/// What accompanies every message of a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepSummary {
    pub(super) step: u64,
    pub(super) load: Load,
    pub(super) timing: StepTiming,
}

#[derive(Debug)]
pub(super) struct Clients {
    limits: ClientLimits,
    // In order of id, so that verdicts come in the same order every time.
    by_id: BTreeMap<ClientId, Outbox>,
}

impl Clients {
    pub(super) fn new(limits: ClientLimits) -> Self {
        Self { limits, by_id: BTreeMap::new() }
    }

    pub(super) fn attach(&mut self, id: ClientId, sender: mpsc::Sender<StepEvents>) {
        let outbox = Outbox { sender, events: Vec::new(), num_tokens: 0, paused_since: None };
        self.by_id.insert(id, outbox);
    }

    pub(super) fn contains(&self, id: ClientId) -> bool {
        self.by_id.contains_key(&id)
    }

    /// Forgets a client, once the engine has nothing more to say to it.
    pub(super) fn remove(&mut self, id: ClientId) {
        self.by_id.remove(&id);
    }

    /// Puts an event into its client's outbox.
    pub(super) fn push(&mut self, id: ClientId, event: Event) {
        if let Some(outbox) = self.by_id.get_mut(&id) {
            outbox.num_tokens += weight(&event);
            outbox.events.push(event);
        }
    }

    /// Sends what the channels have room for.
    pub(super) fn flush(&mut self, summary: StepSummary, now: Instant) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        for (&id, outbox) in &mut self.by_id {
            verdicts.extend(outbox.flush(id, &self.limits, summary, now));
        }
        verdicts
    }

    /// When the next paused client's patience ends.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let since = self.by_id.values().filter_map(|outbox| outbox.paused_since).min()?;
        Some(since + self.limits.patience)
    }

    /// Waits until [`Clients::flush`] would do something. Cancel-safe.
    pub(super) async fn changed(&self) {
        if self.by_id.is_empty() {
            return std::future::pending().await;
        }
        let each = self.by_id.values().map(|outbox| {
            async {
                if outbox.events.is_empty() {
                    outbox.sender.closed().await;
                } else {
                    // The permit is given back at once; only this thread sends.
                    let _ = outbox.sender.reserve().await;
                }
            }
            .boxed()
        });
        select_all(each).await;
    }
}

impl Outbox {
    fn flush(
        &mut self,
        id: ClientId,
        limits: &ClientLimits,
        summary: StepSummary,
        now: Instant,
    ) -> Option<Verdict> {
        if self.sender.is_closed() {
            return Some(Verdict::Gone(id));
        }
        if !self.events.is_empty() {
            let StepSummary { step, load, timing } = summary;
            let events = std::mem::take(&mut self.events);
            match self.sender.try_send(StepEvents { step, events, load, timing }) {
                Ok(()) => self.num_tokens = 0,
                Err(TrySendError::Full(unsent)) => self.events = unsent.events,
                Err(TrySendError::Closed(_)) => return Some(Verdict::Gone(id)),
            }
        }
        let is_full = self.num_tokens >= limits.outbox_tokens;
        match self.paused_since {
            None if is_full => {
                self.paused_since = Some(now);
                Some(Verdict::Paused(id, true))
            }
            Some(_) if self.events.is_empty() => {
                self.paused_since = None;
                Some(Verdict::Paused(id, false))
            }
            Some(since) if now.saturating_duration_since(since) >= limits.patience => {
                Some(Verdict::TooSlow(id))
            }
            _ => None,
        }
    }
}

/// Tokens that an event tells of; one for an event that tells of none. Every
/// [`ALTERNATIVES_PER_TOKEN`] alternatives count as one more, so that what
/// gathers fits one message whatever is reported.
fn weight(event: &Event) -> usize {
    let of = |logprobs: &Logprobs| 1 + logprobs.top.len() / ALTERNATIVES_PER_TOKEN;
    match event {
        Event::PromptLogprobs { tokens, .. } => tokens.iter().map(of).sum(),
        Event::Token { logprobs, .. } => logprobs.as_ref().map_or(1, of),
        Event::Admitted { .. } | Event::Finished { .. } => 1,
    }
}

/// A token and its place take about as much of a message as these.
const ALTERNATIVES_PER_TOKEN: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::SequenceId;

    #[test]
    fn alternatives_count() {
        let logprobs = |num_top| Logprobs { logprob: -1.0, top: vec![(0, -1.0); num_top] };
        let sequence = SequenceId(0);
        let token = |logprobs| weight(&Event::Token { sequence, token_id: 0, logprobs });
        assert_eq!(token(None), 1);
        assert_eq!(token(Some(logprobs(0))), 1);
        assert_eq!(token(Some(logprobs(20))), 3);
        let tokens = vec![logprobs(0), logprobs(8), logprobs(1000)];
        assert_eq!(weight(&Event::PromptLogprobs { sequence, first_position: 1, tokens }), 129);
    }
}
