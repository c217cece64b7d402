//! What a request cost and where its time went: for its usage, the metrics and
//! its span's attributes (GenAI semantic conventions).

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::{FinishReason, Timings, Usage};
use crate::error::GatewayError;
use crate::metrics::{Metrics, seconds};
use crate::scheduler::ring::Unread;

/// The running account of one request. If it is dropped before an end, the
/// client has gone.
#[derive(Debug)]
pub(crate) struct Account {
    metrics: Arc<Metrics>,
    span: Span,
    received: Instant,
    submitted: Instant,
    n: usize,
    first_token: Option<Instant>,
    /// When each answer's last token came.
    last_tokens: Vec<Option<Instant>>,
    is_admitted: bool,
    usage: Usage,
    reasons: Vec<&'static str>,
    is_closed: bool,
}

/// What is known when a request has been queued.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) span: Span,
    pub(crate) received: Instant,
    pub(crate) tokenize: Duration,
    pub(crate) prompt_tokens: u32,
    /// Answers per prompt, and in all.
    pub(crate) n: usize,
    pub(crate) num_answers: usize,
}

impl Account {
    pub(crate) fn new(metrics: Arc<Metrics>, submitted: Instant, opening: Opening) -> Self {
        let Opening { span, received, tokenize, prompt_tokens, n, num_answers } = opening;
        let timings = Timings { tokenize_ms: ms(tokenize), ..Timings::default() };
        metrics.tokenize_time.record(seconds(tokenize));
        metrics.prompt_tokens.increment(u64::from(prompt_tokens));
        span.set_attribute("gen_ai.usage.input_tokens", i64::from(prompt_tokens));
        Self {
            metrics,
            span,
            received,
            submitted,
            n,
            first_token: None,
            last_tokens: vec![None; num_answers],
            is_admitted: false,
            usage: Usage { prompt_tokens, timings, ..Usage::default() },
            reasons: Vec::new(),
            is_closed: false,
        }
    }

    /// Times and counts of what has come of an answer.
    pub(super) fn take(&mut self, index: usize, unread: &Unread) {
        if let Some((at, cached_tokens)) = unread.admitted {
            if !std::mem::replace(&mut self.is_admitted, true) {
                let queued = at.saturating_duration_since(self.submitted);
                self.usage.timings.queue_ms = ms(queued);
                self.metrics.queue_time.record(seconds(queued));
            }
            if index.is_multiple_of(self.n) {
                self.usage.cached_tokens += cached_tokens;
            }
        }
        if let Some(at) = unread.tokens_at {
            let first = *self.first_token.get_or_insert(at);
            match self.last_tokens[index].replace(at) {
                None => {
                    let wait = first.saturating_duration_since(self.received);
                    self.usage.timings.ttft_ms = ms(wait);
                    let wait = at.saturating_duration_since(self.received);
                    self.metrics.time_to_first_token.record(seconds(wait));
                }
                Some(before) => {
                    let num_tokens = unread.token_ids.len();
                    let gap = seconds(at.saturating_duration_since(before)) / num_tokens as f64;
                    self.metrics.inter_token_latency.record_many(gap, num_tokens);
                }
            }
        }
        if let Some(Ok(end)) = &unread.end {
            let timings = &mut self.usage.timings;
            timings.prefill_ms = timings.prefill_ms.max(end.timing.prefill_ns as f64 / 1e6);
            timings.decode_ms = timings.decode_ms.max(end.timing.decode_ns as f64 / 1e6);
        }
    }

    pub(super) fn count(&mut self, num_tokens: u32) {
        self.usage.completion_tokens += num_tokens;
        self.metrics.generation_tokens.increment(u64::from(num_tokens));
    }

    pub(super) fn answer_ended(&mut self, reason: FinishReason) {
        self.metrics.count_success(reason);
        self.reasons.push(reason.as_str());
    }

    /// Closes the account of a request that ended well.
    pub(super) fn done(&mut self) -> Usage {
        let total = self.received.elapsed();
        self.usage.timings.total_ms = ms(total);
        self.metrics.e2e_latency.record(seconds(total));
        self.metrics.prefix_cache_queries.increment(u64::from(self.usage.prompt_tokens));
        self.metrics.prefix_cache_hits.increment(u64::from(self.usage.cached_tokens));
        self.span.set_attribute("gen_ai.response.finish_reasons", self.reasons.join(","));
        self.close();
        self.usage
    }

    /// Closes the account of a request that failed.
    pub(super) fn failed(&mut self, error: &GatewayError) {
        self.metrics.count_error(error);
        error.record_in(&self.span);
        self.close();
    }

    fn close(&mut self) {
        self.is_closed = true;
        let span = &self.span;
        span.set_attribute("gen_ai.usage.output_tokens", i64::from(self.usage.completion_tokens));
        let cached = i64::from(self.usage.cached_tokens);
        span.set_attribute("gen_ai.usage.cache_read.input_tokens", cached);
        let first = self.usage.timings.ttft_ms / 1e3;
        span.set_attribute("gen_ai.server.time_to_first_token", first);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if !self.is_closed {
            self.failed(&GatewayError::Cancelled);
        }
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
