//! What every request meets first, whichever protocol it speaks: its id, its
//! span, its deadline, the check of its `Host`, and a net for panics.

mod hosts;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use common::ids::RequestId;
use common::telemetry;
use futures::FutureExt as _;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Version, header};
use tower::ServiceExt as _;
use tracing::{Instrument as _, Span, field};

pub(crate) use self::hosts::HostPolicy;
use super::body::BodyLimits;
use super::guarded::guarded;
use super::reply::refusal;
use super::wire::options::ReplyOptions;
use crate::error::GatewayError;
use crate::generate::{RequestContext, Spine};
use crate::request::{GenerateRequest, ValidRequest};

const REQUEST_ID: &str = "x-request-id";
const DEADLINE: &str = "x-request-deadline-ms";
const PRIORITY: &str = "x-priority";
const GRPC_TIMEOUT: &str = "grpc-timeout";
/// Longest deadline that a client can ask for: a day.
const MAX_DEADLINE_MS: u64 = 24 * 60 * 60 * 1000;

/// Longer bodies take more than half a millisecond to parse, and are parsed off
/// the threads that serve everybody.
const MAX_INLINE_BYTES: usize = 64 * 1024;

/// What handlers of HTTP endpoints work with.
#[derive(Clone, Debug)]
pub(crate) struct HttpState {
    pub(crate) spine: Spine,
    pub(crate) bodies: BodyLimits,
}

/// How an endpoint reads its body.
type Parse = fn(&[u8]) -> Result<(GenerateRequest, ReplyOptions), GatewayError>;

impl HttpState {
    /// From the wire to what the spine takes.
    ///
    /// # Errors
    /// The body does not arrive, or what it asks for is refused; counted here,
    /// since the spine never sees it.
    pub(crate) async fn valid_request(
        &self,
        arrival: &Arrival,
        request: Request<Body>,
        parse: Parse,
    ) -> Result<(ValidRequest, ReplyOptions), GatewayError> {
        let read = async {
            let (mut generate, options) = self.parsed(request, parse).await?;
            arrival.complete(&mut generate)?;
            Ok((ValidRequest::new(generate, self.spine.limits())?, options))
        };
        read.await.inspect_err(|error| self.spine.metrics().count_error(error))
    }

    /// The request's whole body, read by `parse`.
    ///
    /// # Errors
    /// The body does not arrive, or what `parse` says of it.
    pub(crate) async fn parsed<T: Send + 'static>(
        &self,
        request: Request<Body>,
        parse: fn(&[u8]) -> Result<T, GatewayError>,
    ) -> Result<T, GatewayError> {
        let body = self.bodies.read(request.into_body()).await?;
        if body.len() <= MAX_INLINE_BYTES {
            return parse(&body);
        }
        let parsed = tokio::task::spawn_blocking(move || parse(&body)).await;
        parsed.unwrap_or_else(|_| Err(GatewayError::Internal("a fault in the gateway".into())))
    }
}

/// What is known of a request before its body.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    request_id: RequestId,
    span: Span,
    received: Instant,
    deadline: Option<Instant>,
    priority: Option<i64>,
}

impl Arrival {
    /// For the spine.
    pub(crate) fn context(&self) -> RequestContext {
        RequestContext {
            request_id: self.request_id.to_string(),
            span: self.span.clone(),
            received: self.received,
        }
    }

    /// Adds what stands in headers to what stands in the body.
    ///
    /// # Errors
    /// Two priorities that differ.
    pub(crate) fn complete(&self, request: &mut GenerateRequest) -> Result<(), GatewayError> {
        request.deadline = self.deadline;
        match (self.priority, request.priority) {
            (Some(header), Some(body)) if header != body => {
                let message = format!("priority is {body} and {PRIORITY} is {header}");
                return Err(GatewayError::invalid("priority", message));
            }
            (header, body) => request.priority = body.or(header),
        }
        Ok(())
    }
}

/// The way in for both protocols.
#[derive(Debug)]
pub(crate) struct Door {
    /// `None`: this listener is for gRPC only.
    http: Option<Router>,
    grpc: Router,
    hosts: HostPolicy,
}

impl Door {
    /// A door to HTTP and gRPC, told apart by content type.
    pub(crate) fn new(http: Option<Router>, grpc: Router, hosts: HostPolicy) -> Arc<Self> {
        Arc::new(Self { http, grpc, hosts })
    }

    /// Answers one request. Dropping the future, or the response's body, is how
    /// a client that went away is noticed further in.
    pub(crate) async fn answer(self: Arc<Self>, mut request: Request<Body>) -> Response {
        let received = Instant::now();
        let request_id = RequestId::from_client(text(request.headers(), REQUEST_ID));
        let protocol = Protocol::of(request.headers());
        let version = request.version();
        let span = server_span(&request, protocol, &request_id);
        let arrival = arrive(request.headers(), &request_id, received, &span);
        let handled = async {
            if !self.hosts.allow(host(&request)) {
                let message = "this host name is not served here".to_owned();
                return protocol.refuse(GatewayError::Forbidden(message));
            }
            match arrival {
                Err(error) => protocol.refuse(error),
                Ok(arrival) => {
                    request.extensions_mut().insert(arrival);
                    self.route(protocol, request).await
                }
            }
        };
        let caught = AssertUnwindSafe(handled.instrument(span.clone())).catch_unwind().await;
        let mut response = caught.unwrap_or_else(|_| {
            // The panic hook has logged it.
            protocol.refuse(GatewayError::Internal("a fault in the gateway".into()))
        });
        if version == Version::HTTP_2 {
            // Means nothing there; the stream's end is enough.
            response.headers_mut().remove(header::CONNECTION);
        }
        if let Ok(id) = HeaderValue::from_str(request_id.as_str()) {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        let status = response.status();
        span.record("http.response.status_code", status.as_u16());
        if status.is_server_error() {
            span.record("otel.status_code", "ERROR");
        }
        // A stream's span lasts as long as the stream.
        response.map(|body| guarded(body, span))
    }

    async fn route(&self, protocol: Protocol, request: Request<Body>) -> Response {
        let router = match (protocol, &self.http) {
            (Protocol::Grpc, _) => self.grpc.clone(),
            (Protocol::Http, Some(http)) => http.clone(),
            (Protocol::Http, None) => {
                let message = "this port serves gRPC only".to_owned();
                return refusal(StatusCode::NOT_FOUND, "not_found", message);
            }
        };
        match router.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http,
    Grpc,
}

impl Protocol {
    fn of(headers: &HeaderMap) -> Self {
        let content_type = text(headers, header::CONTENT_TYPE.as_str()).unwrap_or_default();
        if content_type.starts_with("application/grpc") { Self::Grpc } else { Self::Http }
    }

    fn refuse(self, error: GatewayError) -> Response {
        match self {
            Self::Http => error.into_response(),
            Self::Grpc => tonic::Status::from(error).into_http(),
        }
    }
}

fn server_span(request: &Request<Body>, protocol: Protocol, request_id: &RequestId) -> Span {
    let method = request.method().as_str();
    let path = request.uri().path();
    let (name, route, system) = match protocol {
        Protocol::Http => {
            let route = super::route_of(path);
            (format!("{method} {route}"), Some(route), None)
        }
        Protocol::Grpc => (path.trim_start_matches('/').to_owned(), None, Some("grpc")),
    };
    let span = tracing::info_span!(
        "request",
        otel.name = name,
        otel.kind = "server",
        otel.status_code = field::Empty,
        http.request.method = method,
        http.route = route,
        http.response.status_code = field::Empty,
        rpc.system = system,
        request_id = request_id.as_str(),
    );
    let headers = request.headers();
    let parent = text(headers, "traceparent").unwrap_or_default();
    telemetry::set_parent(&span, parent, text(headers, "tracestate").unwrap_or_default());
    span
}

fn arrive(
    headers: &HeaderMap,
    request_id: &RequestId,
    received: Instant,
    span: &Span,
) -> Result<Arrival, GatewayError> {
    let own = integer::<u64>(headers, DEADLINE)?;
    if let Some(ms) = own.filter(|ms| !(1..=MAX_DEADLINE_MS).contains(ms)) {
        let message = format!("{DEADLINE} is {ms}, must be 1 to {MAX_DEADLINE_MS}");
        return Err(GatewayError::invalid(DEADLINE, message));
    }
    let own = own.map(Duration::from_millis);
    let grpc = headers.get(GRPC_TIMEOUT).map(grpc_timeout).transpose()?;
    let timeout = match (own, grpc) {
        (Some(own), Some(grpc)) => Some(own.min(grpc)),
        (own, grpc) => own.or(grpc),
    };
    Ok(Arrival {
        request_id: request_id.clone(),
        span: span.clone(),
        received,
        deadline: timeout.map(|timeout| received + timeout),
        priority: integer(headers, PRIORITY)?,
    })
}

fn integer<T: std::str::FromStr>(
    headers: &HeaderMap,
    name: &str,
) -> Result<Option<T>, GatewayError> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(|value| value.trim().parse().ok());
    parsed.map(Some).ok_or_else(|| {
        GatewayError::invalid(name, format!("{name} must be an integer that fits its range"))
    })
}

/// At most 8 digits and a unit, as the gRPC specification has it; at most a day.
fn grpc_timeout(value: &HeaderValue) -> Result<Duration, GatewayError> {
    let parse = || {
        let text = value.to_str().ok()?;
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let amount: u64 = digits.parse().ok()?;
        Some(match unit {
            "H" => Duration::from_secs(amount * 3600),
            "M" => Duration::from_secs(amount * 60),
            "S" => Duration::from_secs(amount),
            "m" => Duration::from_millis(amount),
            "u" => Duration::from_micros(amount),
            "n" => Duration::from_nanos(amount),
            _ => return None,
        })
    };
    let timeout = parse().ok_or_else(|| {
        GatewayError::invalid(GRPC_TIMEOUT, format!("{GRPC_TIMEOUT} is not a timeout"))
    })?;
    Ok(timeout.min(Duration::from_millis(MAX_DEADLINE_MS)))
}

/// HTTP/2 has it in the URI, HTTP/1 in a header.
fn host(request: &Request<Body>) -> Option<&str> {
    match request.uri().authority() {
        Some(authority) => Some(authority.as_str()),
        None => text(request.headers(), header::HOST.as_str()),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests;
