//! Cards in a build that cannot drive any.

use common::config::ConfigError;
use common::model::ModelFiles;

use super::{LoadStage, Loaded};
use crate::config::{MeshChoice, WorkerConfig};
use crate::error::WorkerError;

/// Refuses: the settings' own check does so before.
pub(super) fn load(
    _config: &WorkerConfig,
    mesh: MeshChoice,
    _files: &ModelFiles,
    _progress: &mut dyn FnMut(LoadStage),
) -> Result<Loaded, WorkerError> {
    let reason = format!("{} needs the ttnn build (cargo build --features ttnn)", mesh.device());
    Err(ConfigError::value("device", reason).into())
}
