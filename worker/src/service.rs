//! The gRPC service: wire in, engine, wire out.
//!
//! Read `session` for the gateways' long-lived stream, `generate` for the plain
//! form. The service exists before the model is loaded, so that health and
//! progress can be asked for; until [`WorkerService::set_ready`] every call is
//! UNAVAILABLE.

mod credits;
mod gateways;
mod generate;
mod requests;
mod session;
mod trace;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use common::shutdown::Shutdown;
use futures::future::{Either, select};
use proto::v1 as wire;
use proto::v1::worker_server::{Worker, WorkerServer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use self::credits::CreditBook;
use self::gateways::Gateways;
use crate::convert;
use crate::engine::EngineHandle;
use crate::identity::Identity;
use crate::load_stage::LoadStage;

/// Largest message that is read or written, in bytes. A prompt of 128 k ids
/// takes 0.4 MB.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// Frames that wait for the connection before the engine is held back.
const FRAMES_UNDER_WAY: usize = 16;

/// Longest time that the engine's next turn is waited for at the end.
const TURN: Duration = Duration::from_secs(1);

/// How patient a stream is.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// A gateway may take this long to introduce itself.
    hello: Duration,
    /// Between heartbeats, and between looks at the gateway's.
    tick: Duration,
    /// A gateway that says nothing for this long is gone.
    silence: Duration,
}

impl Pace {
    /// Heartbeats twice a second; the sequences of a gateway that has gone are
    /// dropped within 5 s, a tick included.
    const DEFAULT: Self = Self {
        hello: Duration::from_secs(5),
        tick: Duration::from_millis(500),
        silence: Duration::from_millis(4500),
    };
}

/// The service; clones are the same service.
#[derive(Debug, Clone)]
pub struct WorkerService {
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    shutdown: Shutdown,
    /// Fires when no more work is taken: with the process, or by `Drain`.
    draining: CancellationToken,
    ready: OnceLock<Ready>,
    load_stage: Mutex<Option<LoadStage>>,
    gateways: Arc<Gateways>,
    pace: Pace,
}

/// What is there once the model is loaded.
#[derive(Debug, Clone)]
struct Ready {
    engine: EngineHandle,
    identity: Arc<Identity>,
    credits: Arc<CreditBook>,
}

impl WorkerService {
    /// A service whose model is not loaded. Its tasks belong to `shutdown`.
    #[must_use]
    pub fn new(shutdown: Shutdown) -> Self {
        Self::with_pace(shutdown, Pace::DEFAULT)
    }

    fn with_pace(shutdown: Shutdown, pace: Pace) -> Self {
        let draining = shutdown.draining().child_token();
        let state = State {
            shutdown,
            draining,
            ready: OnceLock::new(),
            load_stage: Mutex::new(None),
            gateways: Arc::new(Gateways::default()),
            pace,
        };
        Self { state: Arc::new(state) }
    }

    /// How far the load has come, for those who ask too early.
    pub fn set_load_stage(&self, stage: LoadStage) {
        *self.state.load_stage.lock().unwrap_or_else(PoisonError::into_inner) = Some(stage);
    }

    /// From now on work is taken: `waiting_seqs` sequences beyond what is
    /// resident. Only the first call counts.
    pub fn set_ready(&self, engine: EngineHandle, identity: Identity, waiting_seqs: u32) {
        let limits = identity.limits;
        let slots = limits.max_num_seqs + waiting_seqs;
        let credits = Arc::new(CreditBook::new(slots, limits.num_kv_blocks));
        let ready = Ready { engine, identity: Arc::new(identity), credits };
        if self.state.ready.set(ready).is_err() {
            tracing::error!("the service was made ready twice");
        }
    }

    /// Fires when the service takes no more work.
    #[must_use]
    pub fn draining(&self) -> &CancellationToken {
        &self.state.draining
    }

    /// The service for a tonic router, with its message limits.
    #[must_use]
    pub fn into_server(self) -> WorkerServer<Self> {
        WorkerServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Takes no more work, waits up to `grace` for what is admitted, cancels
    /// the rest, and returns how many that were.
    pub async fn drain(&self, grace: Duration) -> u32 {
        self.state.draining.cancel();
        let Some(ready) = self.state.ready.get() else { return 0 };
        let empty = std::pin::pin!(ready.engine.drain());
        let grace = std::pin::pin!(tokio::time::sleep(grace));
        let empty = match select(empty, grace).await {
            Either::Left(_) => return 0,
            Either::Right((_, empty)) => empty,
        };
        // Both need the engine's next turn; the bounds are for an engine that is
        // stuck in a step and has none.
        let left = ready.engine.load();
        let cancel = tokio::time::timeout(TURN, ready.engine.cancel_all());
        let told = cancel.await.ok().and_then(Result::ok);
        let cancelled = told.unwrap_or(left.running + left.waiting);
        let _ = tokio::time::timeout(TURN, empty).await;
        cancelled
    }

    fn ready(&self) -> Result<&Ready, Status> {
        self.state.ready.get().ok_or_else(|| {
            let stage = *self.state.load_stage.lock().unwrap_or_else(PoisonError::into_inner);
            let words = stage.map(|stage| stage.to_string());
            Status::unavailable(words.unwrap_or_else(|| "the model is loading".to_owned()))
        })
    }
}

#[tonic::async_trait]
impl Worker for WorkerService {
    async fn describe(
        &self,
        _request: Request<wire::DescribeRequest>,
    ) -> Result<Response<wire::DescribeResponse>, Status> {
        Ok(Response::new(convert::describe(&self.ready()?.identity)))
    }

    type ServeStream = ReceiverStream<Result<wire::WorkerFrame, Status>>;

    async fn serve(
        &self,
        request: Request<Streaming<wire::GatewayFrame>>,
    ) -> Result<Response<Self::ServeStream>, Status> {
        let ready = self.ready()?.clone();
        let (frames, response) = mpsc::channel(FRAMES_UNDER_WAY);
        let run = session::run(Arc::clone(&self.state), ready, request.into_inner(), frames);
        self.state.shutdown.spawn("gateway stream", run);
        Ok(Response::new(ReceiverStream::new(response)))
    }

    type GenerateStream = ReceiverStream<Result<wire::GenerateResponse, Status>>;

    async fn generate(
        &self,
        request: Request<wire::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let ready = self.ready()?.clone();
        let (responses, response) = mpsc::channel(FRAMES_UNDER_WAY);
        let call = generate::Call::begin(&self.state, ready, request).await?;
        self.state.shutdown.spawn("generate call", call.run(responses));
        Ok(Response::new(ReceiverStream::new(response)))
    }

    async fn drain(
        &self,
        request: Request<wire::DrainRequest>,
    ) -> Result<Response<wire::DrainResponse>, Status> {
        let grace = request.into_inner().grace_ms.map(Duration::from_millis);
        let grace = grace.unwrap_or(self.state.shutdown.grace());
        tracing::info!(?grace, "draining on request");
        let cancelled = Self::drain(self, grace).await;
        Ok(Response::new(wire::DrainResponse { cancelled }))
    }
}
