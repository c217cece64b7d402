//! A device that lives on one thread of its own, and a watch over it.
//!
//! What must be loaded, stepped and closed by one thread (all of Python is)
//! stays on that thread; the engine's thread hands it one step at a time and
//! waits for the answer with a bound. A device that does not answer in time is
//! never asked again: its thread cannot be ended, only the process can.
//!
//! A step of a kind that has not been seen may have to be compiled first, which
//! takes minutes, and has a bound of its own.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use mesh::{Choice, MeshError, MeshStatus, StepBatch, StepOutput};

use crate::engine::Forward;
use crate::load_stage::LoadStage;

/// How long a device may take to close itself at the end.
const FAREWELL: Duration = Duration::from_secs(20);
/// Reports of a load that wait to be read.
const REPORTS_UNDER_WAY: usize = 16;

/// How long the device may take for a step before it counts as hung.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepBounds {
    /// For a step of a kind that has been run before.
    pub known: Duration,
    /// For the first of its kind, which may be compiled.
    pub first: Duration,
}

/// A loaded model on its own thread, as the engine's thread sees it.
#[derive(Debug)]
pub struct OwnerThread {
    /// None once the device is not to be asked any more.
    steps: Option<SyncSender<Step>>,
    answers: Receiver<Answer>,
    thread: Option<JoinHandle<()>>,
    bounds: StepBounds,
    seen: HashSet<StepKind>,
    /// How long the device had been waited for when it was given up.
    hung: Option<Duration>,
    vocab_size: usize,
    status: MeshStatus,
}

/// A step on its way to the device; the memory of `out` comes back.
#[derive(Debug)]
struct Step {
    batch: StepBatch,
    out: StepOutput,
}

struct Answer {
    out: StepOutput,
    status: MeshStatus,
    /// The outer error is a panic.
    result: std::thread::Result<Result<(), MeshError>>,
}

/// What a load has to say.
enum Report<T, E> {
    Stage(LoadStage),
    Ended(std::thread::Result<Result<Loaded<T>, E>>),
}

struct Loaded<T> {
    vocab_size: usize,
    status: MeshStatus,
    rest: T,
}

/// What distinguishes steps that are compiled apart, and more: a kind too many
/// only makes the device be waited for longer once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct StepKind {
    is_decode: bool,
    /// Tokens of a prefill, up to a power of two or a multiple of a large one.
    rows: usize,
    /// Zero, or how round the position is at which the prefill begins.
    alignment: u32,
    ending: Ending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Ending {
    Nothing,
    OneRow,
    Rows,
    Greedy,
    Drawn,
}

impl OwnerThread {
    /// Starts the thread, which loads the model by `load` and then waits for
    /// steps. Blocks until it is loaded; `progress` is called meanwhile, on the
    /// calling thread. Beside the model `load` returns whatever else its caller
    /// wants to know.
    ///
    /// # Errors
    /// The load's own; or [`std::io::Error`], as `E`, when there is no thread.
    ///
    /// # Panics
    /// With the load's own panic, if it has one.
    pub fn spawn<F, T, E>(
        bounds: StepBounds,
        load: impl FnOnce(&mut dyn FnMut(LoadStage)) -> Result<(F, T), E> + Send + 'static,
        progress: &mut dyn FnMut(LoadStage),
    ) -> Result<(Self, T), E>
    where
        F: Forward,
        T: Send + 'static,
        E: From<std::io::Error> + Send + 'static,
    {
        let (steps, asked) = sync_channel(1);
        let (answer, answers) = sync_channel(1);
        let (report, reports) = sync_channel(REPORTS_UNDER_WAY);
        let run = move || own(load, &report, &asked, &answer);
        let thread = std::thread::Builder::new().name("device".to_owned()).spawn(run)?;
        let ended = loop {
            match reports.recv() {
                Ok(Report::Stage(stage)) => progress(stage),
                Ok(Report::Ended(ended)) => break ended,
                Err(_) => return Err(ended_early().into()),
            }
        };
        let Loaded { vocab_size, status, rest } = match ended {
            Ok(loaded) => loaded?,
            Err(panic) => resume_unwind(panic),
        };
        let owner = Self {
            steps: Some(steps),
            answers,
            thread: Some(thread),
            bounds,
            seen: HashSet::new(),
            hung: None,
            vocab_size,
            status,
        };
        Ok((owner, rest))
    }

    /// Waits for the answer to the step that was asked for.
    fn wait(&mut self, bound: Duration) -> Result<Answer, MeshError> {
        match self.answers.recv_timeout(bound) {
            Ok(answer) => Ok(answer),
            Err(RecvTimeoutError::Timeout) => {
                self.hung = Some(bound);
                self.steps = None;
                Err(MeshError::Hung { waited: bound })
            }
            Err(RecvTimeoutError::Disconnected) => {
                self.steps = None;
                Err(MeshError::Device(ended_early().to_string()))
            }
        }
    }
}

fn ended_early() -> std::io::Error {
    std::io::Error::other("the device's thread has ended")
}

impl Forward for OwnerThread {
    /// A panic of the device's thread is passed on as one: the engine narrows
    /// it down to the sequence that causes it.
    fn forward(&mut self, batch: &StepBatch, out: &mut StepOutput) -> Result<(), MeshError> {
        if let Some(waited) = self.hung {
            return Err(MeshError::Hung { waited });
        }
        let kind = StepKind::of(batch);
        let bound = if self.seen.contains(&kind) { self.bounds.known } else { self.bounds.first };
        let step = Step { batch: batch.clone(), out: std::mem::take(out) };
        let gone = || MeshError::Device(ended_early().to_string());
        self.steps.as_ref().ok_or_else(gone)?.send(step).map_err(|_| gone())?;
        let answer = self.wait(bound)?;
        *out = answer.out;
        self.status = answer.status;
        match answer.result {
            Ok(Ok(())) => {
                self.seen.insert(kind);
                Ok(())
            }
            Ok(Err(error)) => Err(error),
            Err(panic) => resume_unwind(panic),
        }
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn mesh_status(&self) -> MeshStatus {
        self.status
    }
}

impl Drop for OwnerThread {
    /// Lets the thread close the device, and waits for that, but not for ever.
    fn drop(&mut self) {
        self.steps = None;
        let Some(thread) = self.thread.take().filter(|_| self.hung.is_none()) else {
            tracing::warn!("the device does not answer, and is left to the end of the process");
            return;
        };
        // It answers nothing any more: the channel closes when the thread ends.
        match self.answers.recv_timeout(FAREWELL) {
            Err(RecvTimeoutError::Disconnected) => {
                // Its panics were caught.
                let _ = thread.join();
            }
            _ => tracing::warn!(waited = ?FAREWELL, "the device has not closed itself"),
        }
    }
}

/// The thread: loads, steps until nobody asks any more, closes.
fn own<F: Forward, T, E>(
    load: impl FnOnce(&mut dyn FnMut(LoadStage)) -> Result<(F, T), E>,
    report: &SyncSender<Report<T, E>>,
    asked: &Receiver<Step>,
    answer: &SyncSender<Answer>,
) {
    // Whoever waited for the load may have gone; then nobody asks either.
    let loaded = catch_unwind(AssertUnwindSafe(|| {
        load(&mut |stage| {
            let _ = report.send(Report::Stage(stage));
        })
    }));
    let (mut forward, ended) = match loaded {
        Ok(Ok((forward, rest))) => {
            let (vocab_size, status) = (forward.vocab_size(), forward.mesh_status());
            (Some(forward), Ok(Ok(Loaded { vocab_size, status, rest })))
        }
        Ok(Err(error)) => (None, Ok(Err(error))),
        Err(panic) => (None, Err(panic)),
    };
    let _ = report.send(Report::Ended(ended));
    let Some(forward) = &mut forward else { return };
    while let Ok(Step { batch, mut out }) = asked.recv() {
        let result = catch_unwind(AssertUnwindSafe(|| forward.forward(&batch, &mut out)));
        let status = forward.mesh_status();
        if answer.send(Answer { out, status, result }).is_err() {
            return;
        }
    }
}

impl StepKind {
    /// Lengths beyond this are compiled by multiples of it.
    const LONG: usize = 2048;
    /// Rounder positions are no rounder to a device.
    const MAX_ALIGNMENT: u32 = 8;

    fn of(batch: &StepBatch) -> Self {
        let is_decode = batch.is_decode();
        let (rows, alignment) = match batch.sequences.as_slice() {
            _ if is_decode => (0, 0),
            [] => (0, 0),
            [first, ..] => {
                let tokens = batch.num_tokens();
                let rows = match tokens {
                    0..=Self::LONG => tokens.next_power_of_two(),
                    _ => tokens.next_multiple_of(Self::LONG),
                };
                let alignment = match first.first_position {
                    0 => 0,
                    position => 1 + position.trailing_zeros().min(Self::MAX_ALIGNMENT),
                };
                (rows, alignment)
            }
        };
        Self { is_decode, rows, alignment, ending: Ending::of(batch) }
    }
}

impl Ending {
    fn of(batch: &StepBatch) -> Self {
        let drawn = |choice: &Choice| matches!(choice, Choice::Sampled { .. });
        match (&batch.choices, batch.logit_rows.len()) {
            (_, 0) => Self::Nothing,
            (Some(choices), _) if choices.iter().any(drawn) => Self::Drawn,
            (Some(_), _) => Self::Greedy,
            (None, 1) => Self::OneRow,
            (None, _) if batch.is_decode() => Self::OneRow,
            (None, _) => Self::Rows,
        }
    }
}

#[cfg(test)]
mod tests;
