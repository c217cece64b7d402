//! The OpenAI-compatible HTTP endpoints. Each handler is: wire → request →
//! spine → wire; rules live behind, in `request`.
//!
//! There are no CORS headers: a web page of another origin gets nothing. Bodies
//! must be declared `application/json`, which a page cannot do without asking.

mod answers;
mod body;
mod chat;
mod completions;
pub(crate) mod door;
pub(crate) mod guarded;
mod health;
mod models;
mod reply;
mod sse;
pub(crate) mod tokens;
pub(crate) mod wire;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use http::{HeaderMap, Method, StatusCode, header};

pub(crate) use self::body::BodyLimits;
use self::door::HttpState;
use self::reply::refusal;
use crate::error::GatewayError;

/// Every path that is served; also the names of spans.
const ROUTES: [&str; 12] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/v1/models/{model}",
    "/tokenize",
    "/detokenize",
    "/health",
    "/ready",
    "/live",
    "/version",
    "/metrics",
    "/tt-liveness",
];

/// All endpoints.
pub(crate) fn router(state: HttpState) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat::chat_completions))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*model}", get(models::retrieve))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/health", get(health::ready))
        .route("/ready", get(health::ready))
        .route("/live", get(health::live))
        .route("/tt-liveness", get(health::live))
        .route("/version", get(health::version))
        .route("/metrics", get(health::metrics))
        .layer(from_fn(require_json))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .with_state(state)
}

/// The served path that `path` matches, for names of bounded number.
pub(crate) fn route_of(path: &str) -> &'static str {
    let exact = ROUTES.iter().find(|route| **route == path);
    match exact {
        Some(route) => route,
        None if path.starts_with("/v1/models/") => "/v1/models/{model}",
        None => "other",
    }
}

/// A body that is not declared to be JSON could come from a form on any web
/// page; and compressed ones are not taken.
async fn require_json(request: Request, next: Next) -> Response {
    let refused = (request.method() == Method::POST).then(|| not_plain_json(request.headers()));
    match refused.flatten() {
        None => next.run(request).await,
        Some(message) => {
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            refusal(status, "unsupported_media_type", message.to_owned())
        }
    }
}

/// What is wrong with a body's declared type or encoding.
fn not_plain_json(headers: &HeaderMap) -> Option<&'static str> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let kind = text(header::CONTENT_TYPE).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let encoding = text(header::CONTENT_ENCODING).unwrap_or("identity");
    if !kind.eq_ignore_ascii_case("application/json") {
        return Some("content-type must be application/json");
    }
    (!encoding.eq_ignore_ascii_case("identity")).then_some("content-encoding is not supported")
}

async fn not_found() -> Response {
    GatewayError::NotFound { what: "path".into() }.into_response()
}

async fn method_not_allowed(method: Method) -> Response {
    let message = format!("method {method} is not allowed here");
    refusal(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}
