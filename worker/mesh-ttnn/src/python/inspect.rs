//! What a mesh tells about itself: operations that would run, memory, kernels.

use std::fs;
use std::path::{Path, PathBuf};

use pyo3::prelude::*;

use super::{TtnnOps, open_device};
use crate::ops::Result;

/// Steps of a call that run nothing on a chip.
const NOT_ON_CHIPS: [&str; 3] =
    ["Tensor::reshape", "Tensor::deallocate", "tt::tt_metal::create_device_tensor"];

/// Memory of each bank of a chip's DRAM, as the allocator sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DramUse {
    /// Banks of a chip.
    pub num_banks: usize,
    /// All of a bank that tensors may take.
    pub total_bytes: usize,
    /// Not taken.
    pub free_bytes: usize,
    /// In one piece.
    pub largest_free_bytes: usize,
}

impl TtnnOps {
    /// The operations that `calls` would run on the chips, in order, without
    /// running them: tensors that they make hold nothing.
    ///
    /// # Errors
    /// What `calls` fails with.
    pub fn capture(&mut self, calls: impl FnOnce(&mut Self) -> Result<()>) -> Result<Vec<String>> {
        self.begin_capture()?;
        let called = calls(self);
        let operations = self.end_capture()?;
        called.map(|()| operations)
    }

    /// From here to [`TtnnOps::end_capture`] operations are listed, not run.
    ///
    /// # Errors
    /// [`mesh::MeshError::Device`].
    pub fn begin_capture(&mut self) -> Result<()> {
        self.attached("begin_graph_capture", |ops, py| {
            let graph = graph(ops.ttnn.bind(py))?;
            let run_mode = graph.getattr("RunMode")?.getattr("NO_DISPATCH")?;
            graph.call_method1("begin_graph_capture", (run_mode,)).map(drop)
        })
    }

    /// The operations since [`TtnnOps::begin_capture`], in order.
    ///
    /// # Errors
    /// [`mesh::MeshError::Device`].
    pub fn end_capture(&mut self) -> Result<Vec<String>> {
        self.attached("end_graph_capture", |ops, py| {
            let nodes = graph(ops.ttnn.bind(py))?.call_method0("end_graph_capture")?;
            let mut operations = Vec::new();
            for node in nodes.try_iter()? {
                let node = node?;
                let is_start = node.get_item("node_type")?.eq("function_start")?;
                if is_start {
                    let name: String = node.get_item("params")?.get_item("name")?.extract()?;
                    operations.push(name);
                }
            }
            operations.retain(|name| !NOT_ON_CHIPS.contains(&name.as_str()));
            Ok(operations)
        })
    }

    /// How much of a chip's DRAM is taken.
    ///
    /// # Errors
    /// [`mesh::MeshError::Device`].
    pub fn dram_use(&mut self) -> Result<DramUse> {
        self.attached("get_memory_view", |ops, py| {
            let ttnn = ops.ttnn.bind(py);
            let dram = ttnn.getattr("BufferType")?.getattr("DRAM")?;
            let device = open_device(&ops.device, py)?;
            let view = ttnn.call_method1("get_memory_view", (device, dram))?;
            let bytes = |name: &str| view.getattr(name)?.extract();
            Ok(DramUse {
                num_banks: bytes("num_banks")?,
                total_bytes: bytes("total_bytes_per_bank")?,
                free_bytes: bytes("total_bytes_free_per_bank")?,
                largest_free_bytes: bytes("largest_contiguous_bytes_free_per_bank")?,
            })
        })
    }

    /// Kernels in the cache on disk, of every set of build options.
    pub(super) fn num_kernels(&self) -> usize {
        let builds = folders(Path::new(&self.environment.kernel_cache));
        let names = builds.iter().flat_map(|build| folders(&build.join("kernels")));
        names.map(|name| folders(&name).len()).sum()
    }
}

fn graph<'py>(ttnn: &Bound<'py, PyModule>) -> PyResult<Bound<'py, PyAny>> {
    ttnn.getattr("_ttnn")?.getattr("graph")
}

/// Folders in a folder; none where it cannot be read.
fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}
