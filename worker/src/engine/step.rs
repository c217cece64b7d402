//! One step: forward, then sample.
//!
//! Failures are kept as small as they are: a panic while sampling or a row that
//! is not finite ends one sequence; a panic in the forward pass is narrowed down
//! by running the step's sequences one by one; only a failed device ends all.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use mesh::{MeshError, MeshStatus, StepBatch, StepOutput};

use super::batch::{PlannedSequence, StepPlan};
use super::state::{EngineState, Outcome};
use crate::generation::FinishReason;
use crate::sampler::{self, NonFinite, Scratch};

/// A loaded model, as far as the engine needs to know.
pub trait Forward: Send {
    /// Computes the batch, writes its KV, and fills `out` with the logits
    /// `[batch.logit_rows.len(), vocab_size]`, row-major, or with the tokens that
    /// `batch.choices` ask for.
    ///
    /// Computing the same batch twice must have the same effect as once.
    ///
    /// # Errors
    /// When the device can't be used any further.
    fn forward(&mut self, batch: &StepBatch, out: &mut StepOutput) -> Result<(), MeshError>;

    /// Logits in a row.
    fn vocab_size(&self) -> usize;

    /// How the mesh is doing, as of the last step.
    fn mesh_status(&self) -> MeshStatus {
        MeshStatus::default()
    }
}

impl Forward for Box<dyn Forward> {
    fn forward(&mut self, batch: &StepBatch, out: &mut StepOutput) -> Result<(), MeshError> {
        (**self).forward(batch, out)
    }

    fn vocab_size(&self) -> usize {
        (**self).vocab_size()
    }

    fn mesh_status(&self) -> MeshStatus {
        (**self).mesh_status()
    }
}

impl<M> Forward for llama::Runner<M>
where
    M: mesh::Mesh + Send,
    M::Weight: Send,
    M::Rope: Send,
    M::KvCache: Send,
{
    fn forward(&mut self, batch: &StepBatch, out: &mut StepOutput) -> Result<(), MeshError> {
        self.forward(batch, out)
    }

    fn vocab_size(&self) -> usize {
        self.config().vocab_size
    }

    fn mesh_status(&self) -> MeshStatus {
        self.mesh_status()
    }
}

/// The device can't be used any further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DeviceFailed(pub String);

/// Steps in a row in which every sequence panicked, after which the device, not
/// the sequences, is held to be at fault.
const MAX_PANICKED_STEPS: u32 = 3;

/// The model and the memory that steps reuse.
#[derive(Debug)]
pub struct Stepper<F> {
    forward: F,
    out: StepOutput,
    scratch: Scratch,
    panicked_steps: u32,
}

/// What became of the forward pass of each planned sequence.
type Panics = Vec<Option<String>>;

impl<F: Forward> Stepper<F> {
    /// Steps with this model.
    pub fn new(forward: F) -> Self {
        Self { forward, out: StepOutput::default(), scratch: Scratch::default(), panicked_steps: 0 }
    }

    /// How the mesh is doing.
    pub fn mesh_status(&self) -> MeshStatus {
        self.forward.mesh_status()
    }

    #[cfg(test)]
    pub(crate) fn forward_mut(&mut self) -> &mut F {
        &mut self.forward
    }

    /// Computes `plan` and tells `state`. Returns the time on the mesh.
    ///
    /// # Errors
    /// When the device failed; the state is as before the step.
    pub fn step(
        &mut self,
        state: &mut EngineState,
        plan: &StepPlan,
    ) -> Result<Duration, DeviceFailed> {
        let start = Instant::now();
        let panics = self.run(plan)?;
        let forward = start.elapsed();
        let vocab_size = self.forward.vocab_size();
        let mut outcomes = Vec::with_capacity(plan.work.len());
        for (work, panic) in plan.work.iter().zip(panics) {
            if let Some(message) = panic {
                outcomes.push(Outcome::Failed(FinishReason::Device(message)));
                continue;
            }
            if plan.batch.choices.is_some() {
                let chosen = work.samples.then(|| self.out.token_ids[work.first_logit]);
                outcomes.push(Outcome::chosen(chosen));
                continue;
            }
            let start = work.first_logit * vocab_size;
            let rows = &mut self.out.logits[start..start + work.num_logits() * vocab_size];
            outcomes.push(sequence_outcome(state, *work, rows, &mut self.scratch));
        }
        state.apply(plan, outcomes, Instant::now());
        Ok(forward)
    }

    /// Fills `out`; says which sequences' rows are not there.
    fn run(&mut self, plan: &StepPlan) -> Result<Panics, DeviceFailed> {
        let vocab_size = self.forward.vocab_size();
        let panics = match guarded(&mut self.forward, &plan.batch, &mut self.out)? {
            Ok(()) => vec![None; plan.work.len()],
            Err(message) if plan.work.len() == 1 => vec![Some(message)],
            Err(message) => {
                tracing::error!(message, sequences = plan.work.len(), "forward pass panicked");
                self.run_one_by_one(plan)?
            }
        };
        if panics.iter().all(Option::is_some) {
            self.panicked_steps += 1;
        } else {
            self.panicked_steps = 0;
        }
        if self.panicked_steps >= MAX_PANICKED_STEPS {
            let message = panics.into_iter().flatten().next().unwrap_or_default();
            return Err(DeviceFailed(format!("every forward pass panics: {message}")));
        }
        let num_rows = plan.batch.logit_rows.len();
        match &plan.batch.choices {
            Some(_) => self.out.token_ids.resize(num_rows, 0),
            None => self.out.logits.resize(num_rows * vocab_size, f32::NAN),
        }
        Ok(panics)
    }

    /// A row depends neither on its neighbours nor on their number, so the
    /// survivors get the same bits as they would have got together.
    fn run_one_by_one(&mut self, plan: &StepPlan) -> Result<Panics, DeviceFailed> {
        let vocab_size = self.forward.vocab_size();
        let num_rows = plan.batch.logit_rows.len();
        let mut all = match &plan.batch.choices {
            Some(_) => StepOutput { token_ids: vec![0; num_rows], ..StepOutput::default() },
            None => StepOutput {
                logits: vec![f32::NAN; num_rows * vocab_size],
                ..StepOutput::default()
            },
        };
        let mut panics = Vec::with_capacity(plan.work.len());
        for (idx, work) in plan.work.iter().enumerate() {
            let ran = guarded(&mut self.forward, &plan.alone(idx), &mut self.out)?;
            if ran.is_ok() {
                // One of the two is there.
                let StepOutput { logits, token_ids } = &self.out;
                let first = work.first_logit;
                for (to, from) in all.token_ids.iter_mut().skip(first).zip(token_ids) {
                    *to = *from;
                }
                for (to, from) in all.logits.iter_mut().skip(first * vocab_size).zip(logits) {
                    *to = *from;
                }
            }
            panics.push(ran.err());
        }
        self.out = all;
        Ok(panics)
    }
}

/// Runs the batch; the inner error is a panic's message.
fn guarded<F: Forward>(
    forward: &mut F,
    batch: &StepBatch,
    out: &mut StepOutput,
) -> Result<Result<(), String>, DeviceFailed> {
    // What a panic leaves behind in the model is scratch and KV that no one has
    // been told of; both are written anew before they are read.
    let ran = catch_unwind(AssertUnwindSafe(|| forward.forward(batch, out)));
    let (rows, vocab_size) = (batch.logit_rows.len(), forward.vocab_size());
    match ran {
        Ok(Ok(())) => match (&batch.choices, out.logits.len(), out.token_ids.as_slice()) {
            (None, logits, []) if logits == rows * vocab_size => Ok(Ok(())),
            (Some(_), 0, ids) if ids.len() == rows => {
                match ids.iter().find(|&&id| id as usize >= vocab_size) {
                    Some(id) => Err(DeviceFailed(format!("token {id} of {vocab_size} was chosen"))),
                    None => Ok(Ok(())),
                }
            }
            (_, logits, ids) => {
                let found = format!("{logits} logits and {} tokens for {rows} rows", ids.len());
                Err(DeviceFailed(found))
            }
        },
        Ok(Err(error)) => Err(DeviceFailed(error.to_string())),
        Err(panic) => Ok(Err(message_of(panic.as_ref()))),
    }
}

/// Text of a panic.
pub(super) fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic without a message".to_owned())
}

/// Samples, and reports what was asked for, from one sequence's rows.
fn sequence_outcome(
    state: &EngineState,
    work: PlannedSequence,
    rows: &mut [f32], // [work.num_logits(), vocab_size]
    scratch: &mut Scratch,
) -> Outcome {
    let sampled = catch_unwind(AssertUnwindSafe(|| computed(state, work, rows, scratch)));
    match sampled {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(NonFinite)) => Outcome::Failed(FinishReason::Numerical),
        Err(panic) => Outcome::Failed(FinishReason::Device(message_of(panic.as_ref()))),
    }
}

fn computed(
    state: &EngineState,
    work: PlannedSequence,
    rows: &mut [f32],
    scratch: &mut Scratch,
) -> Result<Outcome, NonFinite> {
    let mut prompt_logprobs = Vec::with_capacity(work.num_prompt_logits);
    let mut sampled = None;
    if work.num_logits() > 0 {
        let vocab_size = rows.len() / work.num_logits();
        let (prompt, last) = rows.split_at_mut(work.num_prompt_logits * vocab_size);
        if !prompt.is_empty() {
            let (tokens, num_top) = state.prompt_from(work.id, work.first_prompt_position);
            for (row, &token_id) in prompt.chunks_exact(vocab_size).zip(tokens) {
                sampler::check_finite(row)?;
                prompt_logprobs.push(sampler::logprobs(row, token_id, num_top));
            }
        }
        if work.samples {
            sampled = Some(sampler::sample(last, &state.sample_context(work.id), scratch)?);
        }
    }
    Ok(Outcome::Computed { prompt_logprobs, sampled })
}
