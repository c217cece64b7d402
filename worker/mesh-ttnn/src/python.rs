//! The operations through the real `ttnn` package, on cards or on its own mock
//! devices.
//!
//! The package runs in this process, in an interpreter that starts with the
//! first mesh. Everything is called from one thread at a time. Operations are
//! called without the package's Python layer, and their arguments are made once
//! for each distinct value.

mod calls;
#[expect(unsafe_code, reason = "hands memory over to Python by the DLPack protocol")]
mod dlpack;
mod error;
mod failure;
mod host;
mod inspect;
mod interpreter;
mod objects;
mod open;
mod operations;
mod options;
mod tensor;
mod tensorbin;
mod traces;

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;

use mesh::MeshError;
use pyo3::call::PyCallArgs;
use pyo3::prelude::*;

pub use self::error::OpenError;
pub use self::inspect::DramUse;
pub use self::open::{Dispatch, OpenOptions};
pub use self::tensor::{HostTensor, Tensor};

use self::interpreter::Environment;
use self::objects::Objects;
use self::options::{Options, OptionsCache};
use self::tensorbin::Template;
use crate::ops::{ProgramCounts, Result};
use crate::spec::{DataType, Grid, Spread};

/// A mesh of Tenstorrent chips through `ttnn`, closed when it goes.
pub struct TtnnOps {
    ttnn: Py<PyModule>,
    /// None once it is closed.
    device: Option<Py<PyAny>>,
    num_chips: usize,
    grid: Grid,
    num_dram_banks: usize,
    environment: Environment,
    /// Functions by their names below `ttnn`.
    functions: HashMap<&'static str, Py<PyAny>>,
    options: OptionsCache,
    /// Headers of files; None where the package writes them otherwise than we know.
    templates: HashMap<(DataType, Spread), Option<Template>>,
    /// Recorded commands, by our number.
    traces: HashMap<u32, Py<PyAny>>,
    next_trace: u32,
    /// 0 to 31, for sampling: which user each core draws for.
    user_ids: Option<Tensor>,
    /// As last counted.
    counted: Cell<ProgramCounts>,
}

impl TtnnOps {
    /// Cores of a chip that compute.
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// Banks of a chip's DRAM.
    pub fn num_dram_banks(&self) -> usize {
        self.num_dram_banks
    }

    /// Whether there is no chip behind: writes are dropped, zeros are read.
    pub fn is_mock(&self) -> bool {
        self.environment.is_mock
    }

    /// The function `ttnn.<path>`, below the Python layer where there is one:
    /// that would cost a microsecond and load torch while operations are listed.
    fn function<'py>(
        &mut self,
        py: Python<'py>,
        path: &'static str,
    ) -> PyResult<Bound<'py, PyAny>> {
        if let Some(function) = self.functions.get(path) {
            return Ok(function.bind(py).clone());
        }
        let ttnn = self.ttnn.bind(py).clone().into_any();
        let decorated = path.split('.').try_fold(ttnn, |object, name| object.getattr(name))?;
        let function = decorated.getattr("function").unwrap_or(decorated);
        self.functions.insert(path, function.clone().unbind());
        Ok(function)
    }

    /// Calls `ttnn.<path>` with `operands` beside the options that are named.
    fn call_with<'py>(
        &mut self,
        py: Python<'py>,
        path: &'static str,
        arguments: impl PyCallArgs<'py>,
        options: Options,
        operands: &[(&'static str, &Bound<'py, PyAny>)],
    ) -> PyResult<Bound<'py, PyAny>> {
        let function = self.function(py, path)?;
        if options == Options::None && operands.is_empty() {
            return function.call1(arguments);
        }
        let objects = Objects { ttnn: self.ttnn.bind(py), device: open_device(&self.device, py)? };
        let mut keywords = self.options.get(objects, options)?;
        if !operands.is_empty() {
            keywords = keywords.copy()?;
            for (name, tensor) in operands {
                keywords.set_item(name, tensor)?;
            }
        }
        function.call(arguments, Some(&keywords))
    }

    /// Calls `ttnn.<path>` with `options`.
    fn call<'py>(
        &mut self,
        py: Python<'py>,
        path: &'static str,
        arguments: impl PyCallArgs<'py>,
        options: Options,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.call_with(py, path, arguments, options, &[])
    }

    /// Runs `calls` with the interpreter; exceptions are `operation`'s failure.
    fn attached<T>(
        &mut self,
        operation: &'static str,
        calls: impl FnOnce(&mut Self, Python<'_>) -> PyResult<T>,
    ) -> Result<T> {
        if self.device.is_none() {
            return Err(MeshError::Device(format!("ttnn.{operation}: the mesh is closed")));
        }
        Python::attach(|py| {
            calls(self, py).map_err(|error| failure::of_operation(py, operation, &error))
        })
    }
}

/// The mesh, unless it is closed.
fn open_device<'a, 'py>(
    device: &'a Option<Py<PyAny>>,
    py: Python<'py>,
) -> PyResult<&'a Bound<'py, PyAny>> {
    let closed = || pyo3::exceptions::PyRuntimeError::new_err("the mesh is closed");
    Ok(device.as_ref().ok_or_else(closed)?.bind(py))
}

impl fmt::Debug for TtnnOps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TtnnOps")
            .field("num_chips", &self.num_chips)
            .field("grid", &self.grid)
            .field("is_mock", &self.environment.is_mock)
            .finish_non_exhaustive()
    }
}
