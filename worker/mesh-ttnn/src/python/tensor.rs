//! Handles of tensors: on the chips and on the host.

use std::fmt;
use std::sync::{Arc, OnceLock};

use pyo3::prelude::*;

use crate::spec::Shape;

/// A tensor on the chips. A clone is another handle of the same memory, which
/// is freed when the last one goes, at the latest with the next operation.
#[derive(Clone)]
pub struct Tensor(Arc<Handle>);

struct Handle {
    object: Py<PyAny>,
    /// The same memory with one and with two axes, for the operations that
    /// insist: made when first asked for.
    views: [OnceLock<Py<PyAny>>; 2],
}

/// A tensor on the host, packed for the chips.
pub struct HostTensor(pub(super) Py<PyAny>);

impl Tensor {
    pub(super) fn new(object: Bound<'_, PyAny>) -> Self {
        Self(Arc::new(Handle {
            object: object.unbind(),
            views: [OnceLock::new(), OnceLock::new()],
        }))
    }

    pub(super) fn of<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.0.object.bind(py)
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

    /// The same memory as a vector, by `reshape`.
    pub(super) fn as_vector<'py>(
        &self,
        py: Python<'py>,
        reshape: &Bound<'py, PyAny>,
    ) -> PyResult<&Bound<'py, PyAny>> {
        self.view(py, reshape, 1)
    }

    /// The same memory as rows and columns, by `reshape`.
    pub(super) fn as_rows<'py>(
        &self,
        py: Python<'py>,
        reshape: &Bound<'py, PyAny>,
    ) -> PyResult<&Bound<'py, PyAny>> {
        self.view(py, reshape, 2)
    }

    fn view<'py>(
        &self,
        py: Python<'py>,
        reshape: &Bound<'py, PyAny>,
        rank: usize,
    ) -> PyResult<&Bound<'py, PyAny>> {
        let cell = &self.0.views[rank - 1];
        if let Some(view) = cell.get() {
            return Ok(view.bind(py));
        }
        let [a, b, rows, columns] = self.shape(py)?;
        let view = if rank == 1 {
            reshape.call1((self.of(py), [a * b * rows * columns]))
        } else {
            reshape.call1((self.of(py), [a * b * rows, columns]))
        };
        let view = view?.unbind();
        Ok(cell.get_or_init(|| view).bind(py))
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
