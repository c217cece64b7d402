//! Every metric of the worker: name, unit, meaning; and the endpoint.
//!
//! Names end in their unit. The engine's counters are read once a second, so a
//! step costs nothing here; step times are therefore samples.

use std::net::SocketAddr;
use std::time::Duration;

use common::shutdown::Shutdown;
use mesh::MeshStatus;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::engine::{EngineHandle, EngineStatus};
use crate::error::WorkerError;
use crate::generation::{FinishReason, SequenceTiming};

/// How often the engine's numbers are taken over.
const SAMPLING: Duration = Duration::from_secs(1);
/// How long a scraper may take to ask.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest request that is read, in bytes.
const MAX_REQUEST_BYTES: usize = 8 * 1024;
/// Upper bounds of time histograms, in seconds.
const SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

const RUNNING: &str = "llama_mesh_worker_num_requests_running";
const WAITING: &str = "llama_mesh_worker_num_requests_waiting";
const KV_USAGE: &str = "llama_mesh_worker_kv_cache_usage_ratio";
const KV_BLOCKS: &str = "llama_mesh_worker_kv_cache_blocks";
const STEPS: &str = "llama_mesh_worker_steps_total";
const PREFILL_TOKENS: &str = "llama_mesh_worker_prefill_tokens_total";
const DECODE_TOKENS: &str = "llama_mesh_worker_decode_tokens_total";
const CACHED_TOKENS: &str = "llama_mesh_worker_prefix_cache_hit_tokens_total";
const PREEMPTIONS: &str = "llama_mesh_worker_preemptions_total";
const STEP_SECONDS: &str = "llama_mesh_worker_step_seconds";
const FORWARD_SECONDS: &str = "llama_mesh_worker_step_forward_seconds";
const FINISHED: &str = "llama_mesh_worker_requests_finished_total";
const REFUSED: &str = "llama_mesh_worker_requests_refused_total";
const QUEUE_SECONDS: &str = "llama_mesh_worker_request_queue_seconds";
const PREFILL_SECONDS: &str = "llama_mesh_worker_request_prefill_seconds";
const DECODE_SECONDS: &str = "llama_mesh_worker_request_decode_seconds";
const GATEWAYS: &str = "llama_mesh_worker_gateways_connected";
const LOADED: &str = "llama_mesh_worker_model_loaded_ratio";
const PROGRAMS: &str = "llama_mesh_worker_device_programs";
const KERNELS: &str = "llama_mesh_worker_device_kernels";
const DEVICE_SECONDS: &str = "llama_mesh_worker_step_device_seconds";

/// Installs the process's recorder and says what each metric means.
///
/// # Errors
/// The process has a recorder already.
pub fn install() -> Result<PrometheusHandle, WorkerError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(|error| WorkerError::System(std::io::Error::other(error)))?;
    describe_gauge!(RUNNING, "Sequences resident.");
    describe_gauge!(WAITING, "Sequences accepted and not resident.");
    describe_gauge!(KV_USAGE, "Share of KV blocks that sequences hold.");
    describe_gauge!(KV_BLOCKS, "All KV blocks.");
    describe_gauge!(GATEWAYS, "Gateways with an open stream.");
    describe_gauge!(LOADED, "Share of the weights that is loaded.");
    describe_gauge!(PROGRAMS, "Programs made for the chips; steady once all steps were run.");
    describe_gauge!(KERNELS, "Compiled kernels on disk.");
    describe_counter!(STEPS, "Engine steps.");
    describe_counter!(PREFILL_TOKENS, "Tokens computed in prefill chunks.");
    describe_counter!(DECODE_TOKENS, "Tokens computed as decodes.");
    describe_counter!(CACHED_TOKENS, "Prompt tokens found in the prefix cache.");
    describe_counter!(PREEMPTIONS, "Times a sequence lost its blocks to another.");
    describe_counter!(FINISHED, "Sequences ended, by reason.");
    describe_counter!(REFUSED, "Requests not taken, by gRPC code.");
    describe_histogram!(STEP_SECONDS, "Time of a step, one a second.");
    describe_histogram!(FORWARD_SECONDS, "Time of a step on the mesh alone, one a second.");
    describe_histogram!(
        DEVICE_SECONDS,
        "Parts of a step on a device (inputs, dispatch, read) by phase, one a second."
    );
    describe_histogram!(QUEUE_SECONDS, "Time before a sequence's first prefill chunk.");
    describe_histogram!(PREFILL_SECONDS, "First prefill chunk to first token.");
    describe_histogram!(DECODE_SECONDS, "First token to the end.");
    Ok(handle)
}

/// A sequence has ended.
pub fn finished(reason: &FinishReason, timing: &SequenceTiming) {
    counter!(FINISHED, "reason" => reason_name(reason)).increment(1);
    histogram!(QUEUE_SECONDS).record(timing.queue);
    histogram!(PREFILL_SECONDS).record(timing.prefill);
    histogram!(DECODE_SECONDS).record(timing.decode);
}

/// A request was not taken.
pub fn refused(code: tonic::Code) {
    counter!(REFUSED, "code" => format!("{code:?}")).increment(1);
}

/// Gateways that are connected.
pub fn gateways(count: usize) {
    gauge!(GATEWAYS).set(u32::try_from(count).unwrap_or(u32::MAX));
}

/// Share of the weights that is loaded, 0 to 1.
pub fn loaded(share: f64) {
    gauge!(LOADED).set(share);
}

/// The name of an end, in metrics and spans.
#[must_use]
pub fn reason_name(reason: &FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop(_) => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
        FinishReason::Deadline => "deadline",
        FinishReason::Numerical | FinishReason::Device(_) => "error",
        FinishReason::DeviceFailed(_) => "device_failed",
    }
}

/// Takes over the engine's numbers until the service stops.
pub fn follow_engine(shutdown: &Shutdown, engine: EngineHandle) {
    let stop = shutdown.draining().clone();
    shutdown.spawn("engine metrics", async move {
        let mut ticks = tokio::time::interval(SAMPLING);
        let mut last_step = 0;
        // Both futures are cancel safe.
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let status = engine.status();
            record_status(&status, status.step != last_step);
            last_step = status.step;
        }
    });
}

fn record_status(status: &EngineStatus, stepped: bool) {
    let load = status.load;
    gauge!(RUNNING).set(load.running);
    gauge!(WAITING).set(load.waiting);
    gauge!(KV_BLOCKS).set(load.kv_blocks_total);
    gauge!(KV_USAGE).set(f64::from(load.kv_blocks_used) / f64::from(load.kv_blocks_total.max(1)));
    counter!(STEPS).absolute(status.step);
    counter!(PREFILL_TOKENS).absolute(status.totals.prefill_tokens);
    counter!(DECODE_TOKENS).absolute(status.totals.decode_tokens);
    counter!(CACHED_TOKENS).absolute(status.totals.cached_tokens);
    counter!(PREEMPTIONS).absolute(status.totals.preemptions);
    let MeshStatus { programs, kernels, .. } = status.mesh;
    gauge!(PROGRAMS).set(u32::try_from(programs).unwrap_or(u32::MAX));
    gauge!(KERNELS).set(u32::try_from(kernels).unwrap_or(u32::MAX));
    if stepped {
        record_device_times(status);
        histogram!(STEP_SECONDS).record(status.timing.step);
        histogram!(FORWARD_SECONDS).record(status.timing.forward);
    }
}

/// Where a device's step went. A mesh that does not tell has taken no time.
fn record_device_times(status: &EngineStatus) {
    let MeshStatus { inputs, dispatch, read, .. } = status.mesh;
    if inputs + dispatch + read == Duration::ZERO {
        return;
    }
    let phase = match (status.timing.prefill_tokens, status.timing.decode_tokens) {
        (_, 0) => "prefill",
        (0, _) => "decode",
        _ => "mixed",
    };
    for (part, took) in [("inputs", inputs), ("dispatch", dispatch), ("read", read)] {
        histogram!(DEVICE_SECONDS, "phase" => phase, "part" => part).record(took);
    }
}

/// Answers every request on `address` with the metrics, until cancelled.
///
/// Returns the bound address.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve(
    shutdown: &Shutdown,
    address: SocketAddr,
    handle: PrometheusHandle,
) -> Result<SocketAddr, WorkerError> {
    let failed = |source| WorkerError::Listen { address: address.to_string(), source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let stop = shutdown.draining().clone();
    shutdown.spawn("metrics endpoint", async move {
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            let answered = match accepted {
                // One at a time: a scraper asks every few seconds.
                Ok((stream, _)) => tokio::time::timeout(PATIENCE, answer(stream, &handle))
                    .await
                    .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())),
                Err(error) => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    Err(error)
                }
            };
            if let Err(error) = answered {
                tracing::debug!(%error, "metrics request failed");
            }
        }
    });
    Ok(bound)
}

/// As much HTTP as a scraper speaks: one GET, one answer, close.
async fn answer(mut stream: TcpStream, handle: &PrometheusHandle) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if request.len() > MAX_REQUEST_BYTES || stream.read_buf(&mut request).await? == 0 {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
    }
    let (status, body) = match request.starts_with(b"GET /metrics") {
        true => ("200 OK", handle.render()),
        false => ("404 Not Found", "metrics are at /metrics\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; version=0.0.4\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::StepTiming;

    async fn get(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn metrics_are_served_with_their_units() {
        let shutdown = Shutdown::new(Duration::from_secs(1));
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            let read = Duration::from_millis(3);
            let mesh = MeshStatus { programs: 41, kernels: 9, read, ..MeshStatus::default() };
            let timing = StepTiming { decode_tokens: 2, ..StepTiming::default() };
            let status = EngineStatus { step: 7, mesh, timing, ..EngineStatus::default() };
            record_status(&status, true);
            finished(&FinishReason::Length, &SequenceTiming::default());
        });
        let address = serve(&shutdown, "127.0.0.1:0".parse().unwrap(), handle).await.unwrap();
        let answer = get(address, "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("llama_mesh_worker_steps_total 7"), "{answer}");
        assert!(answer.contains("reason=\"length\""), "{answer}");
        assert!(answer.contains("llama_mesh_worker_device_programs 41"), "{answer}");
        assert!(answer.contains("llama_mesh_worker_device_kernels 9"), "{answer}");
        assert!(answer.contains("phase=\"decode\",part=\"read\""), "{answer}");
        let other = get(address, "GET / HTTP/1.1\r\n\r\n").await;
        assert!(other.starts_with("HTTP/1.1 404"), "{other}");
        shutdown.drain(Duration::from_secs(1)).await;
        assert!(TcpStream::connect(address).await.is_err());
    }
}
