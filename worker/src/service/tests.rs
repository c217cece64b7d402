//! The service over a real socket, with a model that counts.

mod plain;
mod stream;

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use common::shutdown::Shutdown;
use mesh::{MeshError, StepBatch, StepOutput};
use proto::v1 as wire;
use proto::v1::gateway_frame::Frame;
use proto::v1::worker_client::WorkerClient;
use proto::v1::worker_frame::Body;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use super::{Pace, WorkerService};
use crate::backend;
use crate::convert::testing::identity;
use crate::engine::{EngineHandle, Forward};
use crate::listen::{ListenAddress, Listener};

/// Slots that the tests' worker has: 4 resident, 1 waiting.
const SLOTS: u32 = 5;

/// Nothing in a test takes this long; a wait that does is a failure.
const LONG: Duration = Duration::from_secs(20);

const QUICK: Pace = Pace {
    hello: Duration::from_secs(10),
    tick: Duration::from_millis(20),
    silence: Duration::from_secs(10),
};

/// Says the next number, when the gate lets it.
struct Counting {
    gate: Arc<Gate>,
}

/// Steps that may run; closed at 0.
#[derive(Default)]
struct Gate {
    steps: Mutex<u64>,
    changed: Condvar,
}

impl Gate {
    fn allow(&self, steps: u64) {
        *self.steps.lock().unwrap() = steps;
        self.changed.notify_all();
    }
}

impl Forward for Counting {
    fn forward(&mut self, batch: &StepBatch, out: &mut StepOutput) -> Result<(), MeshError> {
        let mut steps = self.gate.steps.lock().unwrap();
        while *steps == 0 {
            steps = self.gate.changed.wait(steps).unwrap();
        }
        *steps -= 1;
        out.clear();
        for row in &batch.logit_rows {
            let mut row_logits = [0.0; 256];
            row_logits[(batch.token_ids[*row] as usize + 1) % 256] = 10.0;
            out.logits.extend(row_logits);
        }
        Ok(())
    }

    fn vocab_size(&self) -> usize {
        256
    }
}

struct Worker {
    client: WorkerClient<Channel>,
    service: WorkerService,
    engine: EngineHandle,
    shutdown: Shutdown,
    gate: Arc<Gate>,
    _dir: tempfile::TempDir,
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A test that failed must not leave its engine waiting.
        self.gate.allow(u64::MAX);
        self.shutdown.cancel();
    }
}

impl Worker {
    async fn start() -> Self {
        Self::with_pace(QUICK).await
    }

    async fn with_pace(pace: Pace) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.sock");
        let shutdown = Shutdown::new(LONG);
        let service = WorkerService::with_pace(shutdown.clone(), pace);
        let listener = Listener::bind(&ListenAddress::Unix(path.clone())).await.unwrap();
        let router = tonic::transport::Server::builder().add_service(service.clone().into_server());
        let stop = shutdown.draining().clone();
        shutdown.spawn("server", async move {
            let incoming = listener.into_incoming();
            router.serve_with_incoming_shutdown(incoming, stop.cancelled()).await.unwrap();
        });
        let gate = Arc::new(Gate::default());
        gate.allow(u64::MAX);
        let model = Counting { gate: Arc::clone(&gate) };
        let engine = backend::start(model, SLOTS - 4, identity()).unwrap().engine;
        let endpoint = Endpoint::from_shared(format!("unix:{}", path.display())).unwrap();
        let client = WorkerClient::new(endpoint.connect().await.unwrap());
        Self { client, service, engine, shutdown, gate, _dir: dir }
    }

    async fn ready() -> Self {
        let worker = Self::start().await;
        worker.make_ready();
        worker
    }

    fn make_ready(&self) {
        self.service.set_ready(self.engine.clone(), identity(), SLOTS - 4);
    }

    /// Waits until no sequence is left, and no block held.
    async fn idle(&self) {
        let mut status = self.engine.watch_status();
        let idle = async {
            while self.engine.has_work() || self.engine.load().kv_blocks_used > 0 {
                status.changed().await.unwrap();
            }
        };
        tokio::time::timeout(LONG, idle).await.expect("sequences are left");
    }

    async fn connect(&self, gateway_id: &str, epoch: u32) -> Gateway {
        let hello = wire::Hello {
            protocol_version: proto::PROTOCOL_VERSION,
            gateway_id: gateway_id.to_owned(),
            epoch,
        };
        self.open(Frame::Hello(hello)).await
    }

    async fn open(&self, first: Frame) -> Gateway {
        let (frames, receiver) = mpsc::channel(64);
        let gateway = |inbound| Gateway { frames, inbound, last_frame: 0 };
        let mut client = self.client.clone();
        let response = client.serve(ReceiverStream::new(receiver)).await.unwrap();
        let gateway = gateway(response.into_inner());
        gateway.say(first).await;
        gateway
    }
}

/// One side of a `Serve` stream.
struct Gateway {
    frames: mpsc::Sender<wire::GatewayFrame>,
    inbound: Streaming<wire::WorkerFrame>,
    last_frame: u64,
}

impl Gateway {
    async fn say(&self, frame: Frame) {
        // A stream that has ended says so to the reader.
        let _ = self.frames.send(wire::GatewayFrame { frame: Some(frame) }).await;
    }

    async fn admit(&self, request_key: u32, generation: wire::Generation) {
        let admit = wire::Admit {
            request_key,
            request_id: format!("r{request_key}"),
            epoch: 1,
            generation: Some(generation),
            trace: None,
        };
        self.say(Frame::Admit(admit)).await;
    }

    /// The next frame, whose number must be the next.
    async fn next(&mut self) -> Result<Option<Body>, Status> {
        let message =
            tokio::time::timeout(LONG, self.inbound.message()).await.expect("no frame")?;
        Ok(message.map(|frame| {
            self.last_frame += 1;
            assert_eq!(frame.frame, self.last_frame, "frames are numbered without a gap");
            frame.body.expect("the worker knows its own frames")
        }))
    }

    /// The first frame that `pick` takes.
    async fn until<T>(&mut self, mut pick: impl FnMut(Body) -> Option<T>) -> T {
        loop {
            let body = self.next().await.expect("the stream goes on").expect("it has not ended");
            if let Some(picked) = pick(body) {
                return picked;
            }
        }
    }

    async fn credit(&mut self, slots: u32) -> wire::Credit {
        self.until(|body| match body {
            Body::Credit(credit) if credit.slots == slots => Some(credit),
            _ => None,
        })
        .await
    }

    async fn rejected(&mut self) -> wire::Rejected {
        self.until(|body| match body {
            Body::Rejected(rejected) => Some(rejected),
            _ => None,
        })
        .await
    }

    async fn step(&mut self) -> wire::StepOutput {
        self.until(|body| match body {
            Body::Step(step) => Some(step),
            _ => None,
        })
        .await
    }

    /// Tokens of one request until it ends.
    async fn answer(&mut self, request_key: u32) -> (Vec<u32>, wire::Finish) {
        let mut tokens = Vec::new();
        loop {
            let step = self.step().await;
            tokens.extend(tokens_of(&step, request_key));
            if let Some(finish) = step.finishes.iter().find(|f| f.request_key == request_key) {
                return (tokens, finish.clone());
            }
        }
    }

    /// How the stream ends.
    async fn end(&mut self) -> Result<(), Status> {
        while self.next().await?.is_some() {}
        Ok(())
    }
}

fn tokens_of(step: &wire::StepOutput, request_key: u32) -> Vec<u32> {
    let mut at = 0;
    let mut tokens = Vec::new();
    for (entry, key) in step.request_keys.iter().enumerate() {
        let count = step.token_counts.get(entry).map_or(1, |count| *count as usize);
        if *key == request_key {
            tokens.extend(&step.token_ids[at..at + count]);
        }
        at += count;
    }
    assert_eq!(at, step.token_ids.len());
    tokens
}

fn counting_from(first: u32, max_new_tokens: u32) -> wire::Generation {
    wire::Generation {
        prompt_token_ids: vec![first - 1, first],
        max_new_tokens,
        ..wire::Generation::default()
    }
}
