//! Records of decode steps: run once to compile, once more to record, and then
//! only replayed.

use mesh::{Choice, StepBatch};

use crate::choose::Chosen;
use crate::ops::TraceId;

/// What a step ends with; each has a record of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Logits, to the host.
    Logits,
    /// The largest logits' ids.
    Greedy,
    /// Those, and drawn ids.
    Drawn,
}

/// Most records that a mesh keeps at once: one of each kind of decode step.
pub const MAX_RECORDS: usize = 3;

impl Ending {
    pub(crate) fn of(batch: &StepBatch) -> Self {
        match &batch.choices {
            None => Self::Logits,
            Some(choices) if choices.iter().all(|choice| *choice == Choice::Greedy) => Self::Greedy,
            Some(_) => Self::Drawn,
        }
    }
}

/// What a step leaves on the chips.
pub(crate) enum Left<T> {
    Logits(T),
    Chosen(Chosen<T>),
}

/// How far a kind of decode step has come.
#[derive(Default)]
pub(crate) enum Record<T> {
    #[default]
    New,
    /// It has run, so that all of it is compiled.
    Compiled,
    /// It is recorded.
    Taken { trace: TraceId, left: Left<T> },
}

/// The records of decode steps.
pub(crate) struct Records<T>([Record<T>; MAX_RECORDS]);

impl<T> Default for Records<T> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Record::New))
    }
}

impl<T> Records<T> {
    pub(crate) fn of(&mut self, ending: Ending) -> &mut Record<T> {
        &mut self.0[ending as usize]
    }
}
