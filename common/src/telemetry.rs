//! Logs to standard error, traces over OTLP, and W3C trace context in and out
//! of plain strings.
//!
//! Context travels as two strings because it goes three ways: HTTP headers,
//! gRPC metadata and a message field. No transport type is named here.
//!
//! Spans are made (and their context forwarded) whether or not a collector is
//! configured, so that a trace does not break at a service that exports
//! nothing. A collector that is away costs spans, never a request and never
//! more than [`FLUSH`] at exit.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::sync::mpsc;
use std::time::Duration;

use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use serde::{Deserialize, Serialize};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// Longest time that exit waits for the last spans.
pub const FLUSH: Duration = Duration::from_secs(3);

/// Longest time that one export may take.
const EXPORT: Duration = Duration::from_secs(5);

/// Crates that the exporter itself runs on: their spans would each cause more.
const BELOW_THE_EXPORTER: [&str; 5] = ["h2", "hyper", "opentelemetry", "tonic", "tower"];

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// Where logs and traces go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// "text" or "json".
    pub log_format: LogFormat,
    /// Filter in the syntax of `RUST_LOG`, which goes over it.
    pub log: String,
    /// The OTLP collector's gRPC endpoint. `OTEL_EXPORTER_OTLP_ENDPOINT` stands
    /// in where it is unset; with neither, nothing is exported.
    pub otlp_endpoint: Option<String>,
    /// Share of traces begun here that is exported, 0 to 1; a trace begun
    /// elsewhere keeps its caller's decision.
    pub trace_sampling: f64,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            log_format: LogFormat::Text,
            log: "info".to_owned(),
            otlp_endpoint: None,
            trace_sampling: 1.0,
        }
    }
}

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error("telemetry.log {filter:?} is not a filter: {reason}")]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The sampling share is not one.
    #[error("telemetry.trace_sampling is {0}, it must be 0 to 1")]
    Sampling(f64),
    /// The endpoint is not one.
    #[error("telemetry.otlp_endpoint {endpoint:?} cannot be used: {reason}")]
    Endpoint {
        /// The endpoint.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The exporter's thread could not be started.
    #[error("cannot start the exporter: {0}")]
    Exporter(#[from] std::io::Error),
    /// The process has a subscriber already.
    #[error("telemetry is set up already")]
    Twice,
}

/// The process's telemetry.
#[derive(Debug)]
pub struct Telemetry;

/// Keeps telemetry going; dropping it exports the last spans, for at most
/// [`FLUSH`].
#[derive(Debug)]
#[must_use = "dropping the guard ends telemetry"]
pub struct TelemetryGuard {
    provider: SdkTracerProvider,
    /// The exporter's own runtime: it must outlive the service's.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Telemetry {
    /// Installs the process's subscriber and panic hook, once.
    ///
    /// `service_name` is `service.name` in traces unless `OTEL_SERVICE_NAME`
    /// says otherwise.
    ///
    /// # Errors
    /// A setting that cannot be used, or [`TelemetryError::Twice`]. A collector
    /// that does not answer is none.
    pub fn init(
        service_name: &str,
        config: &TelemetryConfig,
    ) -> Result<TelemetryGuard, TelemetryError> {
        let filter = variable("RUST_LOG").unwrap_or_else(|| config.log.clone());
        let filter = EnvFilter::try_new(&filter)
            .map_err(|error| TelemetryError::Filter { filter, reason: error.to_string() })?;
        let service_name = variable("OTEL_SERVICE_NAME").unwrap_or(service_name.to_owned());
        let endpoint =
            config.otlp_endpoint.clone().or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT"));
        let guard = tracer(&service_name, endpoint.as_deref(), config.trace_sampling)?;
        let spans = tracing_opentelemetry::layer()
            .with_tracer(guard.provider.tracer("llama-mesh"))
            .with_filter(tracing_subscriber::filter::filter_fn(|metadata| {
                let root = metadata.target().split("::").next().unwrap_or_default();
                *metadata.level() <= tracing::Level::INFO
                    && !BELOW_THE_EXPORTER.iter().any(|name| root.starts_with(name))
            }));
        let text = tracing_subscriber::fmt::layer()
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr);
        let logs = match config.log_format {
            LogFormat::Text => text.boxed(),
            LogFormat::Json => text.json().flatten_event(true).boxed(),
        };
        tracing_subscriber::registry()
            .with(logs.with_filter(filter))
            .with(spans)
            .try_init()
            .map_err(|_| TelemetryError::Twice)?;
        log_panics();
        Ok(guard)
    }
}

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        let provider = self.provider.clone();
        let (done, wait) = mpsc::sync_channel(1);
        // On a thread of its own, because an exporter may ignore its timeout.
        std::thread::spawn(move || {
            let result = provider.shutdown_with_timeout(FLUSH);
            // The receiver is gone if the time is up.
            let _ = done.send(result);
        });
        if !matches!(wait.recv_timeout(FLUSH), Ok(Ok(()))) {
            tracing::warn!("the last spans could not be exported");
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// W3C trace context as it travels; both empty where there is none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TraceContext {
    /// Value of the `traceparent` header.
    pub traceparent: String,
    /// Value of the `tracestate` header, often empty.
    pub tracestate: String,
}

/// The context of `span`, to hand to whoever works for it next.
#[must_use]
pub fn inject(span: &Span) -> TraceContext {
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&span.context(), &mut carrier);
    TraceContext {
        traceparent: carrier.remove("traceparent").unwrap_or_default(),
        tracestate: carrier.remove("tracestate").unwrap_or_default(),
    }
}

/// The caller's context, or `None` if it sent none that parses.
#[must_use]
pub fn parent_from(traceparent: &str, tracestate: &str) -> Option<opentelemetry::Context> {
    let carrier = HashMap::from([
        ("traceparent".to_owned(), traceparent.to_owned()),
        ("tracestate".to_owned(), tracestate.to_owned()),
    ]);
    let empty = opentelemetry::Context::new();
    let context = TraceContextPropagator::new().extract_with_context(&empty, &carrier);
    context.span().span_context().is_valid().then_some(context)
}

/// Makes `span` a child of the caller's span. Call it before the span is first
/// entered; without a usable context the span begins a trace of its own.
pub fn set_parent(span: &Span, traceparent: &str, tracestate: &str) {
    if let Some(parent) = parent_from(traceparent, tracestate) {
        // Fails without our subscriber, and then there is no trace to be in.
        let _ = span.set_parent(parent);
    }
}

fn tracer(
    service_name: &str,
    endpoint: Option<&str>,
    sampling: f64,
) -> Result<TelemetryGuard, TelemetryError> {
    if !(0.0..=1.0).contains(&sampling) {
        return Err(TelemetryError::Sampling(sampling));
    }
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(sampling)));
    let resource = Resource::builder().with_service_name(service_name.to_owned()).build();
    let builder = SdkTracerProvider::builder().with_sampler(sampler).with_resource(resource);
    let Some(endpoint) = endpoint else {
        return Ok(TelemetryGuard { provider: builder.build(), runtime: None });
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("otlp")
        .enable_all()
        .build()?;
    // The exporter's channel belongs to the runtime it is built in.
    let in_runtime = runtime.enter();
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT)
        .build()
        .map_err(|error| TelemetryError::Endpoint {
            endpoint: endpoint.to_owned(),
            reason: error.to_string(),
        });
    drop(in_runtime);
    match exporter {
        Ok(exporter) => {
            let provider = builder.with_batch_exporter(exporter).build();
            Ok(TelemetryGuard { provider, runtime: Some(runtime) })
        }
        Err(error) => {
            runtime.shutdown_background();
            Err(error)
        }
    }
}

/// Panics go where the logs go.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let message = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("(not text)");
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        let backtrace = std::backtrace::Backtrace::capture();
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("(unnamed)");
        tracing::error!(message, location, thread, %backtrace, "panic");
    }));
}

/// A variable that is set to something.
fn variable(name: &str) -> Option<String> {
    let value = std::env::var_os(name)?.into_string().ok()?;
    (!value.trim().is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn subscriber(provider: &SdkTracerProvider) -> impl tracing::Subscriber {
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        tracing_subscriber::registry().with(layer)
    }

    #[test]
    fn a_child_carries_its_callers_trace() {
        let guard = tracer("test", None, 1.0).unwrap();
        tracing::subscriber::with_default(subscriber(&guard.provider), || {
            let span = tracing::info_span!("child");
            set_parent(&span, PARENT, "vendor=1");
            let context = inject(&span);
            assert_eq!(context.traceparent[..36], PARENT[..36], "same trace");
            assert_ne!(context.traceparent[36..52], PARENT[36..52], "another span");
            assert!(context.traceparent.ends_with("-01"));
            assert_eq!(context.tracestate, "vendor=1");
        });
    }

    #[test]
    fn without_a_usable_parent_a_span_begins_its_own_trace() {
        let guard = tracer("test", None, 1.0).unwrap();
        for bad in
            ["", "00-", "zz-0-0-0", "00-00000000000000000000000000000000-0000000000000000-00"]
        {
            assert!(parent_from(bad, "").is_none(), "{bad}");
            tracing::subscriber::with_default(subscriber(&guard.provider), || {
                let span = tracing::info_span!("root");
                set_parent(&span, bad, "");
                assert_eq!(inject(&span).traceparent.len(), PARENT.len());
            });
        }
    }

    #[test]
    fn an_unsampled_trace_still_travels() {
        let guard = tracer("test", None, 0.0).unwrap();
        tracing::subscriber::with_default(subscriber(&guard.provider), || {
            let context = inject(&tracing::info_span!("root"));
            assert!(context.traceparent.ends_with("-00"), "{context:?}");
        });
    }

    #[test]
    fn an_absent_collector_does_not_hold_the_exit() {
        // Port 9 of loopback: nobody listens there, or nobody answers.
        let guard = tracer("test", Some("http://127.0.0.1:9"), 1.0).unwrap();
        tracing::subscriber::with_default(subscriber(&guard.provider), || {
            tracing::info_span!("lost").in_scope(|| {});
        });
        let begun = std::time::Instant::now();
        drop(guard);
        assert!(begun.elapsed() < FLUSH + Duration::from_secs(1), "{:?}", begun.elapsed());
    }

    #[test]
    fn settings_that_cannot_be_used_are_refused() {
        assert!(matches!(tracer("test", None, 1.5), Err(TelemetryError::Sampling(_))));
        assert!(matches!(tracer("test", None, f64::NAN), Err(TelemetryError::Sampling(_))));
        let bad = tracer("test", Some("not an endpoint"), 1.0);
        assert!(matches!(bad, Err(TelemetryError::Endpoint { .. })));
    }
}
