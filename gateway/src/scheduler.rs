//! Decides which sequence runs where: the task around the pure state machine.
//!
//! One task owns [`state::State`]. Requests come in by [`Scheduler::submit`],
//! workers' frames by [`LinkEvent`]s, and it waits for neither a client (their
//! rings take or overflow) nor a worker (their command channels take or count
//! as broken), so a step's tokens are passed on as soon as they are read.

pub mod credit;
pub mod queue;
pub mod ring;
pub mod sequence;
pub mod state;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::shutdown::Shutdown;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::Span;

use crate::error::GatewayError;
use crate::metrics::Metrics;
use crate::worker_pool::roster::Roster;
use ring::{RingReader, RingState, RingWriter, Signals};
use sequence::{Assignment, SequenceId, SequenceSpec, WorkerId};
use state::{Action, SchedulerConfig, State, WorkerProfile};

pub use state::WorkerFrame;

/// Submissions and frames that wait for the task; it never waits itself, so
/// this only smooths bursts.
const EVENTS: usize = 1024;
/// How often deadlines and waits are looked at.
const TICK: Duration = Duration::from_millis(50);
/// Most events taken between two schedulings.
const BATCH: usize = 256;

/// What the task tells a link.
#[derive(Debug)]
pub enum LinkCommand {
    /// Send an `Admit`.
    Admit(Box<Assignment>),
    /// Send a `Cancel`.
    Cancel(u32),
}

/// What a link tells the task.
#[derive(Debug)]
pub enum LinkEvent {
    /// A stream is open.
    Up {
        /// To which worker.
        worker: WorkerId,
        /// Grows with every stream to this worker.
        epoch: u32,
        /// What the worker can hold.
        profile: WorkerProfile,
        /// Commands for the stream; dropping it closes the stream.
        commands: mpsc::Sender<LinkCommand>,
    },
    /// A frame arrived.
    Frame {
        /// From which worker.
        worker: WorkerId,
        /// On which stream.
        epoch: u32,
        /// What it says.
        frame: WorkerFrame,
    },
    /// The stream has ended.
    Down {
        /// To which worker.
        worker: WorkerId,
        /// Which stream.
        epoch: u32,
    },
}

#[derive(Debug)]
enum Event {
    Submit(Submission),
    Link(LinkEvent),
}

#[derive(Debug)]
struct Submission {
    batch: Vec<(SequenceId, SequenceSpec)>,
    ring: RingWriter,
    reply: oneshot::Sender<Result<(), GatewayError>>,
}

/// Handle on the task; clones are one handle.
#[derive(Clone, Debug)]
pub struct Scheduler {
    events: mpsc::Sender<Event>,
    signals: Arc<Signals>,
    next_id: Arc<AtomicU64>,
}

/// The links' way into the task.
#[derive(Clone, Debug)]
pub struct LinkSender {
    events: mpsc::Sender<Event>,
}

impl LinkSender {
    /// Passes an event on; false if the task has ended.
    pub async fn send(&self, event: LinkEvent) -> bool {
        self.events.send(Event::Link(event)).await.is_ok()
    }
}

impl Scheduler {
    /// Starts the task. On drain it takes nothing new and ends when the last
    /// sequence has; `stop_links` fires when it has ended.
    pub fn start(
        config: SchedulerConfig,
        roster: Arc<Roster>,
        metrics: Arc<Metrics>,
        stop_links: CancellationToken,
        shutdown: &Shutdown,
    ) -> Self {
        let (events, receiver) = mpsc::channel(EVENTS);
        let signals = Arc::new(Signals::default());
        let task = Task {
            state: State::new(config),
            rings: HashMap::new(),
            links: HashMap::new(),
            signals: Arc::clone(&signals),
            roster,
            metrics,
            actions: Vec::new(),
        };
        shutdown.spawn("scheduler", task.run(receiver, shutdown.clone(), stop_links));
        Self { events, signals, next_id: Arc::new(AtomicU64::new(0)) }
    }

    /// For the links.
    pub fn link_sender(&self) -> LinkSender {
        LinkSender { events: self.events.clone() }
    }

    /// Queues the answers of one request, all or none. `queue_span` ends when
    /// a worker takes the first.
    ///
    /// # Errors
    /// As [`State::submit`].
    pub async fn submit(
        &self,
        specs: Vec<SequenceSpec>,
        queue_span: Span,
    ) -> Result<RingReader, GatewayError> {
        let first = self.next_id.fetch_add(specs.len() as u64, Ordering::Relaxed);
        let batch: Vec<_> = (first..).map(SequenceId).zip(specs).collect();
        let ids = batch.iter().map(|&(id, _)| id).collect();
        // Made before the submission: if this future is dropped half-way, the
        // reader's drop cancels what may have been queued.
        let (ring, reader) = ring::ring(ids, Arc::clone(&self.signals), queue_span);
        let (reply, answer) = oneshot::channel();
        let draining = || GatewayError::Draining { retry_after: Duration::from_secs(5) };
        let submission = Event::Submit(Submission { batch, ring, reply });
        self.events.send(submission).await.map_err(|_| draining())?;
        answer.await.map_err(|_| draining())??;
        Ok(reader)
    }
}

/// Dropping it fails what is left, so that no client waits for a task that was
/// cut or has panicked.
struct Task {
    state: State,
    rings: HashMap<SequenceId, (RingWriter, usize)>,
    links: HashMap<WorkerId, (u32, mpsc::Sender<LinkCommand>)>,
    signals: Arc<Signals>,
    roster: Arc<Roster>,
    metrics: Arc<Metrics>,
    actions: Vec<Action>,
}

impl Task {
    async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        shutdown: Shutdown,
        stop_links: CancellationToken,
    ) {
        let _stop_links = stop_links.drop_guard();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(BATCH);
        let mut is_draining = false;
        while !(is_draining && self.state.is_idle()) {
            // All cancel safe: a receive, a notification, a tick, two tokens.
            tokio::select! {
                received = events.recv_many(&mut batch, BATCH) => {
                    if received == 0 {
                        break; // Nobody is left who could submit or read.
                    }
                }
                () = self.signals.ready() => {}
                _ = tick.tick() => self.state.tick(Instant::now(), &mut self.actions),
                () = shutdown.draining().cancelled(), if !is_draining => {
                    is_draining = true;
                    self.state.drain();
                }
                () = shutdown.cancelled().cancelled() => break,
            }
            for event in batch.drain(..) {
                self.take(event);
            }
            self.take_signals();
            self.state.schedule(&mut self.actions);
            self.act();
            self.measure();
        }
        self.state.abandon(&mut self.actions);
        self.act();
        self.measure();
    }

    fn take(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Submit(submission) => self.submit(now, submission),
            Event::Link(LinkEvent::Up { worker, epoch, profile, commands }) => {
                self.links.insert(worker, (epoch, commands));
                self.state.worker_up(worker, epoch, profile);
            }
            Event::Link(LinkEvent::Frame { worker, epoch, frame }) => {
                self.state.apply(now, (worker, epoch), frame, &mut self.actions);
                // In order: an answer's end must not overtake its tokens.
                self.act();
            }
            Event::Link(LinkEvent::Down { worker, epoch }) => self.down(now, worker, epoch),
        }
    }

    fn submit(&mut self, now: Instant, submission: Submission) {
        let Submission { batch, ring, reply } = submission;
        if ring.is_closed() {
            return;
        }
        let ids: Vec<SequenceId> = batch.iter().map(|&(id, _)| id).collect();
        let result = self.state.submit(now, batch);
        if result.is_ok() {
            for (answer, id) in ids.into_iter().enumerate() {
                self.rings.insert(id, (ring.clone(), answer));
            }
        }
        // A reader that has gone meanwhile has said so by a signal.
        let _ = reply.send(result);
    }

    fn down(&mut self, now: Instant, worker: WorkerId, epoch: u32) {
        if self.links.get(&worker).is_some_and(|&(current, _)| current == epoch) {
            self.links.remove(&worker);
            self.metrics.worker_losses.increment(1);
        }
        self.state.worker_down(now, worker, epoch, &mut self.actions);
    }

    fn take_signals(&mut self) {
        let (cancelled, drained) = self.signals.take();
        for id in cancelled {
            self.state.cancel(id, &mut self.actions);
            self.rings.remove(&id);
        }
        for id in drained {
            self.state.unpark(Instant::now(), id, &mut self.actions);
        }
    }

    /// Does what the state asks for; what that leads to is done as well.
    fn act(&mut self) {
        while !self.actions.is_empty() {
            for action in std::mem::take(&mut self.actions) {
                match action {
                    Action::Admit(worker, assignment) => {
                        self.command(worker, LinkCommand::Admit(Box::new(assignment)));
                    }
                    Action::Cancel(worker, key) => {
                        self.command(worker, LinkCommand::Cancel(key));
                    }
                    Action::Deliver(id, delivery) => self.deliver(id, delivery),
                    Action::Quarantine(worker, reason) => self.close(worker, reason),
                }
            }
        }
    }

    fn command(&mut self, worker: WorkerId, command: LinkCommand) {
        let Some((_, commands)) = self.links.get(&worker) else { return };
        if commands.try_send(command).is_err() {
            self.close(worker, "worker does not read its stream");
        }
    }

    /// Drops the stream; the sequences on it go elsewhere at once.
    fn close(&mut self, worker: WorkerId, reason: &'static str) {
        if let Some(&(epoch, _)) = self.links.get(&worker) {
            tracing::warn!(worker = worker.0, reason, "closing the stream to a worker");
            self.down(Instant::now(), worker, epoch);
        }
    }

    fn deliver(&mut self, id: SequenceId, delivery: sequence::Delivery) {
        use sequence::Delivery;
        let now = Instant::now();
        let is_end = matches!(delivery, Delivery::Finished(_) | Delivery::Failed(_));
        let Some((ring, answer)) = self.rings.get(&id) else { return };
        if ring.push(*answer, delivery, now) == RingState::Full {
            self.state.park(now, id, &mut self.actions);
            if !ring.park(id) {
                self.state.unpark(now, id, &mut self.actions);
            }
        }
        if is_end {
            self.rings.remove(&id);
        }
    }

    fn measure(&mut self) {
        let census = self.state.census();
        self.metrics.num_running.set(census.running as f64);
        self.metrics.num_waiting.set(census.waiting as f64);
        self.metrics.workers_ready.set(census.workers_ready as f64);
        let (used, total) = census.kv_blocks;
        self.metrics.kv_cache_usage.set(used as f64 / total.max(1) as f64);
        self.metrics.late_outputs.increment(self.state.take_late_outputs());
        self.metrics.sequences_resumed.increment(self.state.take_resumes());
        for &worker in self.links.keys() {
            self.roster.set_running(worker, self.state.num_running_on(worker) as u32);
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let now = Instant::now();
        for (ring, answer) in self.rings.drain().map(|(_, place)| place) {
            let error = GatewayError::Internal("the scheduler has ended".into());
            // Nothing is left to park.
            ring.push(answer, sequence::Delivery::Failed(error), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn a_task_that_is_gone_leaves_no_reader_waiting() {
        let signals = Arc::new(Signals::default());
        let ids = vec![SequenceId(1), SequenceId(2)];
        let (ring, reader) = ring::ring(ids.clone(), Arc::clone(&signals), Span::none());
        let places = ids.into_iter().zip([(ring.clone(), 0), (ring, 1)]);
        let task = Task {
            state: State::new(SchedulerConfig::default()),
            rings: places.collect(),
            links: HashMap::new(),
            signals,
            roster: Arc::new(Roster::new(&[])),
            metrics: Arc::new(Metrics::new("tiny")),
            actions: Vec::new(),
        };
        let mut unread = Vec::new();
        let mut cx = std::task::Context::from_waker(Waker::noop());
        assert!(reader.poll_read(&mut cx, &mut unread).is_pending());
        drop(task);
        assert!(reader.poll_read(&mut cx, &mut unread).is_ready());
        let failed = |unread: &ring::Unread| matches!(unread.end, Some(Err(_)));
        assert!(unread.len() == 2 && unread.iter().all(|(_, unread)| failed(unread)));
    }
}
