//! What an operation demands of its operands, and how it says that it is not met.

use std::fmt::Display;

use mesh::MeshError;

use super::tensor::TensorSpec;
use crate::ops::Result;
use crate::spec::{DataType, Layout, MemoryConfig};

/// Name of an operation, as `ttnn` has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Op(pub(super) &'static str);

impl Op {
    /// Refuses unless `met`.
    pub(super) fn needs(self, met: bool, needed: impl Display, found: impl Display) -> Result<()> {
        if met { Ok(()) } else { Err(self.refusal(needed, found)) }
    }

    /// The error of a demand that is not met.
    pub(super) fn refusal(self, needed: impl Display, found: impl Display) -> MeshError {
        MeshError::Device(format!("{} needs {needed}, found {found}", self.0))
    }

    /// Refuses another layout.
    pub(super) fn needs_layout(self, what: &str, spec: &TensorSpec, layout: Layout) -> Result<()> {
        self.needs(
            spec.layout == layout,
            format_args!("{what} in layout {layout:?}"),
            format_args!("{:?}", spec.layout),
        )
    }

    /// Refuses all other element types.
    pub(super) fn needs_dtype(
        self,
        what: &str,
        spec: &TensorSpec,
        dtypes: &[DataType],
    ) -> Result<()> {
        self.needs(
            dtypes.contains(&spec.dtype),
            format_args!("{what} as one of {dtypes:?}"),
            format_args!("{:?}", spec.dtype),
        )
    }

    /// Refuses shards.
    pub(super) fn needs_interleaved(self, what: &str, memory: MemoryConfig) -> Result<()> {
        self.needs(
            matches!(memory, MemoryConfig::Interleaved(_)),
            format_args!("{what} interleaved"),
            format_args!("{memory:?}"),
        )
    }

    /// Refuses another shape.
    pub(super) fn needs_shape(
        self,
        what: &str,
        spec: &TensorSpec,
        shape: [usize; 4],
    ) -> Result<()> {
        self.needs(
            spec.shape == shape,
            format_args!("{what} of shape {shape:?}"),
            format_args!("{:?}", spec.shape),
        )
    }
}
