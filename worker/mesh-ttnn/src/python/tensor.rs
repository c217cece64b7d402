//! Handles of tensors: on the chips and on the host.

use std::fmt;
use std::sync::Arc;

use pyo3::prelude::*;

use crate::spec::Shape;

/// A tensor on the chips. A clone is another handle of the same memory, which
/// is freed when the last one goes, at the latest with the next operation.
#[derive(Clone)]
pub struct Tensor(Arc<Py<PyAny>>);

/// A tensor on the host, packed for the chips.
pub struct HostTensor(pub(super) Py<PyAny>);

impl Tensor {
    pub(super) fn new(object: Bound<'_, PyAny>) -> Self {
        Self(Arc::new(object.unbind()))
    }

    pub(super) fn of<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.0.bind(py)
    }

    /// Its axes, with ones before them up to four.
    pub(super) fn shape(&self, py: Python<'_>) -> PyResult<Shape> {
        let axes: Vec<usize> = self
            .of(py)
            .getattr(pyo3::intern!(py, "shape"))?
            .try_iter()?
            .map(|axis| axis?.extract())
            .collect::<PyResult<_>>()?;
        let mut shape = [1; 4];
        let skipped = axes.len().saturating_sub(shape.len());
        let axes = &axes[skipped..];
        shape[4 - axes.len()..].copy_from_slice(axes);
        Ok(shape)
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tensor").finish_non_exhaustive()
    }
}

impl fmt::Debug for HostTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostTensor").finish_non_exhaustive()
    }
}
