//! How far a load has come, for logs, metrics and whoever asks too early.

use std::fmt;

use llama::LoadProgress;

/// What a load is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadStage {
    /// Weights go to the mesh.
    Weights(LoadProgress),
    /// Kinds of steps are run for the first time, which compiles them.
    Compiling {
        /// Steps that were run.
        done: usize,
        /// Steps to run.
        total: usize,
        /// Programs that there are for the chips.
        programs: usize,
    },
}

impl LoadStage {
    /// Of this stage, 0 to 100.
    #[must_use]
    pub fn percent(&self) -> u64 {
        let (done, total) = match *self {
            Self::Weights(LoadProgress { done_bytes, total_bytes }) => (done_bytes, total_bytes),
            Self::Compiling { done, total, .. } => (done as u64, total as u64),
        };
        done.saturating_mul(100) / total.max(1)
    }
}

impl fmt::Display for LoadStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Weights(_) => write!(f, "the model is loading, {} % are done", self.percent()),
            Self::Compiling { done, total, programs } => {
                write!(f, "the model is compiling, step {done} of {total}, {programs} programs")
            }
        }
    }
}
