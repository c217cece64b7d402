//! Teacher forcing: a text's own tokens through a model, and the logits after
//! each.

use crate::driver::{Loaded, Opened, Sizes};

/// Which tokens of a text are fed, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// Tokens that are prefilled.
    pub(super) prefill: usize,
    /// Tokens that are then fed one by one.
    pub(super) decode: usize,
}

impl Span {
    /// Tokens in all.
    pub(super) fn len(self) -> usize {
        self.prefill + self.decode
    }

    /// What the KV cache must hold.
    pub(super) fn sizes(self) -> Sizes {
        Sizes { num_sequences: 1, max_len: self.len(), block_size: None, num_blocks: None }
    }
}

/// Loads a model for one pass over a span.
///
/// # Errors
/// When it cannot be loaded.
pub(super) fn load(opened: &Opened, span: Span) -> anyhow::Result<Loaded> {
    opened.load(&span.sizes())
}

/// Feeds the span's tokens, and gives `rows` each position and the logits after
/// it, in order.
///
/// # Errors
/// When the mesh fails, or from `rows`.
///
/// # Panics
/// When there are fewer tokens than the span has.
pub(super) fn run(
    loaded: &mut Loaded,
    tokens: &[u32],
    span: Span,
    rows: &mut dyn FnMut(usize, &[f32]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut sequences = loaded.tables.deal(1, span.len(), 1)?;
    let driver = &mut loaded.driver;
    let vocab_size = driver.vocab_size();
    let (prefill, decode) = tokens[..span.len()].split_at(span.prefill);
    driver.prefill_scored(&mut sequences[0], prefill, &mut |first, logits| {
        for (row, logits) in logits.chunks(vocab_size).enumerate() {
            rows(first + row, logits)?;
        }
        Ok(())
    })?;
    for (step, &token) in decode.iter().enumerate() {
        let logits = driver.decode(&mut sequences, &[token])?;
        rows(span.prefill + step, logits)?;
    }
    Ok(())
}
