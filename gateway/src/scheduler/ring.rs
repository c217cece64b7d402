//! Between the scheduler and one request's reader: bounded, merged, and never
//! waited on by the scheduler.
//!
//! What has not been read is merged per answer, so a slow client costs memory
//! in proportion to its own unread tokens only. Past [`MAX_UNREAD_TOKENS`] the
//! writer is told, and the scheduler parks the sequence.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tokio::sync::Notify;
use tracing::Span;

use super::sequence::{Delivery, RawLogprob, SequenceEnd, SequenceId};
use crate::error::GatewayError;

/// Unread tokens of one request past which its sequences are parked: some
/// minutes of reading, about 16 KiB (more with log-probabilities).
pub const MAX_UNREAD_TOKENS: usize = 4096;

/// What readers tell the scheduler; bounded by the number of sequences, since
/// each is named at most once per list between two looks.
#[derive(Debug, Default)]
pub struct Signals {
    lists: Mutex<Lists>,
    notify: Notify,
}

#[derive(Debug, Default)]
struct Lists {
    cancelled: Vec<SequenceId>,
    drained: Vec<SequenceId>,
}

impl Signals {
    /// Waits for something to [`take`](Self::take). Cancel safe.
    pub async fn ready(&self) {
        self.notify.notified().await;
    }

    /// Sequences whose reader has gone, and parked ones whose reader has read.
    pub fn take(&self) -> (Vec<SequenceId>, Vec<SequenceId>) {
        let lists = std::mem::take(&mut *lock(&self.lists));
        (lists.cancelled, lists.drained)
    }

    fn send(&self, update: impl FnOnce(&mut Lists)) {
        update(&mut lock(&self.lists));
        self.notify.notify_one();
    }
}

/// What is new of one answer since it was last read.
#[derive(Debug, Default)]
pub struct Unread {
    /// When a worker took it, and how many prompt tokens it had cached.
    pub admitted: Option<(Instant, u32)>,
    /// When the last of `token_ids` came.
    pub tokens_at: Option<Instant>,
    /// New tokens.
    pub token_ids: Vec<u32>,
    /// One per token, if asked for.
    pub logprobs: Vec<RawLogprob>,
    /// Next entries of the prompt's.
    pub prompt_logprobs: Vec<RawLogprob>,
    /// How it ended.
    pub end: Option<Result<SequenceEnd, GatewayError>>,
}

#[derive(Debug)]
struct Inner {
    answers: Vec<Unread>,
    num_unread: usize,
    parked: Vec<SequenceId>,
    open: Vec<bool>,
    waker: Option<Waker>,
    is_closed: bool,
    /// Lasts until a worker has taken the first answer.
    queue_span: Option<Span>,
}

/// The writing half, one per request.
#[derive(Clone, Debug)]
pub struct RingWriter {
    inner: Arc<Mutex<Inner>>,
}

/// The reading half; dropping it cancels what has not ended.
#[derive(Debug)]
pub struct RingReader {
    inner: Arc<Mutex<Inner>>,
    ids: Vec<SequenceId>,
    signals: Arc<Signals>,
}

/// What the writer learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingState {
    /// There is room.
    Open,
    /// Park the sequence.
    Full,
}

/// A ring for the answers `ids` of one request.
pub fn ring(
    ids: Vec<SequenceId>,
    signals: Arc<Signals>,
    queue_span: Span,
) -> (RingWriter, RingReader) {
    let inner = Inner {
        answers: ids.iter().map(|_| Unread::default()).collect(),
        num_unread: 0,
        parked: Vec::new(),
        open: vec![true; ids.len()],
        waker: None,
        is_closed: false,
        queue_span: Some(queue_span),
    };
    let inner = Arc::new(Mutex::new(inner));
    (RingWriter { inner: Arc::clone(&inner) }, RingReader { inner, ids, signals })
}

impl RingWriter {
    /// Adds to an answer and wakes the reader.
    pub fn push(&self, answer: usize, delivery: Delivery, now: Instant) -> RingState {
        let mut inner = lock(&self.inner);
        let unread = &mut inner.answers[answer];
        let mut num_new = 0;
        let mut ended = false;
        let mut admitted = false;
        match delivery {
            Delivery::Admitted { cached_tokens } => {
                unread.admitted = Some((now, cached_tokens));
                admitted = true;
            }
            Delivery::Output { token_ids, logprobs, prompt_logprobs } => {
                num_new = token_ids.len();
                if num_new > 0 {
                    unread.tokens_at = Some(now);
                }
                unread.token_ids.extend(token_ids);
                unread.logprobs.extend(logprobs);
                unread.prompt_logprobs.extend(prompt_logprobs);
            }
            Delivery::Finished(end) => {
                unread.end = Some(Ok(end));
                ended = true;
            }
            Delivery::Failed(error) => {
                unread.end = Some(Err(error));
                ended = true;
            }
        }
        inner.num_unread += num_new;
        inner.open[answer] &= !ended;
        let span = if admitted || ended { inner.queue_span.take() } else { None };
        let is_full = inner.num_unread > MAX_UNREAD_TOKENS && num_new > 0;
        let waker = inner.waker.take();
        drop(inner);
        // Closing a span and waking a task run code of others: not under the lock.
        drop(span);
        if let Some(waker) = waker {
            waker.wake();
        }
        if is_full { RingState::Full } else { RingState::Open }
    }

    /// Asks for a signal when the reader has read what there is. Returns false
    /// if it has already: there is nothing to wait for.
    pub fn park(&self, id: SequenceId) -> bool {
        let mut inner = lock(&self.inner);
        let is_full = inner.num_unread > 0;
        if is_full {
            inner.parked.push(id);
        }
        is_full
    }

    /// Whether the reader has gone.
    pub fn is_closed(&self) -> bool {
        lock(&self.inner).is_closed
    }
}

impl RingReader {
    /// Takes all that is new, by answer, into `out`.
    pub fn poll_read(&self, cx: &mut Context<'_>, out: &mut Vec<(usize, Unread)>) -> Poll<()> {
        let mut inner = lock(&self.inner);
        for (answer, unread) in inner.answers.iter_mut().enumerate() {
            if unread.is_something() {
                out.push((answer, std::mem::take(unread)));
            }
        }
        inner.num_unread = 0;
        let parked = std::mem::take(&mut inner.parked);
        if out.is_empty() {
            inner.waker = Some(cx.waker().clone());
        }
        drop(inner);
        if !parked.is_empty() {
            self.signals.send(|lists| lists.drained.extend(parked));
        }
        if out.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }

    /// Ends one answer early (a stop string was found).
    pub fn cancel(&self, answer: usize) {
        let was_open = std::mem::replace(&mut lock(&self.inner).open[answer], false);
        if was_open {
            self.signals.send(|lists| lists.cancelled.push(self.ids[answer]));
        }
    }
}

impl Drop for RingReader {
    fn drop(&mut self) {
        let mut inner = lock(&self.inner);
        inner.is_closed = true;
        let open = std::mem::take(&mut inner.open);
        // Keeps the writer's indices valid.
        inner.open = vec![false; open.len()];
        let span = inner.queue_span.take();
        drop(inner);
        drop(span);
        let left: Vec<SequenceId> =
            self.ids.iter().zip(open).filter(|(_, open)| *open).map(|(&id, _)| id).collect();
        if !left.is_empty() {
            self.signals.send(|lists| lists.cancelled.extend(left));
        }
    }
}

impl Unread {
    fn is_something(&self) -> bool {
        self.admitted.is_some()
            || !self.token_ids.is_empty()
            || !self.prompt_logprobs.is_empty()
            || self.end.is_some()
    }
}

/// A poisoned lock holds valid data: nothing in here leaves it half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(token_ids: Vec<u32>) -> Delivery {
        Delivery::Output { token_ids, logprobs: vec![], prompt_logprobs: vec![] }
    }

    fn read(reader: &RingReader) -> Vec<(usize, Unread)> {
        let mut out = Vec::new();
        let _ = reader.poll_read(&mut Context::from_waker(Waker::noop()), &mut out);
        out
    }

    #[test]
    fn unread_output_is_merged_and_its_excess_is_reported() {
        let signals = Arc::new(Signals::default());
        let ids = vec![SequenceId(7), SequenceId(8)];
        let (writer, reader) = ring(ids, Arc::clone(&signals), Span::none());
        let now = Instant::now();
        assert_eq!(writer.push(1, output(vec![1, 2]), now), RingState::Open);
        assert_eq!(writer.push(1, output(vec![3]), now), RingState::Open);
        assert_eq!(writer.push(1, output(vec![0; MAX_UNREAD_TOKENS]), now), RingState::Full);
        assert!(writer.park(SequenceId(8)));
        let unread = read(&reader);
        assert_eq!(unread.len(), 1);
        assert_eq!((unread[0].0, unread[0].1.token_ids.len()), (1, MAX_UNREAD_TOKENS + 3));
        assert_eq!(signals.take().1, [SequenceId(8)]);
        assert!(!writer.park(SequenceId(8)), "already read");
    }

    #[test]
    fn dropping_the_reader_cancels_what_has_not_ended() {
        let signals = Arc::new(Signals::default());
        let ids = (0..4).map(SequenceId).collect();
        let (writer, reader) = ring(ids, Arc::clone(&signals), Span::none());
        writer.push(0, Delivery::Failed(GatewayError::Deadline), Instant::now());
        reader.cancel(2);
        reader.cancel(2);
        assert_eq!(signals.take().0, [SequenceId(2)]);
        drop(reader);
        assert_eq!(signals.take().0, [SequenceId(1), SequenceId(3)]);
        assert!(writer.is_closed());
        writer.push(1, output(vec![1]), Instant::now());
    }
}
