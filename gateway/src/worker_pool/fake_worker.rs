//! A worker for tests: a real tonic server on a Unix socket in front of a
//! "model" whose token at a position is a function of prompt, seed and
//! position, with a script of what goes wrong.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use common::shutdown::Shutdown;
use futures::Stream;
use proto::v1;
use proto::v1::worker_frame::Body;
use proto::v1::worker_server::{Worker, WorkerServer};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

use crate::text::tokenizer::fixture;

/// What the worker is, and what it does wrong.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) slots: u32,
    pub(crate) max_model_len: u32,
    pub(crate) fingerprint: &'static str,
    pub(crate) protocol_version: u32,
    /// The n-th stream is closed after so many tokens.
    pub(crate) drop_after: Vec<u32>,
    /// Sequences make no token after so many.
    pub(crate) pause_after: u32,
    /// Sequences end by themselves with this id after so many tokens.
    pub(crate) end_at: Option<(u32, u32)>,
    /// Changes each step before it is sent.
    pub(crate) spoil: fn(&mut v1::StepOutput),
}

impl Default for Script {
    fn default() -> Self {
        Self {
            slots: 4,
            max_model_len: 512,
            fingerprint: "same",
            protocol_version: proto::PROTOCOL_VERSION,
            drop_after: Vec::new(),
            pause_after: u32::MAX,
            end_at: None,
            spoil: |_| (),
        }
    }
}

/// What the worker has seen.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) admits: Vec<v1::Admit>,
    pub(crate) num_cancels: usize,
    pub(crate) num_streams: usize,
    pub(crate) num_resident: usize,
}

pub(crate) struct FakeWorker {
    pub(crate) endpoint: String,
    log: watch::Receiver<Log>,
    _dir: tempfile::TempDir,
}

/// The token at a position of an answer: a small letter.
pub(crate) fn token_at(prompt: &[u32], seed: u64, position: u64) -> u32 {
    let sum: u64 = prompt.iter().map(|&id| u64::from(id)).sum();
    let letter = sum.wrapping_add(seed).wrapping_add(position * position * 7 + position) % 26;
    fixture::id_of_byte(b'a' + letter as u8)
}

impl FakeWorker {
    pub(crate) fn start(script: Script, shutdown: &Shutdown) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("worker");
        let listener = UnixListenerStream::new(UnixListener::bind(&path).unwrap());
        let (sender, log) = watch::channel(Log::default());
        let service = Service { script, log: Arc::new(sender), shutdown: shutdown.clone() };
        let end = shutdown.cancelled().clone();
        let server = tonic::transport::Server::builder()
            .add_service(WorkerServer::new(service))
            .serve_with_incoming_shutdown(listener, end.cancelled_owned());
        shutdown.spawn("fake worker", async move { server.await.unwrap() });
        Self { endpoint: format!("unix:{}", path.display()), log, _dir: dir }
    }

    /// Waits until the log is as wanted, and reads something from it.
    pub(crate) async fn wait_for<T>(
        &self,
        wanted: impl FnMut(&Log) -> bool,
        read: impl FnOnce(&Log) -> T,
    ) -> T {
        let mut log = self.log.clone();
        let wait = tokio::time::timeout(Duration::from_secs(20), log.wait_for(wanted));
        read(&wait.await.expect("in time").expect("the worker lives"))
    }
}

struct Service {
    script: Script,
    log: Arc<watch::Sender<Log>>,
    shutdown: Shutdown,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Worker for Service {
    type ServeStream = Answers<v1::WorkerFrame>;
    type GenerateStream = Answers<v1::GenerateResponse>;

    async fn describe(
        &self,
        _: Request<v1::DescribeRequest>,
    ) -> Result<Response<v1::DescribeResponse>, Status> {
        let script = &self.script;
        Ok(Response::new(v1::DescribeResponse {
            protocol_version: script.protocol_version,
            model: Some(v1::Model {
                tokenizer_fingerprint: script.fingerprint.into(),
                vocab_size: fixture::tokenizer().vocab_size() as u32,
                ..Default::default()
            }),
            device: Some(v1::Device { name: "FAKE".into(), ..Default::default() }),
            limits: Some(v1::Limits {
                max_model_len: script.max_model_len,
                max_num_seqs: script.slots,
                num_kv_blocks: script.max_model_len,
                kv_block_size: 16,
                max_logprobs: 20,
                ..Default::default()
            }),
            capabilities: vec![v1::Capability::PromptLogprobs as i32],
            ..Default::default()
        }))
    }

    async fn serve(
        &self,
        request: Request<Streaming<v1::GatewayFrame>>,
    ) -> Result<Response<Self::ServeStream>, Status> {
        let (frames, outbound) = mpsc::channel(8);
        let mut stream = 0;
        self.log.send_modify(|log| {
            stream = log.num_streams;
            log.num_streams += 1;
            log.num_resident = 0;
        });
        let session = Session {
            budget: self.script.drop_after.get(stream).copied().unwrap_or(u32::MAX),
            script: self.script.clone(),
            log: Arc::clone(&self.log),
            frames,
            num_frames: 0,
            epoch: 0,
            admits_seen: 0,
            resident: BTreeMap::new(),
        };
        self.shutdown.spawn("fake session", session.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(outbound))))
    }

    async fn generate(
        &self,
        _: Request<v1::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn drain(
        &self,
        _: Request<v1::DrainRequest>,
    ) -> Result<Response<v1::DrainResponse>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }
}

struct Session {
    script: Script,
    log: Arc<watch::Sender<Log>>,
    frames: mpsc::Sender<Result<v1::WorkerFrame, Status>>,
    num_frames: u64,
    epoch: u32,
    admits_seen: u64,
    /// Tokens that may still be sent on this stream.
    budget: u32,
    /// Key to request and number of its tokens.
    resident: BTreeMap<u32, (v1::Generation, u32)>,
}

impl Session {
    async fn run(mut self, mut inbound: Streaming<v1::GatewayFrame>) {
        loop {
            let has_work = self.resident.values().any(|(_, n)| *n < self.script.pause_after);
            let frames = self.frames.clone();
            tokio::select! {
                biased;
                message = inbound.message() => {
                    let Ok(Some(frame)) = message else { break };
                    let Some(frame) = frame.frame else { break };
                    if self.take(frame).await.is_none() { break };
                }
                place = frames.reserve(), if has_work => {
                    let Ok(place) = place else { break };
                    drop(place);
                    if self.step().await.is_none() { break };
                }
            }
        }
        self.log.send_modify(|log| log.num_resident = 0);
    }

    async fn send(&mut self, body: Body) -> Option<()> {
        self.num_frames += 1;
        let frame = v1::WorkerFrame { frame: self.num_frames, body: Some(body) };
        self.frames.send(Ok(frame)).await.ok()
    }

    async fn credit(&mut self) -> Option<()> {
        let num_resident = self.resident.len();
        self.log.send_modify(|log| log.num_resident = num_resident);
        let slots = self.script.slots - num_resident as u32;
        let admits_seen = self.admits_seen;
        self.send(Body::Credit(v1::Credit { slots, kv_blocks: 1000, admits_seen })).await
    }

    async fn take(&mut self, frame: v1::gateway_frame::Frame) -> Option<()> {
        use v1::gateway_frame::Frame;
        match frame {
            Frame::Hello(hello) => {
                self.epoch = hello.epoch;
                self.credit().await
            }
            Frame::Admit(admit) => {
                self.admits_seen += 1;
                let (request_key, epoch) = (admit.request_key, admit.epoch);
                let generation = admit.generation.clone().expect("an admit has a generation");
                let resumed = generation.resume_token_ids.len() as u32;
                self.resident.insert(request_key, (generation, resumed));
                assert!(self.resident.len() <= self.script.slots as usize, "over-committed");
                self.log.send_modify(|log| log.admits.push(admit));
                self.send(Body::Admitted(v1::Admitted { request_key, epoch, cached_tokens: 1 }))
                    .await?;
                self.credit().await
            }
            Frame::Cancel(cancel) => {
                self.resident.retain(|key, _| !cancel.request_keys.contains(key));
                self.log.send_modify(|log| log.num_cancels += cancel.request_keys.len());
                self.credit().await
            }
            Frame::Heartbeat(_) | Frame::Ack(_) => Some(()),
        }
    }

    async fn step(&mut self) -> Option<()> {
        let mut step = v1::StepOutput { step: self.num_frames, ..Default::default() };
        let mut counts = Vec::new();
        for (&key, (generation, n)) in &mut self.resident {
            if *n >= self.script.pause_after {
                continue;
            }
            step.request_keys.push(key);
            if let Some(count) = generation.prompt_logprobs.take() {
                let tokens = generation.prompt_token_ids.iter().skip(1);
                let tokens = tokens.map(|_| v1::PromptTokenLogprobs {
                    logprob: -0.5,
                    top_token_ids: (0..count).collect(),
                    top_logprobs: vec![-1.0; count as usize],
                });
                step.prompt_logprobs.push(v1::PromptLogprobs {
                    request_key: key,
                    first_position: 1,
                    tokens: tokens.collect(),
                });
            }
            let mut reason = None;
            if *n < generation.max_new_tokens {
                let seed = generation.sampling.as_ref().map_or(0, |sampling| sampling.seed);
                let mut token = token_at(&generation.prompt_token_ids, seed, u64::from(*n));
                if let Some((end, _)) = self.script.end_at.filter(|&(_, at)| at == *n) {
                    token = end;
                    reason = Some(v1::FinishReason::Stop);
                }
                if let Some(count) = generation.logprobs {
                    step.logprobs.push(v1::TokenLogprobs {
                        token_index: step.token_ids.len() as u32,
                        logprob: -0.25,
                        top_token_ids: (0..count).collect(),
                        top_logprobs: vec![-1.0; count as usize],
                    });
                }
                step.token_ids.push(token);
                counts.push(1);
                *n += 1;
                self.budget = self.budget.saturating_sub(1);
            } else {
                counts.push(0);
            }
            if *n >= generation.max_new_tokens {
                reason = reason.or(Some(v1::FinishReason::Length));
            }
            if let Some(reason) = reason {
                let mut finish = v1::Finish { request_key: key, ..Default::default() };
                finish.set_reason(reason);
                step.finishes.push(finish);
            }
        }
        step.token_counts = counts;
        for finish in &step.finishes {
            self.resident.remove(&finish.request_key);
        }
        let has_finished = !step.finishes.is_empty();
        (self.script.spoil)(&mut step);
        self.send(Body::Step(step)).await?;
        if self.budget == 0 {
            return None;
        }
        if has_finished { self.credit().await } else { Some(()) }
    }
}
