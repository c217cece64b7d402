//! The CPU mesh: chips simulated on this machine's threads.

use common::model::ModelFiles;
use llama::{LlamaConfig, Runner};
use mesh_cpu::{CpuMesh, WeightCacheFile};

use super::opened::Opened;
use super::{LoadStage, Loaded};
use crate::config::{MeshChoice, WorkerConfig};
use crate::error::WorkerError;
use crate::memory;
use crate::sizing::{self, HostMemory};
use crate::weight_cache;

/// Loads the model onto `num_chips` simulated chips.
pub(super) fn load(
    config: &WorkerConfig,
    mesh: MeshChoice,
    num_chips: u32,
    files: &ModelFiles,
    progress: &mut dyn FnMut(LoadStage),
) -> Result<Loaded, WorkerError> {
    // The small files tell what does not fit, however large the weights are.
    let cache = weight_cache::path(config, files, num_chips);
    let weights_are_mapped = cache.as_ref().is_some_and(|path| path.is_file());
    let host = HostMemory { available: memory::available_bytes(), weights_are_mapped };
    let model_config = LlamaConfig::from_path(files.path())?;
    sizing::limits(config, &model_config, mesh, host)?;
    let opened = Opened::new(config, files)?;
    let mut cpu = CpuMesh::new(num_chips as usize, config.num_threads())?;
    if let Some(path) = cache {
        let (checkpoint, policy) = (opened.checkpoint.revision(), opened.policy.weights());
        cpu = cpu.with_weight_cache(WeightCacheFile { path, checkpoint, policy });
    }
    // Once more with what the large files say: their tensors complete the
    // configuration, and a cache may be there and be another model's.
    let host = HostMemory { weights_are_mapped: cpu.maps_weights(), ..host };
    let limits = sizing::limits(config, opened.checkpoint.config(), mesh, host)?;
    let options = opened.options(&limits);
    let (checkpoint, described) = opened.describe(limits, mesh);
    let of_weights = &mut |weights| progress(LoadStage::Weights(weights));
    let runner = Runner::load(cpu, &checkpoint, &options, of_weights)?;
    let identity = described.identity(config, mesh, runner.mesh_description());
    let weight_cache = runner.weight_cache();
    Ok(Loaded { forward: Box::new(runner), identity, weight_cache })
}
