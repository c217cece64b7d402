//! Where a model's packed weights are kept: in its own directory, by device.
//!
//! One file for everything that changes the bytes, so that two ways of running
//! one model do not evict each other.

use std::path::PathBuf;

use common::model::ModelFiles;
use llama::Optimizations;

use crate::config::{DeviceKind, WorkerConfig};

/// The file for this model on these chips: `CPU/performance.weights` below the
/// checkpoint's directory. `None` where there is to be none: the setting is off,
/// or the model is a single GGUF file, which is small and in nobody's directory.
pub(crate) fn path(config: &WorkerConfig, files: &ModelFiles, num_chips: u32) -> Option<PathBuf> {
    let directory = match files {
        ModelFiles::Gguf(_) => return None,
        ModelFiles::HuggingFace(directory) | ModelFiles::Meta(directory) => directory,
    };
    if !config.weight_cache {
        return None;
    }
    let (device, chips) = match config.device {
        DeviceKind::Auto | DeviceKind::Cpu if num_chips == 1 => ("CPU", String::new()),
        DeviceKind::Auto | DeviceKind::Cpu => ("CPU", format!("-{num_chips}chips")),
        // What the card itself keeps there is in its own format.
        DeviceKind::N150 => ("N150", "-simulated".to_owned()),
        DeviceKind::N300 => ("N300", "-simulated".to_owned()),
        DeviceKind::T3K => ("T3K", "-simulated".to_owned()),
    };
    let optimizations = Optimizations::from(config.optimizations);
    Some(directory.join(device).join(format!("{optimizations}{chips}.weights")))
}

/// The folder for what a card itself keeps: `T3K/performance` below the
/// checkpoint's directory, or none, as for [`path`].
#[cfg(any(test, feature = "ttnn"))]
pub(crate) fn card_directory(
    config: &WorkerConfig,
    files: &ModelFiles,
    device: llama::Device,
) -> Option<PathBuf> {
    let directory = match files {
        ModelFiles::Gguf(_) => return None,
        ModelFiles::HuggingFace(directory) | ModelFiles::Meta(directory) => directory,
    };
    let optimizations = Optimizations::from(config.optimizations).to_string();
    config.weight_cache.then(|| directory.join(device.to_string()).join(optimizations))
}

#[cfg(test)]
mod tests;
