//! What the rest of the worker holds of the engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use mesh::MeshStatus;
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};

use super::EngineConfig;
use super::blocks::CacheEvents;
use super::clients::ClientLimits;
use super::state::Totals;
use crate::generation::{ClientId, Generation, Load, SequenceId, StepEvents, StepTiming};

/// Messages under way to the engine, which reads all of them between any two
/// steps.
pub(super) const COMMAND_CAPACITY: usize = 1024;

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Try elsewhere, or later.
    #[error("{max_waiting_seqs} sequences are waiting, which is as many as may")]
    QueueFull {
        /// The limit.
        max_waiting_seqs: usize,
    },
    /// Never on this worker.
    #[error("{what} is {value}, the limit is {limit}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How much there is.
        value: usize,
        /// How much there may be.
        limit: usize,
    },
    /// Nothing new is taken.
    #[error("the worker is draining")]
    Draining,
    /// The device failed.
    #[error("the device failed: {0}")]
    DeviceFailed(Arc<str>),
    /// The engine has ended.
    #[error("the engine has stopped")]
    Stopped,
}

/// The engine has ended, so there is nothing left to ask of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the engine has stopped")]
pub struct Stopped;

/// The engine after its latest step.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EngineStatus {
    /// Counts steps. One that has work and does not step is not alive.
    pub step: u64,
    /// How full it is.
    pub load: Load,
    /// Time and work of the latest step.
    pub timing: StepTiming,
    /// Work since the start.
    pub totals: Totals,
    /// Why the engine takes no more work, if it does not.
    pub failure: Option<Arc<str>>,
    /// How the mesh was doing after the latest step.
    pub mesh: MeshStatus,
}

#[derive(Debug)]
pub(super) enum Command {
    Attach { id: ClientId, sender: mpsc::Sender<StepEvents> },
    Submit(Box<Submission>),
    Cancel(SequenceId),
    CancelAll(oneshot::Sender<u32>),
    Stop,
}

#[derive(Debug)]
pub(super) struct Submission {
    pub(super) id: SequenceId,
    pub(super) client: ClientId,
    pub(super) generation: Generation,
    pub(super) span: tracing::Span,
}

/// What handles and the thread both count.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) draining: AtomicBool,
    /// Submitted and not yet admitted or ended.
    pub(super) queued: AtomicUsize,
    /// Submitted and not yet ended.
    pub(super) live: AtomicUsize,
    /// Told when a submission did not come about: no status follows from it.
    withdrawn: Notify,
    next_client: AtomicU64,
    next_sequence: AtomicU64,
}

impl Shared {
    /// Takes back the count of a submission that did not come about.
    fn withdraw(&self) {
        self.queued.fetch_sub(1, Ordering::SeqCst);
        self.live.fetch_sub(1, Ordering::SeqCst);
        self.withdrawn.notify_waiters();
    }
}

/// A way to talk to the engine. When the last one is dropped, the engine
/// cancels what it has and stops.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) shared: Arc<Shared>,
    pub(super) status: watch::Receiver<EngineStatus>,
    pub(super) cache_events: broadcast::Sender<Arc<CacheEvents>>,
    pub(super) config: EngineConfig,
    pub(super) client_limits: ClientLimits,
    pub(super) max_waiting_seqs: usize,
}

/// One consumer of the engine's output. Dropping it cancels all its sequences
/// before the next step.
#[derive(Debug)]
pub struct Client {
    /// For [`EngineHandle::submit`].
    pub id: ClientId,
    /// At most two messages a step: admissions before it, the rest after it.
    /// Ends when the engine stops, or gives up on a client that takes nothing;
    /// whatever has not finished then was cancelled.
    pub events: mpsc::Receiver<StepEvents>,
}

impl EngineHandle {
    /// Registers a consumer.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub async fn attach(&self) -> Result<Client, Stopped> {
        let id = ClientId(self.shared.next_client.fetch_add(1, Ordering::Relaxed));
        let (sender, events) = mpsc::channel(self.client_limits.channel_capacity);
        self.send(Command::Attach { id, sender }).await?;
        Ok(Client { id, events })
    }

    /// Hands a checked request over, without waiting. `span` becomes the parent
    /// of the engine's spans for it.
    ///
    /// # Errors
    /// [`SubmitError`]; no event will come then.
    pub fn submit(
        &self,
        client: ClientId,
        generation: Generation,
        span: tracing::Span,
    ) -> Result<SequenceId, SubmitError> {
        self.check_size(&generation)?;
        if let Some(failure) = &self.status.borrow().failure {
            return Err(SubmitError::DeviceFailed(Arc::clone(failure)));
        }
        let max_waiting_seqs = self.max_waiting_seqs;
        let one_more = |queued| (queued < max_waiting_seqs).then_some(queued + 1);
        if self.shared.queued.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more).is_err() {
            return Err(SubmitError::QueueFull { max_waiting_seqs });
        }
        // Counted before the flag is looked at: `drain` sets the flag before it
        // looks at the count, so one of the two notices the other.
        self.shared.live.fetch_add(1, Ordering::SeqCst);
        let sent = if self.is_draining() {
            Err(SubmitError::Draining)
        } else {
            self.send_submission(client, generation, span)
        };
        if sent.is_err() {
            self.shared.withdraw();
        }
        sent
    }

    fn send_submission(
        &self,
        client: ClientId,
        generation: Generation,
        span: tracing::Span,
    ) -> Result<SequenceId, SubmitError> {
        let permit = self.commands.try_reserve().map_err(|error| match error {
            mpsc::error::TrySendError::Full(()) => {
                SubmitError::QueueFull { max_waiting_seqs: self.max_waiting_seqs }
            }
            mpsc::error::TrySendError::Closed(()) => SubmitError::Stopped,
        })?;
        let id = SequenceId(self.shared.next_sequence.fetch_add(1, Ordering::Relaxed));
        permit.send(Command::Submit(Box::new(Submission { id, client, generation, span })));
        Ok(id)
    }

    fn check_size(&self, generation: &Generation) -> Result<(), SubmitError> {
        let check = |what, value, limit| {
            if value > limit {
                return Err(SubmitError::TooLarge { what, value, limit });
            }
            Ok(())
        };
        let num_tokens = generation.prompt_token_ids.len() + generation.resume_token_ids.len();
        check("number of tokens", num_tokens, self.config.max_model_len)?;
        let num_blocks = self.config.blocks_needed(generation);
        check("number of kv blocks", num_blocks, self.config.num_kv_blocks)
    }

    /// Ends a sequence before the next step; nothing happens if it has ended.
    /// Dropped before it returns, the future may have had no effect.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub async fn cancel(&self, sequence: SequenceId) -> Result<(), Stopped> {
        self.send(Command::Cancel(sequence)).await
    }

    /// Ends all sequences of all clients; returns how many.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub async fn cancel_all(&self) -> Result<u32, Stopped> {
        let (sender, receiver) = oneshot::channel();
        self.send(Command::CancelAll(sender)).await?;
        receiver.await.map_err(|_| Stopped)
    }

    /// Ends the engine, whoever still has a handle: all sequences are cancelled
    /// and the device is closed. [`super::EngineThread::join`] waits for that.
    pub async fn stop(&self) {
        // It may have stopped by itself.
        let _ = self.send(Command::Stop).await;
    }

    /// Takes nothing new from now on, and returns when nothing is left. The
    /// caller bounds the wait, and may cut it with [`EngineHandle::cancel_all`].
    pub async fn drain(&self) {
        self.shared.draining.store(true, Ordering::SeqCst);
        let mut status = self.status.clone();
        loop {
            // Both before the count is looked at, so that no change is missed.
            let withdrawn = self.shared.withdrawn.notified();
            status.borrow_and_update();
            if self.shared.live.load(Ordering::SeqCst) == 0 {
                return;
            }
            tokio::select! {
                changed = status.changed() => if changed.is_err() { return },
                () = withdrawn => {}
            }
        }
    }

    /// True once [`EngineHandle::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::SeqCst)
    }

    /// The engine after its latest step.
    pub fn status(&self) -> EngineStatus {
        self.status.borrow().clone()
    }

    /// How full the engine is.
    pub fn load(&self) -> Load {
        self.status.borrow().load
    }

    /// True when submitted sequences have not ended: then the step counter must
    /// move.
    pub fn has_work(&self) -> bool {
        self.shared.live.load(Ordering::SeqCst) > 0
    }

    /// Follows the status; it changes with every step.
    pub fn watch_status(&self) -> watch::Receiver<EngineStatus> {
        self.status.clone()
    }

    /// Follows the prefix cache. A listener that lags loses the oldest events,
    /// and is told so.
    pub fn subscribe_cache_events(&self) -> broadcast::Receiver<Arc<CacheEvents>> {
        self.cache_events.subscribe()
    }

    /// The limits that the engine plans within.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    async fn send(&self, command: Command) -> Result<(), Stopped> {
        self.commands.send(command).await.map_err(|_| Stopped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fake::FakeModel;
    use crate::engine::{Engine, tests::options};

    #[tokio::test]
    async fn a_submission_that_a_drain_turns_away_does_not_hold_it_up() {
        let (handle, _thread) = Engine::start(FakeModel::new(4096, 4), options()).unwrap();
        // Between its count and its look at the flag.
        handle.shared.queued.fetch_add(1, Ordering::SeqCst);
        handle.shared.live.fetch_add(1, Ordering::SeqCst);
        let drained = handle.drain();
        tokio::pin!(drained);
        assert!(futures::poll!(drained.as_mut()).is_pending());
        handle.shared.withdraw();
        drained.await;
    }
}
