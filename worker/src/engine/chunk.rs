//! How much of a prompt goes into one step.

use std::ops::Range;

use mesh::StepRules;

use super::sequence::Sequence;

/// What a chunk has to keep within.
#[derive(Debug)]
pub(super) struct ChunkLimits<'a> {
    /// Tokens that are left of the step.
    pub(super) max_tokens: usize,
    /// Rows of logits that are left of the step.
    pub(super) max_logit_rows: usize,
    /// The mesh's own.
    pub(super) rules: &'a StepRules,
}

/// A sequence's next chunk; none when it has no tokens.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ChunkSize {
    pub(super) num_tokens: usize,
    /// Rows of logits that it takes.
    pub(super) logit_rows: usize,
}

/// The longest chunk within the limits. One that does not end its context ends
/// where the next may begin.
pub(super) fn within(sequence: &Sequence, limits: &ChunkLimits<'_>) -> ChunkSize {
    let rules = limits.rules;
    let start = sequence.num_computed;
    debug_assert_eq!(start % rules.prefill_multiple, 0, "a chunk begins at a multiple");
    let mut num_tokens = sequence.num_uncomputed().min(limits.max_tokens);
    if let Some(most) = rules.max_prefill_chunk {
        num_tokens = num_tokens.min(most);
    }
    if let Some(first) = sequence.first_prompt_logit() {
        num_tokens = num_tokens.min(first.max(start) + limits.max_logit_rows - start);
    }
    let rows = |num_tokens: usize| {
        let samples = num_tokens == sequence.num_uncomputed() && sequence.wants_token();
        prompt_logits(sequence, start + num_tokens).len() + usize::from(samples)
    };
    // The last token's own row may be the one too many.
    if num_tokens > 0 && rows(num_tokens) > limits.max_logit_rows {
        num_tokens -= 1;
    }
    if num_tokens < sequence.num_uncomputed() {
        num_tokens -= num_tokens % rules.prefill_multiple;
    }
    if num_tokens == 0 {
        return ChunkSize::default();
    }
    ChunkSize { num_tokens, logit_rows: rows(num_tokens) }
}

/// Positions of a chunk ending before `end` whose logits are wanted for the
/// prompt; empty ranges start at the prompt's first.
pub(super) fn prompt_logits(sequence: &Sequence, end: usize) -> Range<usize> {
    let Some(first) = sequence.first_prompt_logit() else { return 0..0 };
    let first = first.max(sequence.num_computed);
    let end = end.min(sequence.generation.prompt_token_ids.len() - 1);
    if first < end { first..end } else { 0..0 }
}
