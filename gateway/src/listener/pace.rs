//! How long an HTTP/1 connection may say nothing: between requests, and within
//! a request's head. (A body's pace is checked where it is read.)
//!
//! hyper has one timeout for both, and does not start it before the first byte
//! when it also guesses the protocol.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::task::AtomicWaker;
use tokio::time::{Instant, Sleep};

/// Shared by a connection's socket and its requests.
#[derive(Debug)]
pub(super) struct Pace {
    head_timeout: Duration,
    idle_timeout: Duration,
    in_flight: AtomicUsize,
    begun: AtomicUsize,
    /// The connection's task, which does not look at its socket by itself when
    /// a response ends.
    connection: AtomicWaker,
}

/// One request, until its response is sent.
#[derive(Debug)]
pub(super) struct Busy {
    pace: Arc<Pace>,
}

impl Pace {
    pub(super) fn new(head_timeout: Duration, idle_timeout: Duration) -> Arc<Self> {
        Arc::new(Self {
            head_timeout,
            idle_timeout,
            in_flight: AtomicUsize::new(0),
            begun: AtomicUsize::new(0),
            connection: AtomicWaker::new(),
        })
    }

    /// A request's head is complete.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Busy { pace: Arc::clone(self) }
    }

    fn is_busy(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) > 0
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.pace.in_flight.fetch_sub(1, Ordering::Release);
        self.pace.connection.wake();
    }
}

/// The socket's side: told of every read.
#[derive(Debug)]
pub(super) struct ReadDeadline {
    pace: Arc<Pace>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether a head has begun to arrive.
    in_head: bool,
    /// `Pace::begun` when the timer was set: another value, another request.
    begun: usize,
}

impl ReadDeadline {
    /// For a connection on which the first bytes of a head have arrived.
    pub(super) fn new(pace: Arc<Pace>) -> Self {
        Self { pace, timer: None, in_head: true, begun: 0 }
    }

    /// Bytes have arrived.
    pub(super) fn progressed(&mut self) {
        self.forget_past_requests();
        if !self.pace.is_busy() && !self.in_head {
            self.in_head = true;
            self.timer = None;
        }
    }

    /// Nothing has arrived: ready when nothing may be waited for any longer.
    pub(super) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.forget_past_requests();
        // Before the question, so that no answer is missed.
        self.pace.connection.register(cx.waker());
        if self.pace.is_busy() {
            self.timer = None;
            return Poll::Pending;
        }
        let timeout = if self.in_head { self.pace.head_timeout } else { self.pace.idle_timeout };
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + timeout)));
        timer.as_mut().poll(cx)
    }

    fn forget_past_requests(&mut self) {
        let begun = self.pace.begun.load(Ordering::Relaxed);
        if begun != self.begun {
            self.begun = begun;
            self.in_head = false;
            self.timer = None;
        }
    }
}
