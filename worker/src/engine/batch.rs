//! From planned sequences to the rows of one step.

use mesh::{SequenceSlice, StepBatch};

use crate::generation::SequenceId;

/// What one step is to compute.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepPlan {
    /// As the mesh gets it; empty when there is nothing to do.
    pub batch: StepBatch,
    /// Beside `batch.sequences`.
    pub work: Vec<PlannedSequence>,
    /// Tokens of prefill chunks.
    pub prefill_tokens: u32,
    /// Tokens of decodes.
    pub decode_tokens: u32,
}

/// What a step computes of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedSequence {
    /// Which.
    pub id: SequenceId,
    /// Tokens computed.
    pub num_tokens: usize,
    /// Index into `batch.logit_rows` of its first.
    pub first_logit: usize,
    /// Leading rows of logits that are for prompt log-probabilities.
    pub num_prompt_logits: usize,
    /// Prompt position that the first of them predicts.
    pub first_prompt_position: usize,
    /// Whether its last row of logits is to be sampled from.
    pub samples: bool,
}

impl PlannedSequence {
    /// Rows of logits that belong to it.
    pub fn num_logits(&self) -> usize {
        self.num_prompt_logits + usize::from(self.samples)
    }
}

/// Tokens of one sequence on their way into a plan.
#[derive(Debug)]
pub(super) struct Chunk<'a> {
    pub(super) id: SequenceId,
    pub(super) tokens: &'a [u32],
    pub(super) first_position: usize,
    pub(super) block_table: &'a [u32],
    /// First position whose logits are wanted for the prompt, and one past the
    /// last; within the chunk.
    pub(super) prompt_logits: std::ops::Range<usize>,
    pub(super) samples: bool,
}

impl StepPlan {
    pub(super) fn push(&mut self, chunk: &Chunk<'_>) {
        let first_row = self.batch.token_ids.len();
        let first_logit = self.batch.logit_rows.len();
        let num_tokens = chunk.tokens.len();
        let row_of = |position: usize| first_row + position - chunk.first_position;
        self.batch.token_ids.extend_from_slice(chunk.tokens);
        self.batch.logit_rows.extend(chunk.prompt_logits.clone().map(row_of));
        if chunk.samples {
            self.batch.logit_rows.push(first_row + num_tokens - 1);
        }
        self.batch.sequences.push(SequenceSlice {
            first_row,
            num_tokens,
            first_position: chunk.first_position,
            block_table: chunk.block_table.to_vec(),
        });
        self.work.push(PlannedSequence {
            id: chunk.id,
            num_tokens,
            first_logit,
            num_prompt_logits: chunk.prompt_logits.len(),
            first_prompt_position: chunk.prompt_logits.start + 1,
            samples: chunk.samples,
        });
    }

    /// The step that computes only the sequence at `idx` of `work`.
    pub(super) fn alone(&self, idx: usize) -> StepBatch {
        let slice = &self.batch.sequences[idx];
        let work = &self.work[idx];
        let rows = slice.first_row..slice.first_row + slice.num_tokens;
        let logits = work.first_logit..work.first_logit + work.num_logits();
        StepBatch {
            token_ids: self.batch.token_ids[rows].to_vec(),
            sequences: vec![SequenceSlice { first_row: 0, ..slice.clone() }],
            logit_rows: self.batch.logit_rows[logits.clone()]
                .iter()
                .map(|row| row - slice.first_row)
                .collect(),
            choices: self.batch.choices.as_ref().map(|choices| choices[logits].to_vec()),
        }
    }

    /// True when there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.work.is_empty()
    }
}
