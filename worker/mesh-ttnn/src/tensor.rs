//! Activations on the chips.

use std::fmt;

use crate::spec::MemoryConfig;

/// In which of two ways a step's rows lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// One tile of 32 rows in L1, its columns cut over cores: decodes, and the
    /// last rows of a prompt.
    Tile,
    /// This many rows in DRAM: prompts.
    Rows(usize),
}

/// An activation: `[1, 1, rows, channels]` on every chip.
pub struct Tensor<T> {
    /// One tensor, or the gate and up halves of a projection.
    pub(crate) parts: Vec<T>,
    pub(crate) form: Form,
    /// Where each part lies.
    pub(crate) memory: MemoryConfig,
    /// The row of the step that the first row is of.
    pub(crate) first_row: usize,
}

impl<T: Clone> Tensor<T> {
    pub(crate) fn new(value: T, form: Form, memory: MemoryConfig) -> Self {
        Self { parts: vec![value], form, memory, first_row: 0 }
    }

    /// Of the same rows as `self`.
    pub(crate) fn beside(&self, value: T, memory: MemoryConfig) -> Self {
        Self { first_row: self.first_row, ..Self::new(value, self.form, memory) }
    }

    /// The only part.
    ///
    /// # Panics
    /// When there are two: the graph used a gate as something else.
    pub(crate) fn whole(&self) -> &T {
        let [value] = self.parts.as_slice() else { panic!("a gate and up projection is no value") };
        value
    }
}

impl<T> fmt::Debug for Tensor<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tensor")
            .field("form", &self.form)
            .field("memory", &self.memory)
            .finish_non_exhaustive()
    }
}
