//! From settings to a running gateway, in two steps: [`App::build`] binds the
//! ports and reads the model, [`App::run`] serves until drained. Between them
//! the real addresses are known.

mod model;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use common::shutdown::{Drained, Shutdown};

pub use self::model::LoadError;
use self::model::LoadedModel;
use crate::config::GatewayConfig;
use crate::generate::{Spine, SpineConfig};
use crate::http::door::{Door, HostPolicy, HttpState};
use crate::http::{BodyLimits, router};
use crate::listener::Listener;
use crate::metrics::Metrics;
use crate::request::RequestLimits;
use crate::{grpc, listener::ConnectionBudget};

/// Why a gateway could not be started.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No model is named.
    #[error("no model is named")]
    NoModel,
    /// The model cannot be served.
    #[error("cannot read the model: {0}")]
    Model(#[from] LoadError),
    /// The thread that read it panicked.
    #[error("reading the model {0} failed")]
    Panicked(PathBuf),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The operating system's reason.
        source: std::io::Error,
    },
}

/// A gateway with its ports bound and nothing running on them yet.
#[derive(Debug)]
pub struct App {
    http: Port,
    grpc: Option<Port>,
}

/// One port and what is behind it.
#[derive(Debug)]
struct Port {
    address: SocketAddr,
    listener: Listener,
    door: Arc<Door>,
}

impl App {
    /// Binds the ports, reads the model, and begins to reach for the workers,
    /// whose tasks belong to `shutdown`.
    ///
    /// # Errors
    /// A port that is taken, or a model that cannot be served.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn build(config: GatewayConfig, shutdown: &Shutdown) -> Result<Self, BuildError> {
        let budget = Arc::new(config.listen.budget());
        let http = bind(config.listen.http, &budget).await?;
        let grpc = match config.listen.grpc {
            Some(address) => Some(bind(address, &budget).await?),
            None => None,
        };
        let model = read_model(&config).await?;
        let metrics = Arc::new(Metrics::new(&model.name));
        let spine = start_spine(model, &config, metrics, shutdown);
        let bodies =
            BodyLimits::new(config.listen.max_body_bytes, config.listen.max_total_body_bytes);
        let grpc_router = grpc::router(spine.clone(), config.listen.max_body_bytes);
        let http_router = router(HttpState { spine, bodies });
        let port = |(address, listener): (SocketAddr, Listener), http| {
            let hosts = HostPolicy::new(&config.listen.allowed_hosts, address);
            let door = Door::new(http, grpc_router.clone(), hosts);
            Port { address, listener, door }
        };
        Ok(Self { http: port(http, Some(http_router)), grpc: grpc.map(|grpc| port(grpc, None)) })
    }

    /// Where HTTP, and gRPC beside it, is served.
    pub fn http_addr(&self) -> SocketAddr {
        self.http.address
    }

    /// Where gRPC alone is served.
    pub fn grpc_addr(&self) -> Option<SocketAddr> {
        self.grpc.as_ref().map(|grpc| grpc.address)
    }

    /// Serves until `shutdown` begins to drain, and then until everything in
    /// flight has ended or the grace has passed.
    pub async fn run(self, shutdown: Shutdown) -> Drained {
        for port in [Some(self.http), self.grpc].into_iter().flatten() {
            if !port.address.ip().is_loopback() {
                tracing::warn!(address = %port.address, "serving others without TLS or API keys");
            }
            shutdown.spawn("listener", port.listener.serve(port.door, shutdown.clone()));
        }
        shutdown.draining().cancelled().await;
        shutdown.drain(shutdown.grace()).await
    }
}

async fn bind(
    address: SocketAddr,
    budget: &Arc<ConnectionBudget>,
) -> Result<(SocketAddr, Listener), BuildError> {
    let refuse = |source| BuildError::Bind { address, source };
    let listener = Listener::bind(address, Arc::clone(budget)).await.map_err(refuse)?;
    Ok((listener.local_addr().map_err(refuse)?, listener))
}

async fn read_model(config: &GatewayConfig) -> Result<LoadedModel, BuildError> {
    let path = config.model.clone().ok_or(BuildError::NoModel)?;
    let name = config.served_model_name.clone();
    let read = {
        let path = path.clone();
        move || LoadedModel::read(&path, name)
    };
    let read = tokio::task::spawn_blocking(read).await;
    Ok(read.map_err(|_| BuildError::Panicked(path))??)
}

fn start_spine(
    model: LoadedModel,
    config: &GatewayConfig,
    metrics: Arc<Metrics>,
    shutdown: &Shutdown,
) -> Spine {
    let LoadedModel { name, text, max_model_len } = model;
    let mut limits = RequestLimits::for_model(name, &text, max_model_len);
    config.limits.apply(&mut limits);
    // Names this process among the gateways that share a worker.
    let gateway_id = format!("gateway-{}", uuid::Uuid::new_v4().simple());
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let spine = SpineConfig {
        limits,
        pool: config.pool(gateway_id),
        scheduler: config.queue.scheduler(),
        tokenizer_fingerprint: Some(text.fingerprint.clone()),
        // Tokenizing computes; more at once than there are cores helps nobody.
        max_tokenizing: threads,
    };
    Spine::start(spine, Arc::new(text), metrics, shutdown)
}

#[cfg(test)]
mod tests;
