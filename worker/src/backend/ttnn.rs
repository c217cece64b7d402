//! Tenstorrent cards, or their mock devices, through the Python package `ttnn`.
//!
//! Python, and with it the device, lives on a thread of its own.

use std::path::{Path, PathBuf};

use common::model::ModelFiles;
use llama::{Checkpoint, Device, Dispatch, LlamaConfig, LoadOptions, Runner};
use mesh::{MeshDescription, MeshError, MeshStatus, StepBatch, StepOutput, WeightCacheUse};
use mesh_ttnn::board::{self, BoardLock};
use mesh_ttnn::layout::{Chip, prefill_lengths};
use mesh_ttnn::python::{self, OpenOptions, TtnnOps};
use mesh_ttnn::{MAX_RECORDS, TtnnMesh, TtnnOptions, WeightCacheDir};

use super::opened::Opened;
use super::{LoadStage, Loaded, warm_up};
use crate::config::{MeshChoice, WorkerConfig};
use crate::engine::Forward;
use crate::error::WorkerError;
use crate::identity::Limits;
use crate::owner_thread::OwnerThread;
use crate::sizing::{self, HostMemory};
use crate::weight_cache;

/// DRAM of a chip for recorded steps. The published size is that of one; a plan
/// leaves more of the banks unused than the others take.
const TRACE_REGION_BYTES: usize = MAX_RECORDS * Device::TRACE_REGION_BYTES as usize;

/// The device, and the lock that keeps others off it until it is closed.
struct Card {
    owner: OwnerThread,
    _lock: Option<BoardLock>,
}

/// What a loaded model says of itself before only its thread can ask it.
type Told = (MeshDescription, WeightCacheUse);

/// Everything that the device's thread loads the model from.
struct Work {
    open: OpenOptions,
    mesh: TtnnOptions,
    checkpoint: Checkpoint,
    options: LoadOptions,
}

/// Loads the model onto a card, and runs every kind of step once.
pub(super) fn load(
    config: &WorkerConfig,
    mesh: MeshChoice,
    files: &ModelFiles,
    progress: &mut dyn FnMut(LoadStage),
) -> Result<Loaded, WorkerError> {
    let MeshChoice::Card { device, dispatch } = mesh else {
        unreachable!("the caller has looked at the mesh");
    };
    // The model lies on the card: this machine's memory does not hold it.
    let host = HostMemory { available: None, weights_are_mapped: true };
    let model_config = LlamaConfig::from_path(files.path())?;
    sizing::limits(config, &model_config, mesh, host)?;
    let lock = lock(config, device)?;
    let opened = Opened::new(config, files)?;
    let limits = sizing::limits(config, opened.checkpoint.config(), mesh, host)?;
    let weight_cache =
        weight_cache::card_directory(config, files, device).map(|path| WeightCacheDir {
            path,
            checkpoint: opened.checkpoint.revision(),
            policy: opened.policy.weights(),
        });
    let size = opened.checkpoint.config().llama3_size();
    let max_prefill_chunk = llama::max_prefill_chunk(size, device);
    let options = opened.options(&limits);
    let (checkpoint, described) = opened.describe(limits, mesh);
    let work = Work {
        open: open_options(config, device, dispatch),
        mesh: TtnnOptions {
            device: device.to_string(),
            // Told by the chips themselves once they are open.
            chip: Chip { grid: mesh_ttnn::spec::Grid { x: 0, y: 0 }, dram_banks: 0 },
            max_prefill_chunk,
            weight_cache,
            without_weights: false,
        },
        checkpoint,
        options,
    };
    let bounds = config.ttnn.step_bounds();
    let load = |progress: &mut dyn FnMut(LoadStage)| work.load(progress);
    let (mut owner, (description, weight_cache)) = OwnerThread::spawn(bounds, load, progress)?;
    let lengths = prefill_lengths(max_prefill_chunk.min(longest_prefill(&limits)));
    let steps = warm_up::steps(&description.rules, &lengths, &limits);
    // As much a failed device as later: it is reset, and the worker started again.
    let failed = |error: MeshError| WorkerError::DeviceFailed(error.to_string());
    warm_up::run(&mut owner, &steps, progress).map_err(failed)?;
    let identity = described.identity(config, mesh, description);
    Ok(Loaded { forward: Box::new(Card { owner, _lock: lock }), identity, weight_cache })
}

/// Tokens of the longest chunk that a step may have.
fn longest_prefill(limits: &Limits) -> usize {
    limits.max_num_batched_tokens.min(limits.max_model_len) as usize
}

impl Work {
    /// On the device's own thread.
    fn load(
        self,
        progress: &mut dyn FnMut(LoadStage),
    ) -> Result<(Runner<TtnnMesh<TtnnOps>>, Told), WorkerError> {
        let Self { open, mesh, checkpoint, options } = self;
        let ops = TtnnOps::open(&open)?;
        let (grid, dram_banks) = (ops.grid(), ops.num_dram_banks());
        if ops.is_mock() {
            tracing::warn!("mock devices: every answer is meaningless");
        }
        tracing::info!(device = mesh.device, columns = grid.x, rows = grid.y, "opened");
        let mesh = TtnnMesh::new(ops, TtnnOptions { chip: Chip { grid, dram_banks }, ..mesh });
        let of_weights = &mut |weights| progress(LoadStage::Weights(weights));
        let runner = Runner::load(mesh, &checkpoint, &options, of_weights)?;
        let told = (runner.mesh_description(), runner.weight_cache());
        Ok((runner, told))
    }
}

fn open_options(config: &WorkerConfig, device: Device, dispatch: Dispatch) -> OpenOptions {
    let settings = &config.ttnn;
    OpenOptions {
        num_chips: device.num_chips(),
        dispatch: match dispatch {
            Dispatch::Ethernet => python::Dispatch::Ethernet,
            Dispatch::Worker => python::Dispatch::Worker,
        },
        trace_region_bytes: TRACE_REGION_BYTES,
        site_packages: settings.site_packages.clone(),
        mock: settings.mock.clone(),
        kernel_cache: settings.kernel_cache.clone(),
    }
}

/// Takes the cards for this process. Mock devices are nobody's, unless a folder
/// for their locks is named.
fn lock(config: &WorkerConfig, device: Device) -> Result<Option<BoardLock>, WorkerError> {
    let root = Path::new("/");
    let (folder, cards): (PathBuf, Vec<u32>) = match (&config.ttnn.mock, &config.ttnn.lock_dir) {
        (Some(_), None) => return Ok(None),
        (Some(_), Some(folder)) => {
            let num_cards = device.num_chips().div_ceil(2) as u32;
            (folder.clone(), (0..num_cards).collect())
        }
        (None, folder) => {
            let folder = folder.clone().unwrap_or_else(|| BoardLock::folder(root));
            (folder, board::cards(root))
        }
    };
    let lock = BoardLock::acquire(&folder, &cards)?;
    if config.ttnn.mock.is_none() {
        let holders = board::holders(root, &cards);
        if !holders.is_empty() {
            tracing::warn!(?holders, "other processes have the cards open: this one may wait");
        }
    }
    Ok(Some(lock))
}

impl Forward for Card {
    fn forward(&mut self, batch: &StepBatch, out: &mut StepOutput) -> Result<(), MeshError> {
        self.owner.forward(batch, out)
    }

    fn vocab_size(&self) -> usize {
        self.owner.vocab_size()
    }

    fn mesh_status(&self) -> MeshStatus {
        self.owner.mesh_status()
    }
}
