//! The interpreter of this process, and `ttnn` in it.

use std::path::Path;
use std::sync::Mutex;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::error::OpenError;
use super::failure;
use super::open::OpenOptions;

/// Of the package, as this program is written for and tested with.
pub(super) const VERSION: &str = "0.81.1";
/// Releases that differ in the last number keep the calls.
const COMPATIBLE: &str = "0.81.";

/// Where the description of mock devices is expected.
const MOCK: &str = "TT_METAL_MOCK_CLUSTER_DESC_PATH";
/// Where compiled kernels are kept.
const KERNEL_CACHE: &str = "TT_METAL_CACHE";

/// What `ttnn` in this process has read from the environment.
pub(super) struct Environment {
    /// Whether devices are mock devices.
    pub(super) is_mock: bool,
    /// Folder of compiled kernels.
    pub(super) kernel_cache: String,
}

/// Description of the devices that this process has: the first that was asked
/// for, empty for cards.
static CLUSTER: Mutex<Option<String>> = Mutex::new(None);

/// Puts into the environment what `ttnn` reads from it. What is set already is
/// the user's choice and stays.
pub(super) fn set_environment(
    py: Python<'_>,
    options: &OpenOptions,
) -> Result<Environment, OpenError> {
    if let Some(path) = &options.mock
        && !path.is_file()
    {
        return Err(OpenError::Descriptor { path: path.clone() });
    }
    let fail = |error: PyErr| failure::of_opening(py, &error);
    let environ = py.import("os").and_then(|os| os.getattr("environ"));
    let environ = environ.map_err(fail)?;
    let get = |name: &str| -> PyResult<Option<String>> {
        environ.call_method1("get", (name,))?.extract()
    };

    // `os.environ` hands on to putenv: C++ sees what Python sets.
    let asked = match &options.mock {
        Some(path) => path.display().to_string(),
        None => get(MOCK).map_err(fail)?.unwrap_or_default(),
    };
    claim_cluster(&asked)?;
    if !asked.is_empty() {
        environ.set_item(MOCK, &asked).map_err(fail)?;
    }

    let scratch = py
        .import("tempfile")
        .and_then(|tempfile| tempfile.call_method0("gettempdir")?.extract::<String>())
        .map_err(fail)?;
    let home = get("HOME").map_err(fail)?.unwrap_or(scratch.clone());
    let kernel_cache = match &options.kernel_cache {
        Some(path) => path.display().to_string(),
        // The package's own. What a stub compiler made for mock devices would be
        // taken for a real kernel there.
        None if asked.is_empty() => format!("{home}/.cache/tt-metal-cache"),
        None => format!("{scratch}/llama-mesh-ttnn/mock-kernels"),
    };
    for (name, value) in [
        (KERNEL_CACHE, kernel_cache.as_str()),
        // Else it goes to stdout, which belongs to this program; what matters of
        // it comes as an exception too.
        ("TT_METAL_LOGGER_LEVEL", "OFF"),
        ("LOGURU_LEVEL", "ERROR"),
        ("TT_METAL_DISABLE_BACKTRACE", "1"),
        // Else a folder `generated` appears in the current one.
        ("TT_METAL_LOGS_PATH", &format!("{scratch}/llama-mesh-ttnn")),
    ] {
        environ.call_method1("setdefault", (name, value)).map_err(fail)?;
    }
    Ok(Environment {
        is_mock: !asked.is_empty(),
        kernel_cache: get(KERNEL_CACHE).map_err(fail)?.unwrap_or(kernel_cache),
    })
}

/// Fails if this process has other devices already.
fn claim_cluster(asked: &str) -> Result<(), OpenError> {
    let mut opened = CLUSTER.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let first = opened.get_or_insert_with(|| asked.to_owned());
    if first == asked {
        return Ok(());
    }
    let name = |path: &str| match path {
        "" => "this host's cards".to_owned(),
        path => format!("mock devices of {path}"),
    };
    Err(OpenError::OneClusterPerProcess { opened: name(first), asked: name(asked) })
}

/// Imports `ttnn`, from `site_packages` if that is given, and checks its version.
pub(super) fn import_ttnn<'py>(
    py: Python<'py>,
    site_packages: Option<&Path>,
) -> Result<Bound<'py, PyModule>, OpenError> {
    let missing = |error: PyErr| OpenError::NotInstalled {
        python: Python::version_str().split(' ').next().unwrap_or_default().to_owned(),
        message: failure::message(py, &error),
    };
    if let Some(path) = site_packages {
        if !path.is_dir() {
            return Err(OpenError::SitePackages { path: path.to_owned() });
        }
        py.import("site")
            .and_then(|site| site.call_method1("addsitedir", (path,)))
            .map_err(missing)?;
    }
    let found: String = py
        .import("importlib.metadata")
        .and_then(|metadata| metadata.call_method1("version", ("ttnn",))?.extract())
        .map_err(missing)?;
    if !found.starts_with(COMPATIBLE) {
        return Err(OpenError::Version { found });
    }
    py.import("ttnn").map_err(missing)
}

/// A dictionary of keyword arguments.
pub(super) fn keywords<'py, V>(
    py: Python<'py>,
    items: impl IntoIterator<Item = (&'static str, V)>,
) -> PyResult<Bound<'py, PyDict>>
where
    V: IntoPyObject<'py>,
{
    let dict = PyDict::new(py);
    for (name, value) in items {
        dict.set_item(name, value)?;
    }
    Ok(dict)
}
