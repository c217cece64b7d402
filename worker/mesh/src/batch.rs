//! One step's worth of sequences, as attention needs to know it.

use crate::Choice;

/// The new tokens of one sequence in this step, and where its KV lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceSlice {
    /// Rows of the step's token axis that belong to this sequence.
    pub first_row: usize,
    /// How many tokens are computed: 1 for a decode, more for a prefill chunk.
    pub num_tokens: usize,
    /// Position of the first of them; everything before it is in the cache.
    pub first_position: usize,
    /// KV blocks in position order; they cover
    /// `first_position + num_tokens` positions. Blocks named by more than one
    /// sequence are only read.
    pub block_table: Vec<u32>,
}

/// Tokens of all sequences of a step, one sequence after another.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepBatch {
    /// `[num_tokens]`
    pub token_ids: Vec<u32>,
    /// Covers every row once, in row order.
    pub sequences: Vec<SequenceSlice>,
    /// Rows whose logits are wanted, ascending.
    pub logit_rows: Vec<usize>,
    /// How the token of each of these rows is chosen, if the mesh is to choose
    /// (see [`crate::StepRules::chooses`]); else logits go to the host.
    pub choices: Option<Vec<Choice>>,
}

/// What one step gives back; its memory is used again by the next.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepOutput {
    /// `[logit_rows, vocab]`, row-major; empty where the mesh chose.
    pub logits: Vec<f32>,
    /// The chosen token of each logit row; empty where it did not.
    pub token_ids: Vec<u32>,
}

impl StepOutput {
    /// Empties it, keeping the memory.
    pub fn clear(&mut self) {
        self.logits.clear();
        self.token_ids.clear();
    }
}

impl StepBatch {
    /// Number of rows of every activation in this step.
    pub fn num_tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// True when every sequence computes exactly one token.
    pub fn is_decode(&self) -> bool {
        self.sequences.iter().all(|s| s.num_tokens == 1)
    }
}
