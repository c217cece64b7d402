//! A model in this process, stepped by hand: what `demo` and `eval` share.
//!
//! No gateway, no engine: these tools measure the model itself, so they make
//! the step batches of its forward pass on their own. The KV cache is paged as
//! in service, with block tables that are shuffled on purpose, so that nothing
//! can rely on neighbouring blocks. Read [`open`] first, then [`Driver`].

mod blocks;
mod open;

use anyhow::Context as _;
use mesh::{SequenceSlice, StepBatch, StepOutput};
use worker::engine::Forward;

pub(crate) use self::blocks::BlockTables;
pub(crate) use self::open::{Loaded, Opened, Sizes};

/// Rows of logits in one step while a whole text is scored: bounds their memory.
const MAX_LOGIT_ROWS: usize = 64;

/// The forward pass and how large its steps may be.
pub(crate) struct Driver {
    forward: Box<dyn Forward>,
    /// Most tokens in one step.
    max_step_tokens: usize,
    /// `[rows wanted, vocab_size]` of the last step.
    out: StepOutput,
}

/// One user's place in the KV cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sequence {
    /// In position order; long enough for all that the sequence will hold.
    block_table: Vec<u32>,
    /// Positions written.
    len: usize,
}

impl Driver {
    /// Steps `forward` with at most so many tokens at once.
    pub(crate) fn new(forward: Box<dyn Forward>, max_step_tokens: usize) -> Self {
        Self { forward, max_step_tokens: max_step_tokens.max(1), out: StepOutput::default() }
    }

    /// Logits in a row.
    pub(crate) fn vocab_size(&self) -> usize {
        self.forward.vocab_size()
    }

    /// Computes a prompt in chunks and returns the logits after its last token,
    /// `[vocab_size]`.
    ///
    /// # Errors
    /// When the mesh fails.
    ///
    /// # Panics
    /// When there are no ids, or more than the sequence has blocks for.
    pub(crate) fn prefill(
        &mut self,
        sequence: &mut Sequence,
        ids: &[u32],
    ) -> anyhow::Result<&mut [f32]> {
        let mut chunks = ids.chunks(self.max_step_tokens).peekable();
        while let Some(chunk) = chunks.next() {
            let wanted = if chunks.peek().is_none() { chunk.len() - 1..chunk.len() } else { 0..0 };
            self.step(std::slice::from_mut(sequence), &[chunk], wanted)?;
        }
        Ok(&mut self.out.logits)
    }

    /// Computes a text in chunks and gives `rows` the logits after every token,
    /// `[tokens of the chunk, vocab_size]`, with the position of the first.
    ///
    /// # Errors
    /// When the mesh fails, or from `rows`.
    ///
    /// # Panics
    /// As [`Driver::prefill`].
    pub(crate) fn prefill_scored(
        &mut self,
        sequence: &mut Sequence,
        ids: &[u32],
        rows: &mut dyn FnMut(usize, &[f32]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for chunk in ids.chunks(self.max_step_tokens.min(MAX_LOGIT_ROWS)) {
            let first_position = sequence.len;
            self.step(std::slice::from_mut(sequence), &[chunk], 0..chunk.len())?;
            rows(first_position, &self.out.logits)?;
        }
        Ok(())
    }

    /// Feeds each sequence its next token and returns the logits after them,
    /// `[sequences, vocab_size]`.
    ///
    /// # Errors
    /// When the mesh fails.
    ///
    /// # Panics
    /// When there is not one token a sequence, or a sequence has no block for it.
    pub(crate) fn decode(
        &mut self,
        sequences: &mut [Sequence],
        tokens: &[u32],
    ) -> anyhow::Result<&mut [f32]> {
        assert_eq!(sequences.len(), tokens.len(), "one token a sequence");
        let pieces: Vec<&[u32]> = tokens.iter().map(std::slice::from_ref).collect();
        self.step(sequences, &pieces, 0..tokens.len())?;
        Ok(&mut self.out.logits)
    }

    /// One step: `pieces[i]` are the next tokens of `sequences[i]`, `wanted` the
    /// rows of the step whose logits are read.
    fn step(
        &mut self,
        sequences: &mut [Sequence],
        pieces: &[&[u32]],
        wanted: std::ops::Range<usize>,
    ) -> anyhow::Result<()> {
        let mut batch = StepBatch { logit_rows: wanted.collect(), ..StepBatch::default() };
        for (sequence, piece) in sequences.iter_mut().zip(pieces) {
            batch.sequences.push(SequenceSlice {
                first_row: batch.token_ids.len(),
                num_tokens: piece.len(),
                first_position: sequence.len,
                block_table: sequence.block_table.clone(),
            });
            batch.token_ids.extend_from_slice(piece);
            sequence.len += piece.len();
        }
        self.forward.forward(&batch, &mut self.out).context("the mesh failed")
    }
}

#[cfg(test)]
pub(crate) mod tests;
