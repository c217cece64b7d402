//! Server-sent events: `data:` framing, keep-alive, and an end that cannot be
//! mistaken. `[DONE]` means that every answer is complete; a stream that fails
//! says so in an event and ends without it.
//!
//! User text only ever stands inside the JSON of a `data:` line, where line
//! breaks are escaped; no other field of an event is used.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use http_body::Frame;
use serde::Serialize;
use tokio::time::{Instant, Sleep};

use crate::error::GatewayError;
use crate::text_stream::{Delta, TextEvent, Usage};

/// Events that are ready are put into one write up to this size.
const MAX_WRITE_BYTES: usize = 16 * 1024;
/// A comment: clients ignore it, proxies see a connection in use.
const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";
const DONE: &[u8] = b"data: [DONE]\n\n";

/// How one endpoint writes what the spine says.
pub(crate) trait Format {
    /// Appends the events of a delta: none, one or several.
    fn delta(&mut self, delta: Delta, out: &mut Vec<u8>);
    /// Appends what comes before `[DONE]`.
    fn done(&mut self, usage: Usage, out: &mut Vec<u8>);
}

/// Appends one event.
pub(crate) fn write_event<T: Serialize>(event: &T, out: &mut Vec<u8>) {
    let begin = out.len();
    out.extend_from_slice(b"data: ");
    if let Err(error) = serde_json::to_writer(&mut *out, event) {
        // Our reply types have string keys and finite numbers only.
        tracing::error!(%error, "an event could not be written");
        out.truncate(begin);
        return;
    }
    out.extend_from_slice(b"\n\n");
}

/// The body of a streamed reply. Dropping it drops the answers.
pub(crate) struct EventBody<S, F> {
    /// `None` once the last event is written.
    events: Option<S>,
    /// Taken from `events` before the reply's head was sent.
    first: Option<TextEvent>,
    format: F,
    keep_alive: Pin<Box<Sleep>>,
    interval: Duration,
}

impl<S, F> EventBody<S, F>
where
    S: Stream<Item = Result<TextEvent, GatewayError>> + Unpin,
    F: Format + Unpin,
{
    /// `first` and then `events`, with a comment after every `interval` of
    /// silence.
    pub(crate) fn new(first: Option<TextEvent>, events: S, format: F, interval: Duration) -> Self {
        let keep_alive = Box::pin(tokio::time::sleep(interval));
        Self { events: Some(events), first, format, keep_alive, interval }
    }

    /// Appends the events that are ready; whether the stream has ended.
    fn fill(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> bool {
        while out.len() < MAX_WRITE_BYTES {
            let next = match (self.first.take(), &mut self.events) {
                (Some(event), _) => Poll::Ready(Some(Ok(event))),
                (None, Some(events)) => Pin::new(events).poll_next(cx),
                (None, None) => return true,
            };
            match next {
                Poll::Pending => return false,
                Poll::Ready(Some(Ok(TextEvent::Delta(delta)))) => self.format.delta(delta, out),
                Poll::Ready(Some(Ok(TextEvent::Done(usage)))) => {
                    self.format.done(usage, out);
                    out.extend_from_slice(DONE);
                    self.events = None;
                }
                Poll::Ready(Some(Err(error))) => {
                    write_event(&error.body(), out);
                    self.events = None;
                }
                Poll::Ready(None) => {
                    let error = GatewayError::Internal("the answer broke off".into());
                    write_event(&error.body(), out);
                    self.events = None;
                }
            }
        }
        false
    }
}

impl<S, F> http_body::Body for EventBody<S, F>
where
    S: Stream<Item = Result<TextEvent, GatewayError>> + Unpin,
    F: Format + Unpin,
{
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let mut out = Vec::new();
        let ended = this.fill(cx, &mut out);
        if out.is_empty() && ended {
            return Poll::Ready(None);
        }
        if out.is_empty() {
            if this.keep_alive.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            out.extend_from_slice(KEEP_ALIVE);
        }
        this.keep_alive.as_mut().reset(Instant::now() + this.interval);
        Poll::Ready(Some(Ok(Frame::data(out.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.events.is_none() && self.first.is_none()
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use http_body_util::{BodyExt as _, BodyStream};
    use proptest::prelude::*;

    use super::*;

    /// Writes the delta's text as a JSON string.
    struct Plain;

    impl Format for Plain {
        fn delta(&mut self, delta: Delta, out: &mut Vec<u8>) {
            write_event(&delta.text, out);
        }

        fn done(&mut self, usage: Usage, out: &mut Vec<u8>) {
            write_event(&usage.completion_tokens, out);
        }
    }

    fn delta(text: &str) -> Result<TextEvent, GatewayError> {
        Ok(TextEvent::Delta(Delta { text: text.into(), ..Default::default() }))
    }

    fn done() -> Result<TextEvent, GatewayError> {
        Ok(TextEvent::Done(Usage { completion_tokens: 7, ..Default::default() }))
    }

    async fn written(events: Vec<Result<TextEvent, GatewayError>>) -> (String, usize) {
        let stream = futures::stream::iter(events);
        let body = EventBody::new(None, stream, Plain, Duration::from_secs(15));
        let frames: Vec<Bytes> =
            BodyStream::new(body).map(|frame| frame.unwrap().into_data().unwrap()).collect().await;
        let bytes: Vec<u8> = frames.iter().flatten().copied().collect();
        (String::from_utf8(bytes).unwrap(), frames.len())
    }

    /// As the specification of event streams has it: a line ends at CR, LF or
    /// both, an event at an empty line.
    fn parse(text: &str) -> Vec<String> {
        let lines = text.replace("\r\n", "\n").replace('\r', "\n");
        let mut events = Vec::new();
        let mut data: Option<String> = None;
        for line in lines.split('\n') {
            match line.strip_prefix("data: ") {
                Some(rest) if data.is_none() => data = Some(rest.to_owned()),
                Some(rest) => data = data.map(|data| format!("{data}\n{rest}")),
                None if line.is_empty() => events.extend(data.take()),
                None => assert!(line.starts_with(':'), "{line:?} is no field of ours"),
            }
        }
        assert_eq!(data, None, "an event is cut off");
        events
    }

    #[tokio::test]
    async fn only_success_ends_with_done() {
        let (text, writes) = written(vec![delta("a"), delta("b"), done()]).await;
        assert_eq!(text, "data: \"a\"\n\ndata: \"b\"\n\ndata: 7\n\ndata: [DONE]\n\n");
        assert_eq!(writes, 1, "events that are ready go out in one write");
        let (text, _) = written(vec![delta("a"), Err(GatewayError::WorkerLost)]).await;
        let events = parse(&text);
        assert_eq!(events.len(), 2);
        assert!(events[1].contains("\"code\":\"worker_lost\""), "{text}");
        let (text, _) = written(vec![delta("a")]).await;
        assert!(text.contains("\"code\":\"internal\"") && !text.contains("[DONE]"), "{text}");
    }

    #[tokio::test]
    async fn nothing_follows_the_end() {
        let (text, _) = written(vec![done(), delta("late"), done()]).await;
        assert_eq!(text.matches("[DONE]").count(), 1);
        assert!(!text.contains("late"));
        let (text, _) = written(vec![Err(GatewayError::Deadline), delta("late"), done()]).await;
        assert!(!text.contains("late") && !text.contains("[DONE]"));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_filled_with_comments() {
        let events = futures::stream::pending::<Result<TextEvent, GatewayError>>();
        let mut body = EventBody::new(None, events, Plain, Duration::from_secs(15));
        let begun = Instant::now();
        for i in 1..=2 {
            let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(frame, KEEP_ALIVE);
            assert_eq!(begun.elapsed().as_secs(), 15 * i);
        }
    }

    #[tokio::test]
    async fn long_answers_go_out_in_bounded_writes() {
        let events = (0..100).map(|_| delta(&"x".repeat(1024))).chain([done()]).collect();
        let (text, writes) = written(events).await;
        assert_eq!(parse(&text).len(), 102);
        assert!((6..=9).contains(&writes), "{writes}");
    }

    proptest! {
        #[test]
        fn any_text_comes_back(texts in proptest::collection::vec("(?s).{0,40}|[\r\n\0:\u{2028}]{1,8}", 0..6)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let events = texts.iter().map(|text| delta(text)).chain([done()]).collect();
            let (written, _) = runtime.block_on(written(events));
            let events = parse(&written);
            prop_assert_eq!(events.len(), texts.len() + 2);
            for (event, text) in events.iter().zip(&texts) {
                prop_assert_eq!(&serde_json::from_str::<String>(event).unwrap(), text);
            }
        }
    }
}
