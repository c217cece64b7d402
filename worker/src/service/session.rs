//! One gateway's stream, from `Hello` to its end.
//!
//! One task owns everything of the stream. It never waits for the gateway: while
//! the connection takes no frames it stops taking the engine's output (the
//! engine then holds this gateway's sequences back, and no one else's), and goes
//! on reading what the gateway says. When the task ends, for whatever reason,
//! dropping what it owns cancels the gateway's sequences and gives its credit
//! back.

use std::collections::VecDeque;
use std::sync::Arc;

use common::ids::RequestId;
use proto::v1 as wire;
use proto::v1::gateway_frame::Frame;
use proto::v1::worker_frame::Body;
use tokio::sync::mpsc::Sender;
use tokio::sync::{broadcast, mpsc};
use tokio::time::Instant;
use tonic::{Code, Status, Streaming};

use super::credits::{Amount, MAX_GATEWAYS, Member};
use super::gateways::Registration;
use super::requests::Requests;
use super::{Ready, State, trace};
use crate::convert::request::Arrival;
use crate::convert::step::Assignment;
use crate::convert::{self, request, step};
use crate::engine::{CacheEvents, Client};
use crate::error::Refusal;
use crate::generation::{Event, StepEvents};
use crate::metrics;

/// Frames kept for a connection that takes none before the gateway's own frames
/// are no longer read.
const MAX_BACKLOG: usize = 1024;

type Frames = Sender<Result<wire::WorkerFrame, Status>>;

/// Serves the stream, and ends it with a status if it ends badly.
pub(super) async fn run(
    state: Arc<State>,
    ready: Ready,
    mut inbound: Streaming<wire::GatewayFrame>,
    frames: Frames,
) {
    let patience = state.pace.tick;
    let ended = match Session::begin(state, ready, &mut inbound, frames.clone()).await {
        Ok(mut session) => {
            let ended = session.serve(&mut inbound).await;
            session.log_end(&ended);
            ended
        }
        Err(status) => {
            tracing::warn!(%status, "a gateway was refused");
            Err(status)
        }
    };
    if let Err(status) = ended {
        // Nobody may be there to hear it.
        let _ = tokio::time::timeout(patience, frames.send(Err(status))).await;
    }
}

struct Session {
    state: Arc<State>,
    ready: Ready,
    gateway_id: String,
    epoch: u32,
    registration: Registration,
    member: Member,
    client: Client,
    cache_events: broadcast::Receiver<Arc<CacheEvents>>,
    requests: Requests,
    outbox: Outbox,
    admits_seen: u64,
    /// The last credit, and the admissions that it counted.
    credit_told: Option<(Amount, u64)>,
    last_heard: Instant,
    beat: u64,
    drain_told: bool,
}

impl Session {
    async fn begin(
        state: Arc<State>,
        ready: Ready,
        inbound: &mut Streaming<wire::GatewayFrame>,
        frames: Frames,
    ) -> Result<Self, Status> {
        let first =
            tokio::time::timeout(state.pace.hello, inbound.message()).await.map_err(|_| {
                Status::deadline_exceeded("the gateway did not introduce itself in time")
            })??;
        let Some(wire::GatewayFrame { frame: Some(Frame::Hello(hello)) }) = first else {
            return Err(Status::invalid_argument("the first frame must be Hello"));
        };
        if hello.protocol_version != proto::PROTOCOL_VERSION {
            return Err(Status::failed_precondition(format!(
                "the gateway speaks protocol {}, this worker {}",
                hello.protocol_version,
                proto::PROTOCOL_VERSION
            )));
        }
        let Some(gateway_id) = RequestId::parse(&hello.gateway_id) else {
            return Err(Status::invalid_argument(
                "gateway_id must be 1 to 128 visible ASCII characters",
            ));
        };
        let registration =
            state.gateways.register(gateway_id.as_str(), hello.epoch).map_err(|open| {
                let epoch = hello.epoch;
                Status::failed_precondition(format!(
                    "epoch is {epoch}, this gateway has a stream of epoch {open}"
                ))
            })?;
        let member = ready.credits.join().ok_or_else(|| {
            Status::resource_exhausted(format!("{MAX_GATEWAYS} gateways are connected"))
        })?;
        let client =
            ready.engine.attach().await.map_err(|error| Status::unavailable(error.to_string()))?;
        tracing::info!(gateway_id = %gateway_id, epoch = hello.epoch, "gateway connected");
        Ok(Self {
            requests: Requests::new(ready.identity.limits.kv_block_size),
            cache_events: ready.engine.subscribe_cache_events(),
            gateway_id: gateway_id.as_str().to_owned(),
            epoch: hello.epoch,
            outbox: Outbox::new(frames),
            admits_seen: 0,
            credit_told: None,
            last_heard: Instant::now(),
            beat: 0,
            drain_told: false,
            state,
            ready,
            registration,
            member,
            client,
        })
    }

    async fn serve(&mut self, inbound: &mut Streaming<wire::GatewayFrame>) -> Result<(), Status> {
        let mut ticks = tokio::time::interval(self.state.pace.tick);
        let mut open = true;
        loop {
            self.tell_credit(Told::Slots);
            self.outbox.flush();
            if self.is_done() {
                return Ok(());
            }
            // All of these are cancel safe: receivers, tokens, timers, and
            // `message`, which keeps its partial frame in the stream.
            tokio::select! {
                frame = inbound.message(), if open && self.outbox.backlog() < MAX_BACKLOG => {
                    match frame? {
                        Some(frame) => self.take(frame).await?,
                        // It says nothing more, and so cannot cancel or ack.
                        None => open = false,
                    }
                    if !open {
                        return Ok(());
                    }
                }
                step = self.client.events.recv(), if self.outbox.is_empty() => {
                    self.forward(&step.ok_or_else(|| self.engine_gone())?);
                }
                events = self.cache_events.recv(), if self.outbox.is_empty() => {
                    // Lost events cost the gateway a guess, not a promise.
                    if let Ok(events) = events {
                        self.outbox.push(Body::CacheEvents(convert::cache_events(&events)));
                    }
                }
                () = self.outbox.room() => {}
                () = self.member.changed() => {}
                _ = ticks.tick() => self.tick()?,
                () = self.state.draining.cancelled(), if !self.drain_told => self.tell_drain(),
                () = self.state.shutdown.cancelled().cancelled() => {
                    return Err(Status::unavailable("the worker has stopped"));
                }
                () = self.registration.superseded.cancelled() => {
                    return Err(Status::aborted("the gateway has opened a newer stream"));
                }
            }
        }
    }

    /// A stopping process ends streams that have nothing left to say.
    fn is_done(&self) -> bool {
        self.drain_told
            && self.state.shutdown.draining().is_cancelled()
            && self.requests.is_empty()
            && self.outbox.is_empty()
    }

    // ------------------------------------------------- what the gateway says

    async fn take(&mut self, frame: wire::GatewayFrame) -> Result<(), Status> {
        self.last_heard = Instant::now();
        match frame.frame {
            Some(Frame::Admit(admit)) => {
                self.admits_seen += 1;
                self.admit(admit);
            }
            Some(Frame::Cancel(cancel)) => self.cancel(cancel).await?,
            Some(Frame::Heartbeat(_)) => {}
            Some(Frame::Ack(ack)) if ack.frame <= self.outbox.last_frame => {}
            Some(Frame::Ack(ack)) => {
                return Err(Status::invalid_argument(format!(
                    "ack of frame {}, the last one is {}",
                    ack.frame, self.outbox.last_frame
                )));
            }
            Some(Frame::Hello(_)) => {
                return Err(Status::invalid_argument("Hello may only be the first frame"));
            }
            // From a newer gateway, which knows that older workers ignore it.
            None => tracing::debug!(gateway_id = self.gateway_id, "frame of an unknown kind"),
        }
        Ok(())
    }

    fn admit(&mut self, admit: wire::Admit) {
        let assignment = Assignment { request_key: admit.request_key, epoch: admit.epoch };
        if self.is_repeated(assignment) {
            tracing::warn!(gateway_id = self.gateway_id, ?assignment, "admitted twice, ignored");
            return;
        }
        if let Err(refusal) = self.try_admit(assignment, admit) {
            metrics::refused(refusal.code);
            self.outbox.push(Body::Rejected(wire::Rejected {
                request_key: assignment.request_key,
                epoch: assignment.epoch,
                code: refusal.code.into(),
                message: refusal.message,
            }));
        }
    }

    /// The very same assignment again; a key in use under another epoch is
    /// refused instead.
    fn is_repeated(&self, assignment: Assignment) -> bool {
        let live = self.requests.sequence(assignment.request_key);
        live.and_then(|sequence| self.requests.assignment(sequence)) == Some(assignment)
    }

    fn try_admit(&mut self, assignment: Assignment, admit: wire::Admit) -> Result<(), Refusal> {
        if self.state.draining.is_cancelled() {
            return Err(Refusal::new(Code::Unavailable, "the worker is draining"));
        }
        let request_key = assignment.request_key;
        if self.requests.sequence(request_key).is_some() {
            let message = format!("request_key {request_key} is in use");
            return Err(Refusal::new(Code::AlreadyExists, message));
        }
        let identity = &self.ready.identity;
        let wanted = admit.generation.ok_or_else(|| Refusal::invalid("generation is missing"))?;
        let generation = request::generation(wanted, identity, Arrival::now())?;
        if !self.member.take_slot() {
            let slots = self.ready.credits.total_slots();
            let message = format!("all {slots} slots are taken");
            return Err(Refusal::new(Code::ResourceExhausted, message));
        }
        let num_tokens = generation.prompt_token_ids.len() + generation.resume_token_ids.len();
        let num_tokens = u32::try_from(num_tokens).unwrap_or(u32::MAX - 1);
        let request_id = RequestId::from_client(Some(&admit.request_id));
        let context = admit.trace.unwrap_or_default();
        let parent = (context.traceparent.as_str(), context.tracestate.as_str());
        let span = trace::request_span(&request_id, &identity.model.name, &generation, parent);
        match self.ready.engine.submit(self.client.id, generation, span.clone()) {
            Ok(sequence) => {
                self.requests.insert(sequence, assignment, num_tokens, span);
                self.member.hold_blocks(self.requests.kv_blocks());
                Ok(())
            }
            Err(error) => {
                self.member.give_slot();
                Err(error.into())
            }
        }
    }

    /// Keys that are not live are late, or of no one: nothing to do.
    async fn cancel(&mut self, cancel: wire::Cancel) -> Result<(), Status> {
        for request_key in cancel.request_keys {
            if let Some(sequence) = self.requests.sequence(request_key)
                && self.ready.engine.cancel(sequence).await.is_err()
            {
                return Err(self.engine_gone());
            }
        }
        Ok(())
    }

    // -------------------------------------------------- what the engine says

    fn forward(&mut self, step: &StepEvents) {
        for body in step::frames(step, self.epoch, |id| self.requests.assignment(id)) {
            self.outbox.push(body);
        }
        for event in &step.events {
            let Some(live) = self.requests.observe(event) else { continue };
            self.member.give_slot();
            if let Event::Finished { reason, timing, .. } = event {
                trace::record_finish(&live.span, reason, timing);
                metrics::finished(reason, timing);
            }
        }
        self.member.hold_blocks(self.requests.kv_blocks());
    }

    fn engine_gone(&self) -> Status {
        match self.ready.engine.status().failure {
            Some(failure) => Status::unavailable(format!("the device failed: {failure}")),
            None => Status::aborted("the gateway took no frames, its sequences are cancelled"),
        }
    }

    // ------------------------------------------------------- what time brings

    fn tick(&mut self) -> Result<(), Status> {
        let silent = self.last_heard.elapsed();
        if silent >= self.state.pace.silence {
            return Err(Status::deadline_exceeded(format!(
                "the gateway has said nothing for {:.1} s",
                silent.as_secs_f32()
            )));
        }
        self.tell_credit(Told::Anything);
        // A connection that takes nothing will not take a heartbeat either.
        if self.outbox.is_empty() {
            self.beat += 1;
            let status = self.ready.engine.status();
            self.outbox.push(Body::Heartbeat(wire::WorkerHeartbeat {
                beat: self.beat,
                step: status.step,
                load: Some(convert::load(status.load)),
            }));
        }
        Ok(())
    }

    fn tell_drain(&mut self) {
        self.drain_told = true;
        let grace_ms = u64::try_from(self.state.shutdown.grace().as_millis()).unwrap_or(u64::MAX);
        self.outbox.push(Body::Draining(wire::Draining { grace_ms }));
    }

    fn tell_credit(&mut self, what: Told) {
        let credit = match self.state.draining.is_cancelled() {
            true => Amount::default(),
            false => self.member.credit(),
        };
        let news = match (self.credit_told, what) {
            (None, _) => true,
            // The gateway waits to hear what became of each.
            (Some((_, admits)), _) if admits != self.admits_seen => true,
            (Some((told, _)), Told::Slots) => told.slots != credit.slots,
            (Some((told, _)), Told::Anything) => told != credit,
        };
        if news && self.outbox.backlog() < MAX_BACKLOG {
            self.credit_told = Some((credit, self.admits_seen));
            self.outbox.push(Body::Credit(wire::Credit {
                slots: credit.slots,
                kv_blocks: credit.kv_blocks,
                admits_seen: self.admits_seen,
            }));
        }
    }

    fn log_end(&self, ended: &Result<(), Status>) {
        let (gateway_id, cut) = (&self.gateway_id, self.requests.len());
        match ended {
            Ok(()) => tracing::info!(gateway_id, cut, "gateway left"),
            Err(status) => tracing::warn!(gateway_id, cut, %status, "gateway lost"),
        }
    }
}

/// Which change of the credit is worth a frame: blocks change with every few
/// tokens, and are told with the next tick.
#[derive(Debug, Clone, Copy)]
enum Told {
    Slots,
    Anything,
}

/// Frames on their way out, numbered as they go.
struct Outbox {
    frames: Frames,
    backlog: VecDeque<Body>,
    /// Number of the last frame that was sent.
    last_frame: u64,
}

impl Outbox {
    fn new(frames: Frames) -> Self {
        Self { frames, backlog: VecDeque::new(), last_frame: 0 }
    }

    fn push(&mut self, body: Body) {
        self.backlog.push_back(body);
    }

    /// Sends what there is room for.
    fn flush(&mut self) {
        while !self.backlog.is_empty() {
            let Ok(permit) = self.frames.try_reserve() else { return };
            self.last_frame += 1;
            let body = self.backlog.pop_front();
            permit.send(Ok(wire::WorkerFrame { frame: self.last_frame, body }));
        }
    }

    /// Waits until [`Self::flush`] would send something; for ever while there is
    /// nothing to send. Cancel safe.
    async fn room(&self) {
        let gone = |_: mpsc::error::SendError<()>| ();
        if self.backlog.is_empty() || self.frames.reserve().await.map_err(gone).is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn backlog(&self) -> usize {
        self.backlog.len()
    }

    fn is_empty(&self) -> bool {
        self.backlog.is_empty()
    }
}
