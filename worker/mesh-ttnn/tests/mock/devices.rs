//! Mock devices of `ttnn` to test with.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use mesh_ttnn::python::{Dispatch, OpenOptions};

/// A process has one mesh at a time, and tests may be threads of one process.
static ONE_MESH: Mutex<()> = Mutex::new(());

/// Keeps other tests from opening a mesh.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    ONE_MESH.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How to open `num_chips` mock devices that `deploy/mock/<cluster>.yaml` describes.
pub(crate) fn options(cluster: &str, num_chips: usize, dispatch: Dispatch) -> OpenOptions {
    let repository = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let descriptor = repository.join("deploy/mock").join(format!("{cluster}.yaml"));
    OpenOptions {
        num_chips,
        dispatch,
        trace_region_bytes: 64 << 20,
        site_packages: std::env::var_os("LLAMA_MESH_TTNN_SITE_PACKAGES").map(PathBuf::from),
        mock: Some(descriptor.canonicalize().expect("the descriptor is in the repository")),
        kernel_cache: Some(repository.join("target/ttnn-kernels")),
    }
}
