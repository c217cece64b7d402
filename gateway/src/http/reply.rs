//! From results to HTTP responses: JSON, event streams, and OpenAI's errors.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use futures::StreamExt as _;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use super::sse::{EventBody, Format};
use super::wire::render::server_timing;
use crate::error::{ErrorBody, ErrorFields, GatewayError};
use crate::text_stream::{TextStream, Usage};

/// Silence of a stream before a comment is sent; each stream's own is up to a
/// fifth shorter or longer, so that many streams do not wake at once.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

const SERVER_TIMING: &str = "server-timing";
/// Asks nginx not to hold events back.
const ACCEL_BUFFERING: &str = "x-accel-buffering";

/// `value` with status 200.
pub(crate) fn json<T: Serialize>(value: &T) -> Response {
    json_with_status(StatusCode::OK, value)
}

/// `value` with another status.
pub(crate) fn json_with_status<T: Serialize>(status: StatusCode, value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => {
            let mut response = Response::new(Body::from(bytes));
            *response.status_mut() = status;
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Err(error) => {
            // Our reply types have string keys and finite numbers only.
            tracing::error!(%error, "a reply could not be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// `value` with status 200 and where the time went.
pub(crate) fn json_with_timing<T: Serialize>(value: &T, usage: &Usage) -> Response {
    let mut response = json(value);
    if let Ok(timing) = HeaderValue::from_str(&server_timing(usage)) {
        response.headers_mut().insert(SERVER_TIMING, timing);
    }
    response
}

/// The events of an answer. The head waits for the first of them (at most one
/// keep-alive interval), so that a request refused after queueing still gets
/// its status code.
///
/// # Errors
/// What ended the stream before its first event.
pub(crate) async fn event_stream<F>(
    mut events: TextStream,
    format: F,
) -> Result<Response, GatewayError>
where
    F: Format + Unpin + Send + 'static,
{
    let interval = jittered(KEEP_ALIVE);
    let first = match tokio::time::timeout(interval, events.next()).await {
        Ok(Some(first)) => Some(first?),
        // An end without an event is reported by the body; silence goes on.
        Ok(None) | Err(_) => None,
    };
    let body = EventBody::new(first, events, format, interval);
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}

/// A refusal that has no place in the status contract, in the contract's shape.
pub(crate) fn refusal(status: StatusCode, code: &'static str, message: String) -> Response {
    let r#type = "invalid_request_error";
    let error = ErrorFields { message, r#type, param: None, code };
    json_with_status(status, &ErrorBody { error })
}

impl IntoResponse for GatewayError {
    fn into_response(self) -> Response {
        let mut response = json_with_status(self.http_status(), &self.body());
        if let Some(seconds) = self.retry_after_secs() {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if matches!(self, Self::RequestTooLarge { .. } | Self::UploadStalled) {
            // The body may not have been read to its end: nothing can follow it.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

fn jittered(interval: Duration) -> Duration {
    let dice = f64::from(uuid::Uuid::new_v4().as_bytes()[0]) / 255.0;
    interval.mul_f64(0.8 + 0.4 * dice)
}
