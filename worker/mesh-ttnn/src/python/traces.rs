//! Recorded commands.

use mesh::MeshError;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use super::interpreter::keywords;
use super::{TtnnOps, open_device};
use crate::ops::{Ops, Result, TraceId};

/// The only command queue.
const QUEUE: (&str, usize) = ("cq_id", 0);

impl TtnnOps {
    /// Fails on devices that cannot record: the package would end the process.
    fn check_can_trace(&self, operation: &str) -> Result<()> {
        if self.can_trace() {
            return Ok(());
        }
        Err(MeshError::Device(format!("ttnn.{operation}: mock devices record no commands")))
    }

    /// Starts recording.
    pub(super) fn record(&mut self) -> Result<TraceId> {
        const PATH: &str = "begin_trace_capture";
        self.check_can_trace(PATH)?;
        self.attached(PATH, |ops, py| {
            let device = open_device(&ops.device, py)?.clone();
            let keywords = keywords(py, [QUEUE])?;
            let trace = ops.function(py, PATH)?.call((device,), Some(&keywords))?;
            let id = ops.next_trace;
            ops.next_trace += 1;
            ops.traces.insert(id, trace.unbind());
            Ok(TraceId(id))
        })
    }

    /// Does `path` to what was recorded.
    pub(super) fn with_trace(
        &mut self,
        path: &'static str,
        TraceId(id): TraceId,
        options: &[(&'static str, bool)],
    ) -> Result<()> {
        self.check_can_trace(path)?;
        self.attached(path, |ops, py| {
            let unknown = || PyRuntimeError::new_err(format!("no trace {id}"));
            let trace = ops.traces.get(&id).ok_or_else(unknown)?.clone_ref(py);
            let device = open_device(&ops.device, py)?.clone();
            let function = ops.function(py, path)?;
            if path == "release_trace" {
                function.call1((device, trace))?;
                ops.traces.remove(&id);
                return Ok(());
            }
            let keywords = keywords(py, [QUEUE])?;
            for (name, value) in options {
                keywords.set_item(name, value)?;
            }
            function.call((device, trace), Some(&keywords)).map(drop)
        })
    }
}
