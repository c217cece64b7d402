//! Opening a mesh of chips, and closing it whatever happens.

use std::cell::Cell;
use std::path::PathBuf;

use pyo3::prelude::*;

use super::error::OpenError;
use super::interpreter::{Environment, import_ttnn, keywords, set_environment};
use super::options::OptionsCache;
use super::{TtnnOps, failure};
use crate::spec::Grid;

/// Which cores hand out work to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dispatch {
    /// Idle ethernet cores: all worker cores compute.
    Ethernet,
    /// A row of worker cores.
    Worker,
}

/// Which mesh is opened, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenOptions {
    /// 1, 2 or 8, in one row.
    pub num_chips: usize,
    /// Which cores hand out work.
    pub dispatch: Dispatch,
    /// DRAM of each chip that recorded commands may take.
    pub trace_region_bytes: usize,
    /// Folder that holds the package; None where Python finds it itself.
    pub site_packages: Option<PathBuf>,
    /// Description of a cluster: its mock devices are opened instead of cards.
    pub mock: Option<PathBuf>,
    /// Folder of compiled kernels, where `TT_METAL_CACHE` names none. None for
    /// the package's own, `~/.cache/tt-metal-cache`; for a temporary one with
    /// mock devices.
    pub kernel_cache: Option<PathBuf>,
}

impl TtnnOps {
    /// Starts Python if it is not running, imports `ttnn` and opens the mesh.
    ///
    /// # Errors
    /// [`OpenError`] says what to do.
    pub fn open(options: &OpenOptions) -> Result<Self, OpenError> {
        if ![1, 2, 8].contains(&options.num_chips) {
            return Err(OpenError::NumChips(options.num_chips));
        }
        Python::attach(|py| {
            let environment = set_environment(py, options)?;
            let ttnn = import_ttnn(py, options.site_packages.as_deref())?;
            check_chips(&ttnn, options.num_chips)?;
            let device = open_device(&ttnn, options).map_err(|error| {
                // Else the next mesh of this process cannot choose its own.
                if let Err(error) = set_fabric(&ttnn, "DISABLED") {
                    tracing::warn!(%error, "fabric of a mesh that did not open");
                }
                failure::of_opening(py, &error)
            })?;
            let ops = Self::of_device(&ttnn, device, options, environment);
            ops.map_err(|error| failure::of_opening(py, &error))
        })
    }

    /// From here on the mesh is closed when the value goes.
    fn of_device(
        ttnn: &Bound<'_, PyModule>,
        device: Bound<'_, PyAny>,
        options: &OpenOptions,
        environment: Environment,
    ) -> PyResult<Self> {
        let mut ops = Self {
            ttnn: ttnn.clone().unbind(),
            device: Some(device.clone().unbind()),
            num_chips: options.num_chips,
            grid: Grid { x: 0, y: 0 },
            num_dram_banks: 0,
            environment,
            functions: Default::default(),
            options: OptionsCache::default(),
            templates: Default::default(),
            traces: Default::default(),
            next_trace: 0,
            user_ids: None,
            counted: Cell::default(),
        };
        device.call_method0("enable_program_cache")?;
        let grid = |name: &str| -> PyResult<Grid> {
            let size = device.call_method0(name)?;
            Ok(Grid { x: size.getattr("x")?.extract()?, y: size.getattr("y")?.extract()? })
        };
        ops.grid = grid("compute_with_storage_grid_size")?;
        ops.num_dram_banks = grid("dram_grid_size")?.num_cores();
        Ok(ops)
    }

    /// Closes the mesh; operations fail from now on. Nothing happens the second
    /// time. The value's end closes it as well.
    pub fn close(&mut self) {
        let Some(device) = self.device.take() else {
            return;
        };
        self.traces.clear();
        self.options.clear();
        self.user_ids = None;
        // None when the interpreter itself is ending.
        let closed = Python::try_attach(|py| {
            let ttnn = self.ttnn.bind(py);
            ttnn.call_method1("close_mesh_device", (device,)).map(drop)
        });
        match closed {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::warn!(%error, "closing the mesh"),
            None => tracing::warn!("python ended before the mesh was closed"),
        }
    }
}

impl Drop for TtnnOps {
    fn drop(&mut self) {
        self.close();
    }
}

/// Fails where there are fewer chips than asked for.
fn check_chips(ttnn: &Bound<'_, PyModule>, wanted: usize) -> Result<(), OpenError> {
    let py = ttnn.py();
    let fail = |error: PyErr| failure::of_opening(py, &error);
    let found = ttnn
        .call_method0("get_num_devices")
        .and_then(|found| found.extract::<usize>())
        .map_err(fail)?;
    if found >= wanted {
        return Ok(());
    }
    if found == 0 {
        return Err(OpenError::NoCard);
    }
    let cluster = ttnn
        .getattr("cluster")
        .and_then(|cluster| cluster.call_method0("get_cluster_type"))
        .map_err(fail)?
        .to_string();
    Err(OpenError::TooFewChips { wanted, found, cluster: cluster.replace("ClusterType.", "") })
}

/// How chips talk to each other. Closing a mesh resets it.
fn set_fabric(ttnn: &Bound<'_, PyModule>, name: &str) -> PyResult<()> {
    let config = ttnn.getattr("FabricConfig")?.getattr(name)?;
    ttnn.call_method1("set_fabric_config", (config,)).map(drop)
}

fn open_device<'py>(
    ttnn: &Bound<'py, PyModule>,
    options: &OpenOptions,
) -> PyResult<Bound<'py, PyAny>> {
    match options.num_chips {
        1 => {}
        2 => set_fabric(ttnn, "FABRIC_1D")?,
        _ => set_fabric(ttnn, "FABRIC_1D_RING")?,
    }
    let cores = ttnn.getattr("DispatchCoreType")?.getattr(match options.dispatch {
        Dispatch::Ethernet => "ETH",
        Dispatch::Worker => "WORKER",
    })?;
    let arguments = keywords(
        ttnn.py(),
        [("trace_region_size", options.trace_region_bytes), ("num_command_queues", 1)],
    )?;
    let dispatch = ttnn.call_method1("DispatchCoreConfig", (cores,))?;
    arguments.set_item("dispatch_core_config", dispatch)?;
    let shape = ttnn.call_method1("MeshShape", (1, options.num_chips))?;
    ttnn.getattr("open_mesh_device")?.call((shape,), Some(&arguments))
}
