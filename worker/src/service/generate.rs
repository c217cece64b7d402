//! The plain form: one request, one stream, no framing. Dropping the stream
//! cancels the request.

use std::time::{Duration, Instant};

use common::ids::RequestId;
use proto::v1 as wire;
use tokio::sync::mpsc::Sender;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Status};
use tracing::Span;

use super::credits::PlainSlot;
use super::{Ready, State, trace};
use crate::convert::request::Arrival;
use crate::convert::{self, request};
use crate::engine::Client;
use crate::error::Refusal;
use crate::generation::{Event, FinishReason, StepEvents};
use crate::metrics;

type Responses = Sender<Result<wire::GenerateResponse, Status>>;

/// An accepted call.
#[derive(Debug)]
pub(super) struct Call {
    ready: Ready,
    client: Client,
    span: Span,
    stop: tokio_util::sync::CancellationToken,
    _slot: PlainSlot,
}

impl Call {
    /// Checks the request and hands it to the engine.
    pub(super) async fn begin(
        state: &State,
        ready: Ready,
        request: Request<wire::GenerateRequest>,
    ) -> Result<Self, Status> {
        Self::try_begin(state, ready, request).await.map_err(|refusal| {
            metrics::refused(refusal.code);
            refusal.into()
        })
    }

    async fn try_begin(
        state: &State,
        ready: Ready,
        request: Request<wire::GenerateRequest>,
    ) -> Result<Self, Refusal> {
        if state.draining.is_cancelled() {
            return Err(Refusal::new(Code::Unavailable, "the worker is draining"));
        }
        let arrival = Arrival::now();
        let (metadata, _, message) = request.into_parts();
        let wanted = message.generation.ok_or_else(|| Refusal::invalid("generation is missing"))?;
        let mut generation = request::generation(wanted, &ready.identity, arrival)?;
        let timeout = timeout(&metadata).and_then(|left| arrival.instant.checked_add(left));
        generation.deadline = generation.deadline.into_iter().chain(timeout).min();
        let slot = ready.credits.take_plain().ok_or_else(|| {
            let slots = ready.credits.total_slots();
            Refusal::new(Code::ResourceExhausted, format!("all {slots} slots are taken"))
        })?;
        let header = |name| metadata.get(name).and_then(|value| value.to_str().ok());
        let request_id = RequestId::from_client(
            Some(message.request_id.as_str())
                .filter(|id| !id.is_empty())
                .or(header("x-request-id")),
        );
        let parent =
            (header("traceparent").unwrap_or_default(), header("tracestate").unwrap_or_default());
        let name = &ready.identity.model.name;
        let span = trace::request_span(&request_id, name, &generation, parent);
        let stopped =
            |error: crate::engine::Stopped| Refusal::new(Code::Unavailable, error.to_string());
        let client = ready.engine.attach().await.map_err(stopped)?;
        ready.engine.submit(client.id, generation, span.clone())?;
        let stop = state.shutdown.cancelled().clone();
        Ok(Self { ready, client, span, stop, _slot: slot })
    }

    /// Streams the answer. Ends, and with it the request, when nobody listens.
    pub(super) async fn run(mut self, responses: Responses) {
        loop {
            // All three are cancel safe.
            let step = tokio::select! {
                step = self.client.events.recv() => step,
                () = responses.closed() => return,
                () = self.stop.cancelled() => None,
            };
            let Some(step) = step else {
                let status = Status::unavailable("the worker has stopped");
                let _ = responses.send(Err(status)).await;
                return;
            };
            let (message, end) = self.response(&step);
            if let Some(message) = message
                && responses.send(Ok(message)).await.is_err()
            {
                return;
            }
            if let Some(end) = end {
                if let Some(status) = status_of(&end) {
                    let _ = responses.send(Err(status)).await;
                }
                return;
            }
        }
    }

    /// The step's message, if it has anything to say, and the end, if it is.
    fn response(
        &self,
        step: &StepEvents,
    ) -> (Option<wire::GenerateResponse>, Option<FinishReason>) {
        let mut response = wire::GenerateResponse::default();
        let mut end = None;
        for event in &step.events {
            match event {
                Event::Admitted { .. } => {}
                Event::Token { token_id, logprobs, .. } => {
                    let token_index = u32::try_from(response.token_ids.len()).unwrap_or(u32::MAX);
                    let logprobs = logprobs.as_ref();
                    response
                        .logprobs
                        .extend(logprobs.map(|l| convert::token_logprobs(token_index, l)));
                    response.token_ids.push(*token_id);
                }
                Event::PromptLogprobs { first_position, tokens, .. } => {
                    let more = convert::prompt_logprobs(0, *first_position, tokens);
                    match &mut response.prompt_logprobs {
                        // Entries follow on.
                        Some(so_far) => so_far.tokens.extend(more.tokens),
                        none => *none = Some(more),
                    }
                }
                Event::Finished { reason, timing, .. } => {
                    response.finish = Some(convert::finish(0, reason, timing));
                    trace::record_finish(&self.span, reason, timing);
                    metrics::finished(reason, timing);
                    end = Some(reason.clone());
                }
            }
        }
        let says_something = response != wire::GenerateResponse::default();
        (says_something.then_some(response), end)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // The client, dropped with this value, cancels what is left.
        tracing::trace!(load = ?self.ready.engine.load(), "generate call ended");
    }
}

/// How the call ends after its last message; `None` is OK.
fn status_of(end: &FinishReason) -> Option<Status> {
    match end {
        FinishReason::Stop(_) | FinishReason::Length => None,
        FinishReason::Cancelled => Some(Status::cancelled("the worker cancelled the request")),
        FinishReason::Deadline => Some(Status::deadline_exceeded("the deadline has passed")),
        FinishReason::Numerical => {
            Some(Status::internal("numerical_error: the logits are not finite"))
        }
        FinishReason::Device(message) => Some(Status::internal(message.clone())),
        FinishReason::DeviceFailed(message) => Some(Status::unavailable(message.clone())),
    }
}

/// The caller's `grpc-timeout`: digits and a unit.
fn timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let count: u32 = digits.parse().ok()?;
    let unit = match unit {
        "H" => Duration::from_secs(3600),
        "M" => Duration::from_secs(60),
        "S" => Duration::from_secs(1),
        "m" => Duration::from_millis(1),
        "u" => Duration::from_micros(1),
        "n" => Duration::from_nanos(1),
        _ => return None,
    };
    let timeout = unit.checked_mul(count)?;
    Instant::now().checked_add(timeout).map(|_| timeout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let read = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            timeout(&metadata)
        };
        assert_eq!(read("1S"), Some(Duration::from_secs(1)));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(3600) * 99_999_999));
        for bad in ["S", "1", "1x", "-1S", "999999999S", "1 S"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(timeout(&MetadataMap::new()), None);
    }
}
