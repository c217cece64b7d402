//! Giving up on an HTTP/2 stream whose client grants no window.
//!
//! Such a client's socket is writable and its pings are answered, so no timeout
//! of the connection fires; and its response body is not polled, so no timeout
//! of the body does. What can be seen is a body that has handed over data and is
//! then not asked for more. The stream's own task is then dropped, which resets
//! that stream and cancels its answer; its neighbours go on.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use common::shutdown::Shutdown;
use http_body::{Frame, SizeHint};
use tokio::time::Sleep;

thread_local! {
    /// The stream whose task is being polled on this thread.
    static CURRENT: RefCell<Option<Arc<Handover>>> = const { RefCell::new(None) };
}

/// What a stream's body has told its task.
#[derive(Debug, Default)]
struct Handover {
    /// The body's last answer was data, which waits to be sent.
    waiting: AtomicBool,
    /// Grows with each piece of data.
    pieces: AtomicU64,
}

/// Runs the streams of HTTP/2 connections.
#[derive(Clone, Debug)]
pub(super) struct StreamExecutor {
    shutdown: Shutdown,
    timeout: Duration,
}

impl StreamExecutor {
    /// Streams are tasks of `shutdown`, and dropped when data has waited for
    /// `timeout`.
    pub(super) fn new(shutdown: Shutdown, timeout: Duration) -> Self {
        Self { shutdown, timeout }
    }
}

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        let task = StreamTask {
            stream: Box::pin(stream),
            handover: Arc::default(),
            timeout: self.timeout,
            timer: None,
        };
        self.shutdown.spawn("http2 stream", task);
    }
}

struct StreamTask<F> {
    stream: Pin<Box<F>>,
    handover: Arc<Handover>,
    timeout: Duration,
    /// Set for the piece of that number.
    timer: Option<(u64, Pin<Box<Sleep>>)>,
}

impl<F: Future> Future for StreamTask<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let outer = CURRENT.replace(Some(Arc::clone(&this.handover)));
        let polled = this.stream.as_mut().poll(cx);
        CURRENT.set(outer);
        if polled.is_ready() {
            return Poll::Ready(());
        }
        if !this.handover.waiting.load(Ordering::Relaxed) {
            this.timer = None;
            return Poll::Pending;
        }
        let piece = this.handover.pieces.load(Ordering::Relaxed);
        if this.timer.as_ref().is_none_or(|(of, _)| *of != piece) {
            this.timer = Some((piece, Box::pin(tokio::time::sleep(this.timeout))));
        }
        let expired = match &mut this.timer {
            Some((_, timer)) => timer.as_mut().poll(cx).is_ready(),
            None => false,
        };
        if !expired {
            return Poll::Pending;
        }
        tracing::debug!("stream given up: the client grants no window");
        Poll::Ready(())
    }
}

/// `body`, watched by the stream's task.
pub(super) fn watched(body: Body) -> Body {
    Body::new(Watched { body })
}

struct Watched {
    body: Body,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        CURRENT.with_borrow(|current| {
            let Some(handover) = current else { return };
            let waiting = matches!(polled, Poll::Ready(Some(Ok(_))));
            handover.waiting.store(waiting, Ordering::Relaxed);
            if waiting {
                handover.pieces.fetch_add(1, Ordering::Relaxed);
            }
        });
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
