//! A worker as a whole: bind, load, serve, drain.

use std::net::SocketAddr;
use std::time::Duration;

use common::shutdown::{Drained, Shutdown};
use metrics_exporter_prometheus::PrometheusHandle;
use proto::v1::worker_server::SERVICE_NAME;
use tokio::sync::oneshot;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::backend::{self, Backend};
use crate::config::{TtnnConfig, WorkerConfig};
use crate::engine::{EngineHandle, EngineThread};
use crate::error::WorkerError;
use crate::identity::Identity;
use crate::listen::{ListenAddress, Listener};
use crate::load_stage::LoadStage;
use crate::metrics;
use crate::service::WorkerService;

/// Streams of one connection. A gateway uses one for good and a few for calls.
const MAX_CONCURRENT_STREAMS: u32 = 64;
/// Resets that a peer may cause by errors of its own, and by opening and
/// resetting, before its connection ends. Tonic's own default is no limit.
const MAX_LOCAL_ERROR_RESETS: usize = 64;
const MAX_PENDING_ACCEPT_RESETS: usize = 20;
/// Flow control: many small frames must not fill a window (h2 closes a
/// connection on which too many of them are unread).
const WINDOW_BYTES: u32 = 16 << 20;
const MAX_FRAME_BYTES: u32 = 64 << 10;
const MAX_HEADER_LIST_BYTES: u32 = 16 << 10;
/// A connection that does not answer a ping for this long is gone.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A worker that listens and has not begun to load.
#[derive(Debug)]
pub struct App {
    config: WorkerConfig,
    shutdown: Shutdown,
    listener: Listener,
    metrics_address: Option<SocketAddr>,
}

impl WorkerConfig {
    /// Binds the worker's addresses. From now on clients can connect, and are
    /// served once [`App::run`] runs. `metrics` is what the metrics endpoint
    /// shows, if one is configured.
    ///
    /// # Errors
    /// A setting or an address that cannot be used.
    pub async fn build(
        self,
        shutdown: Shutdown,
        metrics: Option<PrometheusHandle>,
    ) -> Result<App, WorkerError> {
        self.validate()?;
        let listener = Listener::bind(&self.listen_address()?).await?;
        let metrics_address = match (self.metrics_address()?, metrics) {
            (Some(address), Some(handle)) => {
                Some(metrics::serve(&shutdown, address, handle).await?)
            }
            _ => None,
        };
        Ok(App { config: self, shutdown, listener, metrics_address })
    }
}

impl App {
    /// Where gRPC is served: with the real port, where port 0 was asked for.
    #[must_use]
    pub fn address(&self) -> &ListenAddress {
        self.listener.address()
    }

    /// Where metrics are served, if they are.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Loads the model and serves until the service is told to stop, then
    /// drains. `ready` is sent once work is taken.
    ///
    /// # Errors
    /// The model cannot be loaded, or the device failed.
    pub async fn run(self, ready: oneshot::Sender<()>) -> Result<(), WorkerError> {
        let Self { config, shutdown, listener, .. } = self;
        let service = WorkerService::new(shutdown.clone());
        let (reporter, health) = tonic_health::server::health_reporter();
        set_health(&reporter, ServingStatus::NotServing).await;
        let router = server()
            .add_service(health)
            .add_service(reflection()?)
            .add_service(service.clone().into_server());
        let stopped = shutdown.draining().clone();
        let incoming = listener.into_incoming();
        shutdown.spawn("grpc server", async move {
            let served = router.serve_with_incoming_shutdown(incoming, stopped.cancelled()).await;
            if let Err(error) = served {
                tracing::error!(%error, "the server ended");
            }
            // A server that ended by itself takes the process along.
            stopped.cancel();
        });
        let mut running = None;
        let result = match load(config.clone(), &shutdown, &service).await {
            Ok(Some(Backend { engine, thread, identity })) => {
                let of = (&service, &reporter);
                let served = serve(&engine, identity, (&config, &shutdown), of, ready).await;
                running = Some((engine, thread));
                served
            }
            // Told to stop while loading.
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        set_health(&reporter, ServingStatus::NotServing).await;
        if let Drained::Cut { tasks } = shutdown.drain(FAREWELL).await {
            tracing::warn!(tasks, "tasks were cut at the end of the grace");
        }
        if let Some((engine, thread)) = running {
            close(engine, thread).await;
        }
        if let Err(WorkerError::DeviceFailed(_)) = &result {
            reset(&config.ttnn).await;
        }
        result
    }
}

/// What is left once the engine is empty: last frames and closing connections.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long the engine may take to close its device.
const CLOSING: Duration = Duration::from_secs(25);

/// Ends the engine and closes the device, if it can be closed.
async fn close(engine: EngineHandle, thread: EngineThread) {
    let joined = tokio::time::timeout(CLOSING, async {
        engine.stop().await;
        tokio::task::spawn_blocking(|| thread.join()).await
    });
    if joined.await.is_err() {
        tracing::warn!(waited = ?CLOSING, "the engine has not ended");
    }
}

/// Resets the device by the configured command, if there is one.
async fn reset(settings: &TtnnConfig) {
    let Some((program, args)) = settings.reset_command.split_first() else { return };
    tracing::warn!(?program, ?args, "resetting the device");
    let mut command = tokio::process::Command::new(program);
    command.args(args).stdin(std::process::Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(settings.reset_timeout(), command.output()).await {
        Ok(Ok(output)) => {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
            let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
            let status = output.status;
            if status.success() {
                tracing::info!(stdout, stderr, "the device is reset");
            } else {
                tracing::error!(%status, stdout, stderr, "the device could not be reset");
            }
        }
        Ok(Err(error)) => tracing::error!(%error, "the reset could not be started"),
        Err(_) => tracing::error!(waited = ?settings.reset_timeout(), "the reset did not end"),
    }
}

/// Serves with a loaded model until told to stop or until the device fails.
async fn serve(
    engine: &EngineHandle,
    identity: Identity,
    (config, shutdown): (&WorkerConfig, &Shutdown),
    (service, reporter): (&WorkerService, &HealthReporter),
    ready: oneshot::Sender<()>,
) -> Result<(), WorkerError> {
    metrics::follow_engine(shutdown, engine.clone());
    service.set_ready(engine.clone(), identity, config.waiting_seqs());
    set_health(reporter, ServingStatus::Serving).await;
    tracing::info!("ready");
    // Nobody may be waiting for it.
    let _ = ready.send(());
    let failure = tokio::select! {
        () = service.draining().cancelled() => None,
        failure = failed(engine) => Some(failure),
    };
    set_health(reporter, ServingStatus::NotServing).await;
    let failure = match failure {
        Some(failure) => Some(failure),
        None => {
            // By `Drain` alone, whose grace is its caller's: stay until the
            // process is told to go, and drain what is left then.
            tokio::select! {
                cut = async {
                    shutdown.draining().cancelled().await;
                    service.drain(shutdown.grace()).await
                } => {
                    if cut > 0 {
                        tracing::warn!(cut, "sequences were cancelled at the end of the grace");
                    }
                    None
                }
                failure = failed(engine) => Some(failure),
                () = shutdown.cancelled().cancelled() => None,
            }
        }
    };
    match failure {
        Some(failure) => Err(WorkerError::DeviceFailed(failure)),
        None => Ok(()),
    }
}

/// Resolves when the engine takes no more work.
async fn failed(engine: &EngineHandle) -> String {
    let mut status = engine.watch_status();
    loop {
        if let Some(failure) = &status.borrow_and_update().failure {
            return failure.to_string();
        }
        if status.changed().await.is_err() {
            return "the engine has stopped".to_owned();
        }
    }
}

/// Loads off the async threads. `None` when told to stop meanwhile.
async fn load(
    config: WorkerConfig,
    shutdown: &Shutdown,
    service: &WorkerService,
) -> Result<Option<Backend>, WorkerError> {
    let told = service.clone();
    let span = tracing::info_span!("load");
    let loading = tokio::task::spawn_blocking(move || {
        span.in_scope(|| {
            let mut progress = Progress::new(told);
            backend::load(&config, &mut |so_far| progress.report(so_far))
        })
    });
    // Both are cancel safe; the blocking thread ends by itself, later.
    tokio::select! {
        loaded = loading => match loaded {
            Ok(loaded) => loaded.map(Some),
            Err(_) => Err(WorkerError::Panicked("loading the model")),
        },
        () = shutdown.draining().cancelled() => Ok(None),
    }
}

/// Logs every tenth of the weights, and every step that is compiled.
struct Progress {
    service: WorkerService,
    logged_tenth: u64,
}

impl Progress {
    fn new(service: WorkerService) -> Self {
        Self { service, logged_tenth: 0 }
    }

    fn report(&mut self, stage: LoadStage) {
        self.service.set_load_stage(stage);
        let percent = stage.percent();
        match stage {
            LoadStage::Weights(_) => {
                metrics::loaded(percent as f64 / 100.0);
                if percent / 10 > self.logged_tenth {
                    self.logged_tenth = percent / 10;
                    tracing::info!(percent, "loading weights");
                }
            }
            LoadStage::Compiling { done, total, programs } => {
                tracing::info!(done, total, programs, "compiling");
            }
        }
    }
}

async fn set_health(reporter: &HealthReporter, status: ServingStatus) {
    for name in ["", SERVICE_NAME] {
        reporter.set_service_status(name, status).await;
    }
}

fn reflection() -> Result<
    tonic_reflection::server::v1::ServerReflectionServer<
        impl tonic_reflection::server::v1::ServerReflection,
    >,
    WorkerError,
> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|error| WorkerError::System(std::io::Error::other(error)))
}

/// Tonic's server with every limit said: its own defaults leave some off.
fn server() -> Server {
    Server::builder()
        .max_concurrent_streams(Some(MAX_CONCURRENT_STREAMS))
        .http2_max_local_error_reset_streams(Some(MAX_LOCAL_ERROR_RESETS))
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_ACCEPT_RESETS))
        .initial_connection_window_size(Some(WINDOW_BYTES))
        .initial_stream_window_size(Some(WINDOW_BYTES))
        .max_frame_size(Some(MAX_FRAME_BYTES))
        .http2_max_header_list_size(Some(MAX_HEADER_LIST_BYTES))
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
}

#[cfg(test)]
mod tests;
