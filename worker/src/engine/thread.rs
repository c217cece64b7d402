//! The engine's thread: commands in, steps, events out.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::runtime::Runtime;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{broadcast, mpsc, watch};

use super::EngineOptions;
use super::blocks::{BlockHasher, CacheEvents};
use super::clients::{Clients, StepSummary, Verdict};
use super::handle::{COMMAND_CAPACITY, Command, EngineHandle, EngineStatus, Shared, Submission};
use super::spans::Spans;
use super::state::EngineState;
use super::step::{DeviceFailed, Forward, Stepper, message_of};
use crate::generation::{FinishReason, StepTiming};

/// Steps' worth of cache events kept for slow listeners.
const CACHE_EVENT_CAPACITY: usize = 256;

/// The engine itself, inside its thread.
#[derive(Debug)]
pub struct Engine<F> {
    state: EngineState,
    stepper: Stepper<F>,
    commands: mpsc::Receiver<Command>,
    clients: Clients,
    spans: Spans,
    shared: Arc<Shared>,
    status: watch::Sender<EngineStatus>,
    cache_events: broadcast::Sender<Arc<CacheEvents>>,
    /// Only to sleep on: channels and a timer at once.
    runtime: Runtime,
    step: u64,
    /// Of the latest step, which turns without one leave as it was.
    latest: StepTiming,
    failure: Option<Arc<str>>,
    stopped: bool,
}

/// The running thread.
#[derive(Debug)]
pub struct EngineThread {
    thread: JoinHandle<()>,
}

impl EngineThread {
    /// Waits for the thread, which ends when every [`EngineHandle`] is dropped, or
    /// by [`EngineHandle::stop`]. Blocks.
    pub fn join(self) {
        // The thread catches its own panics.
        let _ = self.thread.join();
    }
}

impl<F: Forward + 'static> Engine<F> {
    /// Starts the thread, which from now on owns the model.
    ///
    /// # Errors
    /// When the operating system gives no thread or timer.
    ///
    /// # Panics
    /// When the limits contradict each other; see [`EngineState::new`].
    pub fn start(
        forward: F,
        options: EngineOptions,
    ) -> std::io::Result<(EngineHandle, EngineThread)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let state = EngineState::new(options.config, BlockHasher::new(options.cache_key));
        let mesh = forward.mesh_status();
        let initial = EngineStatus { load: state.load(), mesh, ..EngineStatus::default() };
        let (commands_tx, commands) = mpsc::channel(COMMAND_CAPACITY);
        let (status, status_rx) = watch::channel(initial);
        let (cache_events, _) = broadcast::channel(CACHE_EVENT_CAPACITY);
        let shared = Arc::new(Shared::default());
        let handle = EngineHandle {
            commands: commands_tx,
            shared: Arc::clone(&shared),
            status: status_rx,
            cache_events: cache_events.clone(),
            config: options.config,
            client_limits: options.client_limits,
            max_waiting_seqs: options.max_waiting_seqs,
        };
        let engine = Self {
            state,
            stepper: Stepper::new(forward),
            commands,
            clients: Clients::new(options.client_limits),
            spans: Spans::default(),
            shared,
            status,
            cache_events,
            runtime,
            step: 0,
            latest: StepTiming::default(),
            failure: None,
            stopped: false,
        };
        let thread =
            std::thread::Builder::new().name("engine".to_owned()).spawn(move || engine.guard())?;
        Ok((handle, EngineThread { thread }))
    }
}

impl<F: Forward> Engine<F> {
    /// Runs; a panic in the engine's own code leaves a failed status behind,
    /// and closes every channel.
    fn guard(mut self) {
        let ran = catch_unwind(AssertUnwindSafe(|| self.run()));
        if let Err(panic) = ran {
            let message = message_of(panic.as_ref());
            tracing::error!(message, "the engine panicked");
            let failure = Some(Arc::from(format!("the engine panicked: {message}")));
            self.status.send_modify(|status| status.failure = failure);
        }
    }

    fn run(&mut self) {
        let mut idle = true;
        while self.receive(idle) {
            idle = !self.turn();
        }
        self.state.finish_all(&FinishReason::Cancelled, Instant::now());
        self.deliver(StepTiming::default(), Vec::new());
    }

    // ------------------------------------------------------------ commands

    /// Takes in all commands; when idle, waits for one, or for a client to
    /// read, or for a deadline. False when no handle is left, or when told to
    /// stop.
    fn receive(&mut self, idle: bool) -> bool {
        if idle {
            match self.wait() {
                Wake::Command(command) => self.execute(command),
                Wake::NoHandles => return false,
                Wake::Other => {}
            }
        }
        for _ in 0..COMMAND_CAPACITY {
            match self.commands.try_recv() {
                Ok(command) => self.execute(command),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        !self.stopped
    }

    fn wait(&mut self) -> Wake {
        let Self { runtime, commands, clients, state, .. } = self;
        let deadline = state.next_deadline().into_iter().chain(clients.next_deadline()).min();
        let timer = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        runtime.block_on(async {
            // All three are cancel-safe.
            tokio::select! {
                command = commands.recv() => command.map_or(Wake::NoHandles, Wake::Command),
                () = clients.changed() => Wake::Other,
                () = timer => Wake::Other,
            }
        })
    }

    fn execute(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Attach { id, sender } => self.clients.attach(id, sender),
            Command::Submit(submission) => self.submit(*submission, now),
            Command::Cancel(id) => self.state.cancel(id, now),
            Command::CancelAll(reply) => {
                let cancelled = self.state.finish_all(&FinishReason::Cancelled, now);
                // Whoever asked may have gone meanwhile.
                let _ = reply.send(cancelled);
            }
            Command::Stop => self.stopped = true,
        }
    }

    fn submit(&mut self, submission: Submission, now: Instant) {
        let Submission { id, client, generation, span } = submission;
        self.spans.submitted(id, span, generation.prompt_token_ids.len());
        self.state.submit(id, client, generation, now);
        if !self.clients.contains(client) {
            self.state.cancel(id, now);
        } else if let Some(failure) = &self.failure {
            self.state.finish_all(&FinishReason::DeviceFailed(failure.to_string()), now);
        }
    }

    // ------------------------------------------------------------ steps

    /// One step, and all events since the last. False when there was nothing
    /// to compute, nor will be before something happens.
    fn turn(&mut self) -> bool {
        let start = Instant::now();
        let plan = self.state.plan(start);
        if plan.is_empty() {
            return self.deliver(StepTiming::default(), Vec::new());
        }
        self.step += 1;
        let early = self.announce();
        let (prefill_tokens, decode_tokens) = (plan.prefill_tokens, plan.decode_tokens);
        let sequences = plan.work.len();
        let span = tracing::debug_span!(
            "step",
            step = self.step,
            sequences,
            prefill_tokens,
            decode_tokens
        );
        let stepped = span.in_scope(|| self.stepper.step(&mut self.state, &plan));
        let forward = match stepped {
            Ok(forward) => forward,
            Err(DeviceFailed(message)) => {
                self.fail(message);
                start.elapsed()
            }
        };
        let step = start.elapsed();
        self.latest = StepTiming { step, forward, prefill_tokens, decode_tokens };
        self.deliver(self.latest, early);
        true
    }

    fn fail(&mut self, message: String) {
        tracing::error!(message, "the device failed; no more work is taken");
        self.failure = Some(Arc::from(message.as_str()));
        self.state.finish_all(&FinishReason::DeviceFailed(message), Instant::now());
    }

    // ------------------------------------------------------------ events

    /// Tells of admissions before the step that begins with them: it may take
    /// long, and waiting ends here. What that shows of the clients is acted on
    /// after the step, whose plan stands.
    fn announce(&mut self) -> Vec<Verdict> {
        if !self.route_events() {
            return Vec::new();
        }
        let load = self.state.load();
        let summary = StepSummary { step: self.step, load, timing: StepTiming::default() };
        self.clients.flush(summary, Instant::now())
    }

    /// Sends what happened, and publishes the status. True when that, or what
    /// was seen of the clients before, changed what can be planned.
    fn deliver(&mut self, timing: StepTiming, mut verdicts: Vec<Verdict>) -> bool {
        let now = Instant::now();
        self.route_events();
        let load = self.state.load();
        let summary = StepSummary { step: self.step, load, timing };
        verdicts.extend(self.clients.flush(summary, now));
        for verdict in &verdicts {
            match *verdict {
                Verdict::Paused(id, paused) => self.state.set_paused(id, paused),
                Verdict::TooSlow(id) | Verdict::Gone(id) => {
                    if *verdict == Verdict::TooSlow(id) {
                        tracing::warn!(client = id.0, "client reads too slowly, cancelled");
                    }
                    self.clients.remove(id);
                    self.state.cancel_client(id, now);
                }
            }
        }
        // Of clients that are no more: only spans and counters hear of it.
        self.route_events();
        let cache_events = self.state.take_cache_events();
        if cache_events != CacheEvents::default() {
            // Nobody may be listening.
            let _ = self.cache_events.send(Arc::new(cache_events));
        }
        self.status.send_replace(EngineStatus {
            step: self.step,
            load: self.state.load(),
            timing: self.latest,
            totals: self.state.totals(),
            failure: self.failure.clone(),
            mesh: self.stepper.mesh_status(),
        });
        !verdicts.is_empty()
    }

    /// Hands events to their clients' outboxes; true if there were any.
    fn route_events(&mut self) -> bool {
        let events = self.state.take_events();
        let any = !events.is_empty();
        for (client, event) in events {
            if self.spans.observe(&event) {
                self.shared.queued.fetch_sub(1, Ordering::SeqCst);
            }
            if matches!(event, crate::generation::Event::Finished { .. }) {
                self.shared.live.fetch_sub(1, Ordering::SeqCst);
            }
            self.clients.push(client, event);
        }
        any
    }
}

enum Wake {
    Command(Command),
    NoHandles,
    Other,
}
