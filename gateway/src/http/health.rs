//! `GET /health`, `/ready`, `/live`, `/version` and `/metrics`.

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::{StatusCode, header};

use super::door::HttpState;
use super::reply::{json, json_with_status};
use super::wire::reply::{ReadyBody, WorkerBody};

/// Seconds after which a client of an unready gateway should ask again.
const RETRY_AFTER_S: u64 = 2;
/// The text format's own name, with its version.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// 200 if a request would be taken now, and why not or how far along else.
pub(super) async fn ready(State(state): State<HttpState>) -> Response {
    let readiness = state.spine.readiness();
    let workers = readiness.workers.into_iter().map(|worker| WorkerBody {
        endpoint: worker.endpoint,
        state: worker.state,
        reason: worker.reason,
        device: worker.device,
        num_running: worker.num_running,
    });
    let body =
        ReadyBody { ready: readiness.ready, reason: readiness.reason, workers: workers.collect() };
    if body.ready {
        return json(&body);
    }
    let mut response = json_with_status(StatusCode::SERVICE_UNAVAILABLE, &body);
    response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_S.into());
    response
}

/// 200 if the process can answer at all.
pub(super) async fn live() -> StatusCode {
    StatusCode::OK
}

pub(super) async fn version() -> Response {
    json(&serde_json::json!({ "version": env!("CARGO_PKG_VERSION") }))
}

pub(super) async fn metrics(State(state): State<HttpState>) -> Response {
    ([(header::CONTENT_TYPE, METRICS_TYPE)], state.spine.metrics().render()).into_response()
}
