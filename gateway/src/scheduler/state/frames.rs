//! What workers say, applied to the state. Their words are untrusted: what
//! contradicts the log ends that one sequence, what contradicts the contract
//! ends the stream.

use std::time::Instant;

use super::super::credit::Credit;
use super::super::sequence::{
    Delivery, Fault, Load, SequenceEnd, SequenceId, SequenceTiming, StepEntry, WorkerFinish,
    WorkerId,
};
use super::{Action, State};
use crate::error::GatewayError;
use crate::text_stream::FinishReason;

/// One frame of a worker, decoded and checked for shape.
#[derive(Clone, Debug, PartialEq)]
pub enum WorkerFrame {
    /// What it takes from now on.
    Credit(Credit),
    /// It has begun a sequence.
    Admitted {
        /// The sequence.
        key: u32,
        /// Prompt tokens found in its prefix cache.
        cached_tokens: u32,
    },
    /// Output of a step.
    Step {
        /// One per sequence with output.
        entries: Vec<StepEntry>,
        /// How busy it is, if it said.
        load: Option<Load>,
        /// Entries of given-up assignments that decoding left out.
        num_late: u64,
    },
    /// It does not take a sequence.
    Rejected {
        /// The sequence.
        key: u32,
        /// Whose fault.
        fault: Fault,
        /// For people, bounded.
        message: String,
    },
    /// It takes no more sequences.
    Draining,
    /// It is alive.
    Heartbeat(Load),
    /// Nothing of interest here.
    Other,
}

impl State {
    /// Applies one frame of the stream `epoch` of a worker.
    pub fn apply(
        &mut self,
        now: Instant,
        (id, epoch): (WorkerId, u32),
        frame: WorkerFrame,
        actions: &mut Vec<Action>,
    ) {
        let Some(worker) = self.workers.get_mut(&id).filter(|worker| worker.epoch == epoch) else {
            self.late_outputs += 1;
            return;
        };
        match frame {
            WorkerFrame::Credit(credit) => {
                if !worker.credit.update(credit) {
                    actions.push(Action::Quarantine(id, "credit does not match what was sent"));
                }
            }
            WorkerFrame::Admitted { key, cached_tokens } => {
                self.admitted(id, key, cached_tokens, actions);
            }
            WorkerFrame::Step { entries, load, num_late } => {
                worker.load = load.unwrap_or(worker.load);
                self.late_outputs += num_late;
                for entry in entries {
                    self.output(now, id, entry, actions);
                }
            }
            WorkerFrame::Rejected { key, fault, message } => {
                if fault == Fault::Capacity {
                    worker.credit.exhaust();
                }
                if let Some(sequence) = worker.running.remove(&key) {
                    self.rejected(now, sequence, fault, message, actions);
                }
            }
            WorkerFrame::Draining => worker.is_draining = true,
            WorkerFrame::Heartbeat(load) => worker.load = load,
            WorkerFrame::Other => {}
        }
    }

    fn admitted(&mut self, worker: WorkerId, key: u32, cached: u32, actions: &mut Vec<Action>) {
        let Some(&id) = self.workers[&worker].running.get(&key) else { return };
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        if !std::mem::replace(&mut sequence.was_admitted, true) {
            let cached_tokens = cached.min(sequence.spec.prompt.len() as u32);
            actions.push(Action::Deliver(id, Delivery::Admitted { cached_tokens }));
        }
    }

    fn output(
        &mut self,
        now: Instant,
        worker: WorkerId,
        entry: StepEntry,
        actions: &mut Vec<Action>,
    ) {
        let Some(&id) = self.workers[&worker].running.get(&entry.key) else {
            self.late_outputs += 1;
            return;
        };
        self.admitted(worker, entry.key, 0, actions);
        let key = entry.key;
        let finish = match self.log(id, entry, actions) {
            Ok(finish) => finish,
            Err(broken) => return self.fail(id, GatewayError::Internal(broken.into()), actions),
        };
        if let Some((finish, timing)) = finish {
            if let Some(worker) = self.workers.get_mut(&worker) {
                worker.running.remove(&key);
                if matches!(finish, WorkerFinish::Error { fault: Fault::Capacity, .. }) {
                    worker.is_draining = true;
                }
            }
            self.finish(now, id, finish, timing, actions);
        }
    }

    /// Enters an output into the sequence's log and passes it on.
    fn log(
        &mut self,
        id: SequenceId,
        entry: StepEntry,
        actions: &mut Vec<Action>,
    ) -> Result<Option<(WorkerFinish, SequenceTiming)>, &'static str> {
        let Some(sequence) = self.sequences.get_mut(&id) else { return Ok(None) };
        let StepEntry { token_ids, logprobs, first_position, mut prompt_logprobs, finish, .. } =
            entry;
        let num_tokens = sequence.generated.len() + token_ids.len();
        if num_tokens > sequence.spec.max_new_tokens as usize {
            return Err("worker generated more tokens than asked");
        }
        let expected = if sequence.spec.logprobs.is_some() { token_ids.len() } else { 0 };
        if logprobs.len() != expected {
            return Err("worker returned log-probabilities for other tokens than asked");
        }
        if !prompt_logprobs.is_empty() {
            // Entries follow position 0, which has none. After a resume the
            // worker computes the prompt again and repeats those already seen.
            let next = sequence.prompt_logprobs_seen + 1;
            let Some(repeated) = next.checked_sub(first_position) else {
                return Err("worker left out log-probabilities of the prompt");
            };
            prompt_logprobs.drain(..prompt_logprobs.len().min(repeated as usize));
            let seen = u64::from(sequence.prompt_logprobs_seen) + prompt_logprobs.len() as u64;
            if seen > u64::from(sequence.spec.num_prompt_logprobs()) {
                return Err("worker returned log-probabilities beyond the prompt");
            }
            sequence.prompt_logprobs_seen = seen as u32;
        }
        let good_end = matches!(finish, Some((WorkerFinish::Stop | WorkerFinish::Length, _)));
        let missing = sequence.prompt_logprobs_seen < sequence.spec.num_prompt_logprobs();
        if missing && (good_end || !token_ids.is_empty()) {
            return Err("worker left out log-probabilities of the prompt");
        }
        sequence.generated.extend_from_slice(&token_ids);
        if !token_ids.is_empty() || !prompt_logprobs.is_empty() {
            let output = Delivery::Output { token_ids, logprobs, prompt_logprobs };
            actions.push(Action::Deliver(id, output));
        }
        Ok(finish)
    }

    fn finish(
        &mut self,
        now: Instant,
        id: SequenceId,
        finish: WorkerFinish,
        timing: SequenceTiming,
        actions: &mut Vec<Action>,
    ) {
        let end = match finish {
            WorkerFinish::Stop => {
                // The contract: the id that ends a sequence is its last token.
                let stop_token = self.sequences.get(&id).and_then(|s| s.generated.last().copied());
                SequenceEnd { reason: FinishReason::Stop, stop_token, timing }
            }
            WorkerFinish::Length => {
                SequenceEnd { reason: FinishReason::Length, stop_token: None, timing }
            }
            WorkerFinish::Cancelled => return self.lose(now, id, actions),
            WorkerFinish::Deadline => return self.fail(id, GatewayError::Deadline, actions),
            // Not a refusal: the worker had the sequence, and is as good as gone.
            WorkerFinish::Error { fault: Fault::Capacity, .. } => {
                return self.lose(now, id, actions);
            }
            WorkerFinish::Error { fault, message } => {
                return self.rejected(now, id, fault, message, actions);
            }
        };
        if self.sequences.remove(&id).is_some() {
            actions.push(Action::Deliver(id, Delivery::Finished(end)));
        }
    }

    /// The worker has let go of the sequence, and says why.
    fn rejected(
        &mut self,
        now: Instant,
        id: SequenceId,
        fault: Fault,
        message: String,
        actions: &mut Vec<Action>,
    ) {
        let max_refusals = self.config.max_refusals;
        let retry_after = self.retry_after();
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let error = match fault {
            Fault::Capacity => {
                sequence.refusals += 1;
                if sequence.refusals < max_refusals {
                    return self.requeue(now, id, actions);
                }
                GatewayError::Overloaded { retry_after }
            }
            Fault::Request => GatewayError::InvalidValue { param: None, message },
            Fault::Deadline => GatewayError::Deadline,
            Fault::Internal => GatewayError::Internal(message),
        };
        self.fail(id, error, actions);
    }
}
