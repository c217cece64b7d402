//! Who the workers are and how they are, for readiness and `/v1/models`.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::scheduler::sequence::WorkerId;

/// State of one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerState {
    /// Dialling or describing itself.
    Connecting,
    /// Takes sequences.
    Ready,
    /// Finishes what it has.
    Draining,
    /// Not there, or refused; see the reason.
    Down,
}

impl WorkerState {
    /// In lower case, for people and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Down => "down",
        }
    }
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RosterEntry {
    /// Where it is.
    pub endpoint: String,
    /// How it is.
    pub state: WorkerState,
    /// Why it is not ready.
    pub reason: String,
    /// For example `CPU`; empty until it has described itself.
    pub device: String,
    /// Most tokens of one sequence that it can finish; 0 until it has
    /// described itself.
    pub max_sequence_tokens: u64,
    /// Sequences of this gateway on it.
    pub num_running: u32,
}

/// Every worker of the list, by [`WorkerId`].
#[derive(Debug)]
pub struct Roster {
    entries: Mutex<Vec<RosterEntry>>,
}

impl Roster {
    /// All of them still to be reached.
    pub fn new(endpoints: &[String]) -> Self {
        let entry = |endpoint: &String| RosterEntry {
            endpoint: endpoint.clone(),
            state: WorkerState::Connecting,
            reason: "not reached yet".into(),
            device: String::new(),
            max_sequence_tokens: 0,
            num_running: 0,
        };
        Self { entries: Mutex::new(endpoints.iter().map(entry).collect()) }
    }

    /// All workers, in the order of the list.
    pub fn entries(&self) -> Vec<RosterEntry> {
        self.lock().clone()
    }

    /// Most tokens of one sequence that some ready worker can finish.
    pub fn max_sequence_tokens(&self) -> Option<u64> {
        let entries = self.lock();
        let ready = entries.iter().filter(|entry| entry.state == WorkerState::Ready);
        ready.map(|entry| entry.max_sequence_tokens).max()
    }

    pub(crate) fn set_state(&self, id: WorkerId, state: WorkerState, reason: impl Into<String>) {
        self.update(id, |entry| {
            entry.state = state;
            entry.reason = reason.into();
            if state == WorkerState::Down {
                entry.num_running = 0;
            }
        });
    }

    pub(crate) fn set_described(&self, id: WorkerId, device: String, max_sequence_tokens: u64) {
        self.update(id, |entry| {
            entry.device = device;
            entry.max_sequence_tokens = max_sequence_tokens;
        });
    }

    pub(crate) fn set_running(&self, id: WorkerId, num_running: u32) {
        self.update(id, |entry| entry.num_running = num_running);
    }

    fn update(&self, id: WorkerId, change: impl FnOnce(&mut RosterEntry)) {
        if let Some(entry) = self.lock().get_mut(id.0 as usize) {
            change(entry);
        }
    }

    /// A poisoned lock holds valid data: no change of an entry can panic.
    fn lock(&self) -> MutexGuard<'_, Vec<RosterEntry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
