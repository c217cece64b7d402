//! Every metric of the gateway: its name, unit and labels, in one file.
//!
//! Names follow vLLM's behind the prefix `llama_mesh_`, so that dashboards and
//! the Kubernetes inference gateway's endpoint picker can map them. Each
//! [`Metrics`] has a recorder of its own: several gateways in one process (the
//! tests) do not count into each other, and nothing global is installed.

use std::fmt;
use std::time::Duration;

use ::metrics::{Counter, Gauge, Histogram, Key, Label, Metadata, Recorder as _, Unit};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

use crate::error::GatewayError;
use crate::text_stream::FinishReason;

/// Bucket bounds of times that people wait, in seconds.
const WAIT_BUCKETS: [f64; 16] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0];
/// Bucket bounds of the time between two tokens, in seconds.
const INTER_TOKEN_BUCKETS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 2.0];

const TIME_TO_FIRST_TOKEN: &str = "llama_mesh_time_to_first_token_seconds";
const INTER_TOKEN_LATENCY: &str = "llama_mesh_inter_token_latency_seconds";
const E2E_LATENCY: &str = "llama_mesh_e2e_request_latency_seconds";
const QUEUE_TIME: &str = "llama_mesh_request_queue_time_seconds";
const TOKENIZE_TIME: &str = "llama_mesh_request_tokenize_time_seconds";
const NUM_RUNNING: &str = "llama_mesh_num_requests_running";
const NUM_WAITING: &str = "llama_mesh_num_requests_waiting";
const KV_USAGE: &str = "llama_mesh_kv_cache_usage_perc";
const PREFIX_QUERIES: &str = "llama_mesh_prefix_cache_queries_total";
const PREFIX_HITS: &str = "llama_mesh_prefix_cache_hits_total";
const PROMPT_TOKENS: &str = "llama_mesh_prompt_tokens_total";
const GENERATION_TOKENS: &str = "llama_mesh_generation_tokens_total";
const SUCCESS: &str = "llama_mesh_request_success_total";
const ERRORS: &str = "llama_mesh_request_errors_total";
const WORKERS_READY: &str = "llama_mesh_workers_ready";
const WORKER_LOSSES: &str = "llama_mesh_worker_losses_total";
const RESUMES: &str = "llama_mesh_sequences_resumed_total";
const DROPPED_FRAMES: &str = "llama_mesh_worker_late_outputs_total";

/// The gateway's metrics for one model (label `model_name`).
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    model: Label,
    /// Seconds from receipt to the first token of an answer.
    pub time_to_first_token: Histogram,
    /// Seconds between an answer's tokens.
    pub inter_token_latency: Histogram,
    /// Seconds from receipt to the end.
    pub e2e_latency: Histogram,
    /// Seconds from submission to admission by a worker.
    pub queue_time: Histogram,
    /// Seconds in template and tokenizer.
    pub tokenize_time: Histogram,
    /// Sequences on workers.
    pub num_running: Gauge,
    /// Sequences in the queue.
    pub num_waiting: Gauge,
    /// Blocks used over blocks there are, 0 to 1, over all ready workers.
    pub kv_cache_usage: Gauge,
    /// Prompt tokens looked up in prefix caches.
    pub prefix_cache_queries: Counter,
    /// Prompt tokens found in prefix caches.
    pub prefix_cache_hits: Counter,
    /// Tokens of prompts.
    pub prompt_tokens: Counter,
    /// Tokens of answers.
    pub generation_tokens: Counter,
    /// Workers that take requests.
    pub workers_ready: Gauge,
    /// Streams to workers that ended without being asked to.
    pub worker_losses: Counter,
    /// Sequences that went on on another stream.
    pub sequences_resumed: Counter,
    /// Worker outputs for sequences that had been given up.
    pub late_outputs: Counter,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("model", &self.model).finish_non_exhaustive()
    }
}

impl Metrics {
    /// All metrics at zero.
    ///
    /// # Panics
    /// Never: the bucket lists are not empty.
    pub fn new(model_name: &str) -> Self {
        let builder = PrometheusBuilder::new()
            .set_buckets(&WAIT_BUCKETS)
            .and_then(|builder| {
                let name = Matcher::Full(INTER_TOKEN_LATENCY.into());
                builder.set_buckets_for_metric(name, &INTER_TOKEN_BUCKETS)
            })
            .expect("the bucket lists are not empty");
        let recorder = builder.build_recorder();
        describe(&recorder);
        let label = || vec![Label::new("model_name", model_name.to_owned())];
        let counter = |name| recorder.register_counter(&Key::from_parts(name, label()), &METADATA);
        let gauge = |name| recorder.register_gauge(&Key::from_parts(name, label()), &METADATA);
        let histogram =
            |name| recorder.register_histogram(&Key::from_parts(name, label()), &METADATA);
        Self {
            time_to_first_token: histogram(TIME_TO_FIRST_TOKEN),
            inter_token_latency: histogram(INTER_TOKEN_LATENCY),
            e2e_latency: histogram(E2E_LATENCY),
            queue_time: histogram(QUEUE_TIME),
            tokenize_time: histogram(TOKENIZE_TIME),
            num_running: gauge(NUM_RUNNING),
            num_waiting: gauge(NUM_WAITING),
            kv_cache_usage: gauge(KV_USAGE),
            prefix_cache_queries: counter(PREFIX_QUERIES),
            prefix_cache_hits: counter(PREFIX_HITS),
            prompt_tokens: counter(PROMPT_TOKENS),
            generation_tokens: counter(GENERATION_TOKENS),
            workers_ready: gauge(WORKERS_READY),
            worker_losses: counter(WORKER_LOSSES),
            sequences_resumed: counter(RESUMES),
            late_outputs: counter(DROPPED_FRAMES),
            handle: recorder.handle(),
            model: Label::new("model_name", model_name.to_owned()),
            recorder,
        }
    }

    /// Counts an answer that ended well.
    pub fn count_success(&self, reason: FinishReason) {
        let reason = Label::from_static_parts("finished_reason", reason.as_str());
        self.count(SUCCESS, reason);
    }

    /// Counts a request that failed or was refused, by its code.
    pub fn count_error(&self, error: &GatewayError) {
        self.count(ERRORS, Label::from_static_parts("code", error.code()));
    }

    /// All metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        self.handle.run_upkeep();
        self.handle.render()
    }

    fn count(&self, name: &'static str, label: Label) {
        let key = Key::from_parts(name, vec![self.model.clone(), label]);
        self.recorder.register_counter(&key, &METADATA).increment(1);
    }
}

/// Seconds of a duration, for a histogram.
pub fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

static METADATA: Metadata<'static> =
    Metadata::new(module_path!(), ::metrics::Level::INFO, Some(module_path!()));

fn describe(recorder: &PrometheusRecorder) {
    let histograms = [
        (TIME_TO_FIRST_TOKEN, "from receipt to an answer's first token"),
        (INTER_TOKEN_LATENCY, "between an answer's tokens"),
        (E2E_LATENCY, "from receipt to the end of a request"),
        (QUEUE_TIME, "from submission to admission by a worker"),
        (TOKENIZE_TIME, "in template and tokenizer"),
    ];
    for (name, text) in histograms {
        recorder.describe_histogram(name.into(), Some(Unit::Seconds), text.into());
    }
    let gauges = [
        (NUM_RUNNING, "sequences on workers"),
        (NUM_WAITING, "sequences in the queue"),
        (KV_USAGE, "KV blocks used over blocks there are, 0 to 1"),
        (WORKERS_READY, "workers that take requests"),
    ];
    for (name, text) in gauges {
        recorder.describe_gauge(name.into(), None, text.into());
    }
    let counters = [
        (PREFIX_QUERIES, "prompt tokens looked up in prefix caches"),
        (PREFIX_HITS, "prompt tokens found in prefix caches"),
        (PROMPT_TOKENS, "tokens of prompts"),
        (GENERATION_TOKENS, "tokens of answers"),
        (SUCCESS, "answers that ended well"),
        (ERRORS, "requests refused or failed"),
        (WORKER_LOSSES, "streams to workers that broke"),
        (RESUMES, "sequences that went on on another stream"),
        (DROPPED_FRAMES, "worker outputs for sequences that had been given up"),
    ];
    for (name, text) in counters {
        recorder.describe_counter(name.into(), None, text.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_gateways_in_one_process_count_apart() {
        let (one, two) = (Metrics::new("tiny"), Metrics::new("tiny"));
        one.prompt_tokens.increment(7);
        one.count_success(FinishReason::Stop);
        one.count_error(&GatewayError::Deadline);
        one.time_to_first_token.record(0.02);
        let text = one.render();
        for line in [
            "llama_mesh_prompt_tokens_total{model_name=\"tiny\"} 7",
            "llama_mesh_request_success_total{model_name=\"tiny\",finished_reason=\"stop\"} 1",
            "llama_mesh_request_errors_total{model_name=\"tiny\",code=\"deadline\"} 1",
            "llama_mesh_time_to_first_token_seconds_bucket{model_name=\"tiny\",le=\"0.025\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(two.render().contains("llama_mesh_prompt_tokens_total{model_name=\"tiny\"} 0"));
    }
}
