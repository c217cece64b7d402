//! Everything that can go wrong with a request, and the only two mappings of
//! it: to HTTP with OpenAI's error body, and to a gRPC status.
//!
//! Both mappings hang on [`GatewayError::code`], so the two front doors cannot
//! disagree. Messages hold what the client sent or a limit, never a prompt, a
//! key or an address.

use std::collections::HashMap;
use std::time::Duration;

use http::StatusCode;
use serde::Serialize;
use tonic_types::{ErrorDetails, StatusExt as _};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Domain of the gRPC `ErrorInfo` detail.
const ERROR_DOMAIN: &str = "llama-mesh";

/// Why a request was refused or ended early; one variant per thing that a
/// client can do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GatewayError {
    /// A field is wrong; sending the same again will fail again.
    #[error("{message}")]
    InvalidValue {
        /// Path of the field, for example `messages[3].role`.
        param: Option<String>,
        /// Names the value and the limit.
        message: String,
    },
    /// Prompt and answer together do not fit the model's context.
    #[error(
        "prompt has {prompt_tokens} tokens and max_tokens is {max_tokens}, max_model_len is {max_model_len}"
    )]
    ContextLengthExceeded {
        /// Tokens of the prompt after the template.
        prompt_tokens: u64,
        /// Tokens asked for.
        max_tokens: u64,
        /// Most tokens of prompt and answer together.
        max_model_len: u64,
    },
    /// The request carries no key, or one that does not exist.
    #[error("missing or unknown api key")]
    Unauthenticated,
    /// The key exists and may not do this.
    #[error("{0}")]
    Forbidden(String),
    /// No such model here.
    #[error("model `{model}` does not exist")]
    ModelNotFound {
        /// As the client wrote it (shortened).
        model: String,
    },
    /// No such thing, or it belongs to somebody else (told apart for nobody).
    #[error("{what} not found")]
    NotFound {
        /// What was looked for, for example `session`.
        what: String,
    },
    /// A turn is running on this session, or its version has moved on.
    #[error("session has a turn in progress")]
    SessionBusy,
    /// The body or message is over its limit.
    #[error("request body is over {limit_bytes} bytes")]
    RequestTooLarge {
        /// Most bytes of a body.
        limit_bytes: u64,
    },
    /// The client stopped sending its body.
    #[error("request body did not arrive in time")]
    UploadStalled,
    /// This key has used up its quota.
    #[error("rate limit reached")]
    RateLimited {
        /// When to try again.
        retry_after: Duration,
    },
    /// The queue is full.
    #[error("queue is full")]
    Overloaded {
        /// When to try again.
        retry_after: Duration,
    },
    /// No healthy worker serves the model.
    #[error("no worker is ready")]
    NoWorker {
        /// When to try again.
        retry_after: Duration,
    },
    /// The gateway is shutting down.
    #[error("gateway is draining")]
    Draining {
        /// When to try again.
        retry_after: Duration,
    },
    /// The request's deadline has passed.
    #[error("deadline passed")]
    Deadline,
    /// The client went away; nobody reads this.
    #[error("cancelled by the client")]
    Cancelled,
    /// The client did not read its stream for too long.
    #[error("client did not read its stream for {stalled_ms} ms")]
    SlowClient {
        /// How long the stream was full.
        stalled_ms: u64,
    },
    /// The worker went away and nobody could go on in its place.
    #[error("worker lost")]
    WorkerLost,
    /// A fault of ours (or a worker's); the message is safe to show.
    #[error("internal error: {0}")]
    Internal(String),
}

impl GatewayError {
    /// A wrong field, named.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::InvalidValue { param: Some(param.into()), message: message.into() }
    }

    /// The `error.code` of the body and the `reason` of the gRPC detail.
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidValue { .. } => "invalid_value",
            Self::ContextLengthExceeded { .. } => "context_length_exceeded",
            Self::Unauthenticated => "invalid_api_key",
            Self::Forbidden(_) => "forbidden",
            Self::ModelNotFound { .. } | Self::NotFound { .. } => "not_found",
            Self::SessionBusy => "session_busy",
            Self::RequestTooLarge { .. } => "request_too_large",
            Self::UploadStalled | Self::Deadline => "deadline",
            Self::RateLimited { .. } => "rate_limited",
            Self::Overloaded { .. } => "overloaded",
            Self::NoWorker { .. } => "no_worker",
            Self::Draining { .. } => "draining",
            Self::Cancelled => "cancelled",
            Self::SlowClient { .. } => "slow_client",
            Self::WorkerLost => "worker_lost",
            Self::Internal(_) => "internal",
        }
    }

    /// The status of an HTTP answer whose first byte has not been sent.
    pub fn http_status(&self) -> StatusCode {
        match self {
            Self::InvalidValue { .. } | Self::ContextLengthExceeded { .. } => {
                StatusCode::BAD_REQUEST
            }
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::ModelNotFound { .. } | Self::NotFound { .. } => StatusCode::NOT_FOUND,
            Self::SessionBusy => StatusCode::CONFLICT,
            Self::RequestTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UploadStalled | Self::SlowClient { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::RateLimited { .. } | Self::Overloaded { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::NoWorker { .. } | Self::Draining { .. } | Self::WorkerLost => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Deadline => StatusCode::GATEWAY_TIMEOUT,
            // 499 is what proxies log for a client that left; never sent.
            Self::Cancelled => StatusCode::from_u16(499).expect("499 is within 100..=999"),
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The status of a gRPC answer.
    pub fn grpc_code(&self) -> tonic::Code {
        match self {
            Self::InvalidValue { .. } | Self::ContextLengthExceeded { .. } => {
                tonic::Code::InvalidArgument
            }
            Self::Unauthenticated => tonic::Code::Unauthenticated,
            Self::Forbidden(_) => tonic::Code::PermissionDenied,
            Self::ModelNotFound { .. } | Self::NotFound { .. } => tonic::Code::NotFound,
            Self::SessionBusy => tonic::Code::Aborted,
            Self::RequestTooLarge { .. } => tonic::Code::OutOfRange,
            Self::UploadStalled | Self::Deadline => tonic::Code::DeadlineExceeded,
            Self::RateLimited { .. } | Self::Overloaded { .. } => tonic::Code::ResourceExhausted,
            Self::NoWorker { .. } | Self::Draining { .. } | Self::WorkerLost => {
                tonic::Code::Unavailable
            }
            Self::Cancelled | Self::SlowClient { .. } => tonic::Code::Cancelled,
            Self::Internal(_) => tonic::Code::Internal,
        }
    }

    /// OpenAI's coarse `error.type`.
    pub fn error_type(&self) -> &'static str {
        match self.http_status().as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            503 => "service_unavailable_error",
            400..=499 => "invalid_request_error",
            504 => "timeout_error",
            _ => "internal_error",
        }
    }

    /// The field at fault, if one is.
    pub fn param(&self) -> Option<&str> {
        match self {
            Self::InvalidValue { param, .. } => param.as_deref(),
            Self::ModelNotFound { .. } => Some("model"),
            _ => None,
        }
    }

    /// When to try again; `None`: not at all, or whenever the caller likes.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after }
            | Self::Overloaded { retry_after }
            | Self::NoWorker { retry_after }
            | Self::Draining { retry_after } => Some(*retry_after),
            _ => None,
        }
    }

    /// Value of the `Retry-After` header: whole seconds, at least 1.
    pub fn retry_after_secs(&self) -> Option<u64> {
        self.retry_after().map(|wait| wait.as_millis().div_ceil(1000).max(1) as u64)
    }

    /// Enters itself into the span of its request: as an attribute, and as the
    /// span's failure if it is not the client's. The answer's own status cannot
    /// say so: it is 200 for a stream, and for all of gRPC.
    pub fn record_in(&self, span: &tracing::Span) {
        span.set_attribute("error.type", self.code());
        if self.http_status().is_server_error() {
            span.record("otel.status_code", "ERROR");
        }
    }

    /// OpenAI's error body.
    pub fn body(&self) -> ErrorBody {
        ErrorBody {
            error: ErrorFields {
                message: self.to_string(),
                r#type: self.error_type(),
                param: self.param().map(str::to_owned),
                code: self.code(),
            },
        }
    }
}

/// `{"error": {...}}`, as OpenAI's clients read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ErrorBody {
    /// The only field.
    pub error: ErrorFields,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ErrorFields {
    /// For people.
    pub message: String,
    /// Coarse class.
    pub r#type: &'static str,
    /// The field at fault.
    pub param: Option<String>,
    /// For programs.
    pub code: &'static str,
}

impl From<&GatewayError> for tonic::Status {
    /// The code and message, with `ErrorInfo` (the body's code), `BadRequest`
    /// (the field) and `RetryInfo` details, and `grpc-retry-pushback-ms`.
    fn from(error: &GatewayError) -> Self {
        let mut details = ErrorDetails::new();
        details.set_error_info(error.code(), ERROR_DOMAIN, HashMap::new());
        if let Some(param) = error.param() {
            details.add_bad_request_violation(param, error.to_string());
        }
        if let Some(wait) = error.retry_after() {
            details.set_retry_info(Some(wait));
        }
        let mut status =
            tonic::Status::with_error_details(error.grpc_code(), error.to_string(), details);
        if let Some(wait) = error.retry_after() {
            let pushback = tonic::metadata::MetadataValue::from(wait.as_millis() as u64);
            status.metadata_mut().insert("grpc-retry-pushback-ms", pushback);
        }
        status
    }
}

impl From<GatewayError> for tonic::Status {
    fn from(error: GatewayError) -> Self {
        Self::from(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of the status contract: error, gRPC, HTTP, code.
    fn contract() -> Vec<(GatewayError, tonic::Code, u16, &'static str)> {
        use tonic::Code;
        let retry_after = Duration::from_millis(1500);
        vec![
            (GatewayError::invalid("n", "n is 9"), Code::InvalidArgument, 400, "invalid_value"),
            (
                GatewayError::ContextLengthExceeded {
                    prompt_tokens: 9,
                    max_tokens: 8,
                    max_model_len: 16,
                },
                Code::InvalidArgument,
                400,
                "context_length_exceeded",
            ),
            (GatewayError::Unauthenticated, Code::Unauthenticated, 401, "invalid_api_key"),
            (GatewayError::Forbidden("no".into()), Code::PermissionDenied, 403, "forbidden"),
            (GatewayError::ModelNotFound { model: "x".into() }, Code::NotFound, 404, "not_found"),
            (GatewayError::SessionBusy, Code::Aborted, 409, "session_busy"),
            (
                GatewayError::RequestTooLarge { limit_bytes: 8 },
                Code::OutOfRange,
                413,
                "request_too_large",
            ),
            (
                GatewayError::RateLimited { retry_after },
                Code::ResourceExhausted,
                429,
                "rate_limited",
            ),
            (GatewayError::Overloaded { retry_after }, Code::ResourceExhausted, 429, "overloaded"),
            (GatewayError::NoWorker { retry_after }, Code::Unavailable, 503, "no_worker"),
            (GatewayError::Draining { retry_after }, Code::Unavailable, 503, "draining"),
            (GatewayError::Deadline, Code::DeadlineExceeded, 504, "deadline"),
            (GatewayError::UploadStalled, Code::DeadlineExceeded, 408, "deadline"),
            (GatewayError::Cancelled, Code::Cancelled, 499, "cancelled"),
            (GatewayError::WorkerLost, Code::Unavailable, 503, "worker_lost"),
            (GatewayError::Internal("x".into()), Code::Internal, 500, "internal"),
        ]
    }

    #[test]
    fn every_error_maps_as_the_status_contract_says() {
        for (error, grpc, http, code) in contract() {
            assert_eq!(error.grpc_code(), grpc, "{error:?}");
            assert_eq!(error.http_status().as_u16(), http, "{error:?}");
            assert_eq!(error.body().error.code, code, "{error:?}");
            assert_eq!(tonic::Status::from(&error).code(), grpc, "{error:?}");
        }
    }

    #[test]
    fn overload_carries_its_retry_hint_in_both_protocols() {
        let error = GatewayError::Overloaded { retry_after: Duration::from_millis(1500) };
        assert_eq!(error.retry_after_secs(), Some(2));
        let status = tonic::Status::from(&error);
        assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), "1500");
        let details = status.get_error_details();
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_millis(1500)));
        assert_eq!(details.error_info().unwrap().reason, "overloaded");
    }

    #[test]
    fn a_wrong_field_is_named_in_both_protocols() {
        let error = GatewayError::invalid("top_p", "top_p is 2, must be over 0 and at most 1");
        let body = serde_json::to_value(error.body()).unwrap();
        assert_eq!(body["error"]["param"], "top_p");
        assert_eq!(body["error"]["type"], "invalid_request_error");
        let details = tonic::Status::from(&error).get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "top_p");
    }
}
