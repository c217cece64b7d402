//! One span per request, child of the caller's, parent of the engine's.

use common::ids::RequestId;
use tracing::Span;
use tracing::field::Empty;

use crate::generation::{FinishReason, Generation, SequenceTiming};
use crate::metrics::reason_name;

/// The span of a request, named by OpenTelemetry's GenAI conventions where they
/// have a name. `trace` is (traceparent, tracestate), empty where unknown.
pub(super) fn request_span(
    request_id: &RequestId,
    model: &str,
    generation: &Generation,
    trace: (&str, &str),
) -> Span {
    let span = tracing::info_span!(
        "worker.generate",
        otel.kind = "server",
        otel.status_code = Empty,
        request_id = %request_id,
        gen_ai.operation.name = "text_completion",
        gen_ai.request.model = model,
        gen_ai.request.max_tokens = generation.max_new_tokens,
        gen_ai.request.temperature = f64::from(generation.sampling.temperature),
        gen_ai.usage.input_tokens = generation.prompt_token_ids.len(),
        gen_ai.usage.cache_read.input_tokens = Empty,
        gen_ai.usage.output_tokens = Empty,
        gen_ai.response.finish_reasons = Empty,
        resumed_tokens = generation.resume_token_ids.len(),
        preemptions = Empty,
    );
    common::telemetry::set_parent(&span, trace.0, trace.1);
    span
}

/// Notes on the request's span how it ended.
pub(super) fn record_finish(span: &Span, reason: &FinishReason, timing: &SequenceTiming) {
    span.record("gen_ai.usage.cache_read.input_tokens", timing.cached_tokens);
    span.record("gen_ai.usage.output_tokens", timing.generated_tokens);
    span.record("gen_ai.response.finish_reasons", reason_name(reason));
    span.record("preemptions", timing.preemptions);
    if matches!(
        reason,
        FinishReason::Numerical | FinishReason::Device(_) | FinishReason::DeviceFailed(_)
    ) {
        span.record("otel.status_code", "ERROR");
    }
}
