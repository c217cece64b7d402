//! The scheduler's state machine: waiting → admitted → finished.
//!
//! Pure: it is told the time and what happened, and answers with [`Action`]s.
//! No clock, no task, no channel; `scheduler.rs` is its shell. A sequence is in
//! exactly one place (queue, worker, parked), and whatever takes it from a
//! worker makes the worker's later words about it meaningless, because keys
//! are never used twice on a stream.

mod frames;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::credit::CreditLedger;
use super::queue::{Queue, QueueBounds};
use super::sequence::{
    Assignment, Delivery, Load, Place, Sequence, SequenceEnd, SequenceId, SequenceSpec,
    SequenceTiming, WorkerId,
};
use crate::error::GatewayError;
use crate::routing;
use crate::text_stream::FinishReason;
pub use frames::WorkerFrame;
use worker::Worker;

/// Numbers of the scheduler.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    /// Most that may wait.
    pub queue: QueueBounds,
    /// Longest wait in the queue.
    pub max_queue_wait: Duration,
    /// How long a sequence waits for a worker to come (back) before it fails.
    pub worker_wait: Duration,
    /// Tokens of an answer that a worker must have room for at admission; it
    /// pre-empts if more answers grow long than it expected.
    pub reserve_tokens: u32,
    /// A sequence that has lost this many workers is not given to another: it
    /// may be what kills them.
    pub max_losses: u32,
    /// Times a worker may turn a sequence away before it fails.
    pub max_refusals: u32,
    /// How long a client may leave a full stream unread.
    pub slow_client: Duration,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            queue: QueueBounds { max_sequences: 1024, max_tokens: 4 << 20 },
            max_queue_wait: Duration::from_secs(60),
            worker_wait: Duration::from_secs(10),
            reserve_tokens: 256,
            max_losses: 2,
            max_refusals: 16,
            slow_client: Duration::from_secs(10),
        }
    }
}

/// What a worker can hold, from its `Describe`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerProfile {
    /// Most tokens of one sequence.
    pub max_model_len: u32,
    /// Blocks of its KV cache, at least 1.
    pub num_kv_blocks: u32,
    /// Tokens of a block, at least 1.
    pub kv_block_size: u32,
    /// Whether it returns log-probabilities of prompts.
    pub prompt_logprobs: bool,
}

impl WorkerProfile {
    /// Most tokens of one sequence that it can finish.
    pub fn max_sequence_tokens(&self) -> u64 {
        let cache = u64::from(self.num_kv_blocks) * u64::from(self.kv_block_size);
        cache.min(u64::from(self.max_model_len))
    }
}

/// What the shell has to do.
#[derive(Debug)]
pub enum Action {
    /// Send an `Admit`.
    Admit(WorkerId, Assignment),
    /// Send a `Cancel`.
    Cancel(WorkerId, u32),
    /// Hand something to the sequence's reader. After `Finished` and `Failed`
    /// the sequence is gone.
    Deliver(SequenceId, Delivery),
    /// Close the worker's stream: it does not keep the contract.
    Quarantine(WorkerId, &'static str),
}

/// Counts for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Census {
    /// Sequences in the queue (and parked).
    pub waiting: usize,
    /// Sequences on workers.
    pub running: usize,
    /// Workers that take sequences.
    pub workers_ready: usize,
    /// KV blocks used and in all, over all workers.
    pub kv_blocks: (u64, u64),
}

/// Every sequence and every worker of the gateway.
#[derive(Debug)]
pub struct State {
    config: SchedulerConfig,
    queue: Queue,
    sequences: HashMap<SequenceId, Sequence>,
    workers: BTreeMap<WorkerId, Worker>,
    num_arrivals: u64,
    had_worker: bool,
    is_draining: bool,
    late_outputs: u64,
    resumes: u64,
}

impl State {
    /// Nothing there yet.
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            config,
            queue: Queue::default(),
            sequences: HashMap::new(),
            workers: BTreeMap::new(),
            num_arrivals: 0,
            had_worker: false,
            is_draining: false,
            late_outputs: 0,
            resumes: 0,
        }
    }

    /// Queues the sequences of one request, all or none.
    ///
    /// # Errors
    /// `Draining`, `NoWorker` (none has ever been there), `Overloaded`, or
    /// `Deadline` if it has passed already.
    pub fn submit(
        &mut self,
        now: Instant,
        batch: Vec<(SequenceId, SequenceSpec)>,
    ) -> Result<(), GatewayError> {
        if self.is_draining {
            return Err(GatewayError::Draining { retry_after: self.retry_after() });
        }
        if !self.had_worker {
            return Err(GatewayError::NoWorker { retry_after: self.retry_after() });
        }
        if batch.iter().any(|(_, spec)| spec.deadline.is_some_and(|deadline| deadline <= now)) {
            return Err(GatewayError::Deadline);
        }
        let tokens = batch.iter().map(|(_, spec)| spec.max_tokens()).sum();
        if !self.queue.has_room(batch.len(), tokens, self.config.queue) {
            return Err(GatewayError::Overloaded { retry_after: self.retry_after() });
        }
        for (id, spec) in batch {
            let arrival = self.num_arrivals;
            self.num_arrivals += 1;
            let (priority, tokens) = (spec.priority, spec.max_tokens());
            let place = Place::Waiting { since: now, no_worker_since: None };
            let sequence = Sequence {
                spec: Arc::new(spec),
                arrival,
                place,
                generated: Vec::new(),
                prompt_logprobs_seen: 0,
                losses: 0,
                refusals: 0,
                was_admitted: false,
            };
            self.sequences.insert(id, sequence);
            self.queue.insert(priority, arrival, id, tokens);
        }
        Ok(())
    }

    /// The reader has gone.
    pub fn cancel(&mut self, id: SequenceId, actions: &mut Vec<Action>) {
        self.take_off(id, actions);
        self.sequences.remove(&id);
    }

    /// The reader's stream is full: the worker gives the sequence up until
    /// [`unpark`](Self::unpark).
    pub fn park(&mut self, now: Instant, id: SequenceId, actions: &mut Vec<Action>) {
        self.take_off(id, actions);
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.place = Place::Parked { since: now };
        }
    }

    /// The reader has read what there was.
    pub fn unpark(&mut self, now: Instant, id: SequenceId, actions: &mut Vec<Action>) {
        let parked = |s: &Sequence| matches!(s.place, Place::Parked { .. });
        if self.sequences.get(&id).is_some_and(parked) {
            self.requeue(now, id, actions);
        }
    }

    /// A stream to a worker is open; it says later how much it takes.
    pub fn worker_up(&mut self, id: WorkerId, epoch: u32, profile: WorkerProfile) {
        self.had_worker = true;
        let worker = Worker {
            epoch,
            profile,
            credit: CreditLedger::default(),
            next_key: 1,
            running: HashMap::new(),
            is_draining: false,
            load: Load::default(),
        };
        self.workers.insert(id, worker);
    }

    /// A stream to a worker has ended. Its sequences go back into the queue,
    /// those of them that have not lost too many workers.
    pub fn worker_down(
        &mut self,
        now: Instant,
        id: WorkerId,
        epoch: u32,
        actions: &mut Vec<Action>,
    ) {
        if self.workers.get(&id).is_none_or(|worker| worker.epoch != epoch) {
            return;
        }
        let lost = self.workers.remove(&id).map(|worker| worker.running).unwrap_or_default();
        let mut lost: Vec<SequenceId> = lost.into_values().collect();
        lost.sort_unstable();
        for id in lost {
            self.lose(now, id, actions);
        }
    }

    /// Take nothing new; finish what is there.
    pub fn drain(&mut self) {
        self.is_draining = true;
    }

    /// Fails everything that is left.
    pub fn abandon(&mut self, actions: &mut Vec<Action>) {
        let error = GatewayError::Draining { retry_after: self.retry_after() };
        let ids: Vec<SequenceId> = self.sequences.keys().copied().collect();
        for id in ids {
            self.fail(id, error.clone(), actions);
        }
    }

    /// Ends whatever has waited or run for too long.
    pub fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let mut ended = Vec::new();
        for (&id, sequence) in &mut self.sequences {
            let servable = self.workers.values().any(|worker| worker.could_take(&sequence.spec));
            if let Some(error) = overdue(&self.config, now, sequence, servable) {
                ended.push((id, error));
            }
        }
        for (id, error) in ended {
            self.fail(id, error, actions);
        }
    }

    /// Admits what the workers' credits allow, in the queue's order. A
    /// sequence that no worker has room for now holds back those behind it, so
    /// that a long one is never starved; one that no worker could ever take
    /// holds back nobody.
    pub fn schedule(&mut self, actions: &mut Vec<Action>) {
        let mut admitted = Vec::new();
        for id in self.queue.iter() {
            let sequence = &self.sequences[&id];
            let able =
                || self.workers.iter().filter(|(_, worker)| worker.could_take(&sequence.spec));
            if able().next().is_none() {
                continue;
            }
            let candidates = able().filter_map(|(&id, worker)| {
                worker.candidate(id, worker.num_blocks(sequence, self.config.reserve_tokens))
            });
            let Some(chosen) = routing::choose(candidates) else { break };
            let worker = self.workers.get_mut(&chosen).expect("a candidate is a worker");
            let blocks = worker.num_blocks(sequence, self.config.reserve_tokens);
            let key = worker.take(id, blocks);
            admitted.push((id, chosen, key));
        }
        for (id, worker, key) in admitted {
            actions.push(Action::Admit(worker, self.assign(id, worker, key)));
        }
    }

    /// Counts for metrics.
    pub fn census(&self) -> Census {
        let running = self.workers.values().map(|worker| worker.running.len()).sum();
        let used = self.workers.values().map(|w| u64::from(w.load.kv_blocks_used)).sum();
        let total = self.workers.values().map(|w| u64::from(w.load.kv_blocks_total)).sum();
        Census {
            waiting: self.sequences.len() - running,
            running,
            workers_ready: self.workers.values().filter(|worker| !worker.is_draining).count(),
            kv_blocks: (used, total),
        }
    }

    /// Sequences of this gateway on a worker.
    pub fn num_running_on(&self, id: WorkerId) -> usize {
        self.workers.get(&id).map_or(0, |worker| worker.running.len())
    }

    /// Whether no sequence is left.
    pub fn is_idle(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Outputs of sequences that had been given up, since the last call.
    pub fn take_late_outputs(&mut self) -> u64 {
        std::mem::take(&mut self.late_outputs)
    }

    /// Sequences that went on on another stream, since the last call.
    pub fn take_resumes(&mut self) -> u64 {
        std::mem::take(&mut self.resumes)
    }

    /// When there may be room: one second per round of the queue through the
    /// slots, spread so that those refused together do not return together.
    fn retry_after(&self) -> Duration {
        let running: usize = self.workers.values().map(|worker| worker.running.len()).sum();
        let rounds = self.queue.len() / running.max(1);
        let spread = Duration::from_millis((self.num_arrivals * 251) % 1000);
        Duration::from_secs(1 + (rounds as u64).min(29)) + spread
    }

    fn assign(&mut self, id: SequenceId, worker: WorkerId, key: u32) -> Assignment {
        let sequence = self.sequences.get_mut(&id).expect("queued sequences exist");
        self.queue.remove(sequence.spec.priority, sequence.arrival);
        sequence.place = Place::Running { worker, key };
        if !sequence.generated.is_empty() {
            self.resumes += 1;
        }
        let due = sequence.spec.num_prompt_logprobs();
        Assignment {
            key,
            spec: Arc::clone(&sequence.spec),
            resume: sequence.generated.clone(),
            // A request for no tokens is one for these, even if there are none.
            wants_prompt_logprobs: sequence.prompt_logprobs_seen < due
                || sequence.spec.max_new_tokens == 0,
        }
    }

    /// Takes a sequence from wherever it is; the worker is told.
    fn take_off(&mut self, id: SequenceId, actions: &mut Vec<Action>) {
        let Some(sequence) = self.sequences.get(&id) else { return };
        match sequence.place {
            Place::Waiting { .. } => {
                self.queue.remove(sequence.spec.priority, sequence.arrival);
            }
            Place::Running { worker, key } => {
                let worker_state = self.workers.get_mut(&worker);
                if worker_state.is_some_and(|w| w.running.remove(&key).is_some()) {
                    actions.push(Action::Cancel(worker, key));
                }
            }
            Place::Parked { .. } => {}
        }
    }

    fn fail(&mut self, id: SequenceId, error: GatewayError, actions: &mut Vec<Action>) {
        self.take_off(id, actions);
        if self.sequences.remove(&id).is_some() {
            actions.push(Action::Deliver(id, Delivery::Failed(error)));
        }
    }

    /// A worker went away with this sequence.
    fn lose(&mut self, now: Instant, id: SequenceId, actions: &mut Vec<Action>) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        sequence.losses += 1;
        if sequence.losses >= self.config.max_losses {
            self.fail(id, GatewayError::WorkerLost, actions);
        } else {
            self.requeue(now, id, actions);
        }
    }

    /// Puts a sequence that is nowhere back at its place in the queue, unless
    /// its log says that it is complete.
    fn requeue(&mut self, now: Instant, id: SequenceId, actions: &mut Vec<Action>) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let spec = &sequence.spec;
        let answered = sequence.generated.len() >= spec.max_new_tokens as usize;
        if answered && sequence.prompt_logprobs_seen >= spec.num_prompt_logprobs() {
            let (reason, timing) = (FinishReason::Length, SequenceTiming::default());
            let end = SequenceEnd { reason, stop_token: None, timing };
            self.sequences.remove(&id);
            actions.push(Action::Deliver(id, Delivery::Finished(end)));
            return;
        }
        sequence.place = Place::Waiting { since: now, no_worker_since: None };
        self.queue.insert(spec.priority, sequence.arrival, id, spec.max_tokens());
    }
}

/// Why a sequence has been where it is for too long, if it has.
fn overdue(
    config: &SchedulerConfig,
    now: Instant,
    sequence: &mut Sequence,
    servable: bool,
) -> Option<GatewayError> {
    if sequence.spec.deadline.is_some_and(|deadline| deadline <= now) {
        return Some(GatewayError::Deadline);
    }
    let retry_after = Duration::from_secs(1);
    match &mut sequence.place {
        Place::Running { .. } => None,
        Place::Parked { since } => {
            let stalled = now.saturating_duration_since(*since);
            let stalled_ms = stalled.as_millis() as u64;
            (stalled >= config.slow_client).then_some(GatewayError::SlowClient { stalled_ms })
        }
        Place::Waiting { since, no_worker_since } => {
            if servable {
                *no_worker_since = None;
                let waited = now.saturating_duration_since(*since);
                return (waited >= config.max_queue_wait)
                    .then_some(GatewayError::Overloaded { retry_after });
            }
            let alone = now.saturating_duration_since(*no_worker_since.get_or_insert(now));
            if alone < config.worker_wait {
                return None;
            }
            let lost = sequence.losses > 0;
            Some(if lost {
                GatewayError::WorkerLost
            } else {
                GatewayError::NoWorker { retry_after }
            })
        }
    }
}
