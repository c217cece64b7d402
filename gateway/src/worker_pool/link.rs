//! One worker: dial, describe, open the stream, pass frames on, and begin again
//! when it breaks.
//!
//! The link never waits on a client. It waits on the scheduler's channel, which
//! is always being read; if the worker does not read its half of the stream,
//! the command channel fills and the scheduler closes it.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::v1;
use proto::v1::worker_client::WorkerClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::convert::{self, BadFrame, FrameContext};
use super::liveness::{Death, Liveness};
use super::roster::{Roster, WorkerState};
use super::{Expected, PoolConfig, dial};
use crate::scheduler::sequence::WorkerId;
use crate::scheduler::state::WorkerProfile;
use crate::scheduler::{LinkCommand, LinkEvent, LinkSender, WorkerFrame};

/// Commands under way to a worker: every slot of a large one many times over.
const COMMANDS: usize = 4096;
/// Wire frames between the link and HTTP/2.
const OUTBOUND: usize = 64;
/// Largest frame of a worker: log-probabilities of a long prompt.
const MAX_FRAME_BYTES: usize = 32 << 20;
/// How often the link shows that it is alive, and asks whether the worker is.
const BEAT: Duration = Duration::from_millis(500);

/// One worker of the list.
pub(super) struct Link {
    id: WorkerId,
    endpoint: String,
    config: PoolConfig,
    expected: Expected,
    roster: Arc<Roster>,
    scheduler: LinkSender,
    epoch: u32,
    /// Attempts in a row, the current one included, that opened no stream.
    failures: u32,
}

/// Why a stream ended or never began.
#[derive(Debug)]
enum Broken {
    Transport(String),
    /// The worker's status.
    Status(tonic::Status),
    Refused(String),
    Contract(BadFrame),
    Dead(Death),
    Timeout(&'static str),
    Closed(&'static str),
    /// The scheduler has ended: so does the link.
    Over,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(text) | Self::Refused(text) => f.write_str(text),
            Self::Status(status) => {
                write!(f, "{:?}: {}", status.code(), convert::bounded(status.message()))
            }
            Self::Contract(bad) => write!(f, "{bad}"),
            Self::Dead(death) => write!(f, "{death}"),
            Self::Timeout(what) => write!(f, "{what} did not come in time"),
            Self::Closed(by) => write!(f, "stream closed by the {by}"),
            Self::Over => f.write_str("gateway is stopping"),
        }
    }
}

/// A worker that has described itself and was accepted.
struct Described {
    client: WorkerClient<Channel>,
    profile: WorkerProfile,
    vocab_size: u32,
    max_logprobs: u32,
}

impl Link {
    pub(super) fn new(
        (id, endpoint): (WorkerId, String),
        config: PoolConfig,
        expected: Expected,
        roster: Arc<Roster>,
        scheduler: LinkSender,
    ) -> Self {
        Self { id, endpoint, config, expected, roster, scheduler, epoch: 0, failures: 0 }
    }

    /// Keeps a stream open until the scheduler ends.
    pub(super) async fn run(mut self) {
        let mut last_reason = String::new();
        loop {
            self.failures = self.failures.saturating_add(1);
            let broken = match self.describe().await {
                Ok(described) => self.serve(described).await,
                Err(broken) => broken,
            };
            if matches!(broken, Broken::Over) {
                return;
            }
            let reason = broken.to_string();
            if reason != last_reason {
                tracing::warn!(
                    worker = self.id.0,
                    endpoint = self.endpoint,
                    reason,
                    "worker is down"
                );
            }
            self.roster.set_state(self.id, WorkerState::Down, reason.clone());
            last_reason = reason;
            tokio::time::sleep(self.backoff(&broken)).await;
        }
    }

    /// Twice as long each time, half of it by chance: gateways that lost a
    /// worker together do not come back together.
    fn backoff(&self, broken: &Broken) -> Duration {
        if matches!(broken, Broken::Contract(_)) {
            return self.config.quarantine;
        }
        let doubled =
            self.config.min_backoff.saturating_mul(1 << self.failures.saturating_sub(1).min(16));
        let longest = doubled.min(self.config.max_backoff);
        let chance = RandomState::new().hash_one(self.epoch) as f64 / u64::MAX as f64;
        longest.mul_f64(0.5 + 0.5 * chance)
    }

    async fn describe(&self) -> Result<Described, Broken> {
        let dialled = dial::dial(&self.endpoint, self.config.connect_timeout).await;
        let channel = dialled.map_err(|error| Broken::Transport(chain(&error)))?;
        self.roster.set_state(self.id, WorkerState::Connecting, "describing");
        let mut client = WorkerClient::new(channel).max_decoding_message_size(MAX_FRAME_BYTES);
        let answer = client.describe(v1::DescribeRequest {});
        let described = tokio::time::timeout(self.config.handshake_timeout, answer)
            .await
            .map_err(|_| Broken::Timeout("its description"))?
            .map_err(Broken::Status)?
            .into_inner();
        check(&described, &self.expected).map_err(Broken::Refused)?;
        let profile = convert::profile(&described).map_err(Broken::Contract)?;
        let device = described.device.as_ref().map_or_else(String::new, convert::device_name);
        let device = convert::bounded(&device);
        self.roster.set_described(self.id, device, profile.max_sequence_tokens());
        let vocab_size = described.model.map_or(0, |model| model.vocab_size);
        let max_logprobs = described.limits.map_or(0, |limits| limits.max_logprobs);
        Ok(Described { client, profile, vocab_size, max_logprobs })
    }

    /// Opens the stream and runs it to its end.
    async fn serve(&mut self, mut described: Described) -> Broken {
        // Counting from 1 in each process: the gateway id is unique to it.
        self.epoch += 1;
        let (frames, outbound) = mpsc::channel(OUTBOUND);
        let hello = v1::Hello {
            protocol_version: proto::PROTOCOL_VERSION,
            gateway_id: self.config.gateway_id.clone(),
            epoch: self.epoch,
        };
        if frames.try_send(outgoing(v1::gateway_frame::Frame::Hello(hello))).is_err() {
            return Broken::Closed("gateway");
        }
        let opening = described.client.serve(ReceiverStream::new(outbound));
        let inbound = match tokio::time::timeout(self.config.handshake_timeout, opening).await {
            Err(_) => return Broken::Timeout("its stream"),
            Ok(Err(status)) => return Broken::Status(status),
            Ok(Ok(answer)) => answer.into_inner(),
        };
        let (commands, to_send) = mpsc::channel(COMMANDS);
        let (worker, epoch) = (self.id, self.epoch);
        let up = LinkEvent::Up { worker, epoch, profile: described.profile, commands };
        if !self.scheduler.send(up).await {
            return Broken::Over;
        }
        self.failures = 0;
        self.roster.set_state(self.id, WorkerState::Ready, "");
        tracing::info!(worker = worker.0, endpoint = self.endpoint, epoch, "worker is ready");
        let context = FrameContext {
            epoch,
            // The worker's own: a model may pad its vocabulary beyond the
            // tokenizer's, and such an id is odd, but no breach.
            vocab_size: described.vocab_size,
            max_logprobs: described.max_logprobs,
        };
        let broken = self.pump(context, inbound, frames, to_send).await;
        if !self.scheduler.send(LinkEvent::Down { worker, epoch }).await {
            return Broken::Over;
        }
        broken
    }

    async fn pump(
        &self,
        context: FrameContext,
        mut inbound: Streaming<v1::WorkerFrame>,
        frames: mpsc::Sender<v1::GatewayFrame>,
        mut to_send: mpsc::Receiver<LinkCommand>,
    ) -> Broken {
        use v1::gateway_frame::Frame;
        let (silence, stall) = (self.config.silence_timeout, self.config.stall_timeout);
        let mut liveness = Liveness::new(Instant::now(), silence, stall);
        let mut beat = 0u64;
        let mut ticks = tokio::time::interval(BEAT);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // All cancel safe: a stream's next message, a reserved place with
            // a receive behind it that is not awaited across it, a tick.
            tokio::select! {
                message = inbound.message() => match message {
                    Err(status) => return Broken::Status(status),
                    Ok(None) => return Broken::Closed("worker"),
                    Ok(Some(frame)) => {
                        let number = frame.frame;
                        if let Err(broken) = self.take(context, frame, &mut liveness).await {
                            return broken;
                        }
                        // If there is no place now, a later one covers it.
                        let ack = Frame::Ack(v1::Ack { frame: number });
                        let _ = frames.try_send(outgoing(ack));
                    }
                },
                command = next_command(&frames, &mut to_send) => {
                    let Some((place, command)) = command else {
                        return Broken::Closed("gateway");
                    };
                    place.send(outgoing(match command {
                        LinkCommand::Admit(assignment) => {
                            Frame::Admit(convert::admit(*assignment, context.epoch))
                        }
                        LinkCommand::Cancel(key) => {
                            Frame::Cancel(v1::Cancel { request_keys: vec![key] })
                        }
                    }));
                }
                _ = ticks.tick() => {
                    // A worker that reads nothing leaves no place to send, and
                    // so no command to notice the end of.
                    if to_send.is_closed() {
                        return Broken::Closed("gateway");
                    }
                    if let Err(death) = liveness.check(Instant::now()) {
                        return Broken::Dead(death);
                    }
                    beat += 1;
                    let _ = frames.try_send(outgoing(Frame::Heartbeat(v1::Heartbeat { beat })));
                }
            }
        }
    }

    /// Checks a frame and passes it on.
    async fn take(
        &self,
        context: FrameContext,
        frame: v1::WorkerFrame,
        liveness: &mut Liveness,
    ) -> Result<(), Broken> {
        use v1::worker_frame::Body;
        let now = Instant::now();
        liveness.frame(now);
        let busy = |load: Option<v1::Load>| load.is_none_or(|load| load.running + load.waiting > 0);
        match &frame.body {
            Some(Body::Heartbeat(beat)) => liveness.step(now, beat.step, busy(beat.load)),
            Some(Body::Step(step)) => liveness.step(now, step.step, busy(step.load)),
            _ => {}
        }
        let frame = convert::frame(frame, context).map_err(Broken::Contract)?;
        if frame == WorkerFrame::Draining {
            self.roster.set_state(self.id, WorkerState::Draining, "worker is draining");
        }
        let (worker, epoch) = (self.id, context.epoch);
        if self.scheduler.send(LinkEvent::Frame { worker, epoch, frame }).await {
            Ok(())
        } else {
            Err(Broken::Over)
        }
    }
}

/// A place to send and a command to send there; `None` if the scheduler has
/// closed the stream or the worker its half. Cancel safe: the place is taken
/// first, and given back if no command comes.
async fn next_command<'a>(
    frames: &'a mpsc::Sender<v1::GatewayFrame>,
    commands: &mut mpsc::Receiver<LinkCommand>,
) -> Option<(mpsc::Permit<'a, v1::GatewayFrame>, LinkCommand)> {
    let place = frames.reserve().await.ok()?;
    let command = commands.recv().await?;
    Some((place, command))
}

fn outgoing(frame: v1::gateway_frame::Frame) -> v1::GatewayFrame {
    v1::GatewayFrame { frame: Some(frame) }
}

/// Whether this gateway can use the worker; if not, why.
fn check(described: &v1::DescribeResponse, expected: &Expected) -> Result<(), String> {
    let version = described.protocol_version;
    if version != proto::PROTOCOL_VERSION {
        return Err(format!(
            "worker speaks protocol version {version}, gateway {}",
            proto::PROTOCOL_VERSION
        ));
    }
    let Some(model) = &described.model else {
        return Err("worker does not describe its model".into());
    };
    let theirs = convert::bounded(&model.tokenizer_fingerprint);
    match &expected.tokenizer_fingerprint {
        Some(ours) if *ours != theirs => Err(format!(
            "worker's tokenizer is {theirs:.16}, gateway's is {ours:.16}: not the same model"
        )),
        _ if model.vocab_size < expected.vocab_size => Err(format!(
            "worker's vocab_size is {}, gateway's is {}",
            model.vocab_size, expected.vocab_size
        )),
        _ => Ok(()),
    }
}

/// An error and what lies behind it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
