//! Rewrites Meta's shards of 70B as files of whole layers.
//!
//! Meta's eight `consolidated.*.pth` hold an eighth of every weight each; a
//! loader that wants some layers must open all of them. Repacking puts the
//! parts together and writes `layers_0-9.pth`, `layers_10-19.pth` and so on,
//! which any tool that reads `torch.save` files can load. What belongs to no
//! layer is in the first file.
//!
//! Weights pass through in pieces of some megabytes. Every file appears under
//! its name when it is complete and on the disk, so that a run that was
//! interrupted is continued by the next.

mod chunk;
mod error;
mod output;

use std::ops::ControlFlow;
use std::path::Path;

pub use error::RepackError;

use crate::checkpoint::{CheckpointError, Consolidated};
use chunk::Chunk;
use output::{Output, space_needed};

/// Layers in a file, as the original demo chose.
pub const DEFAULT_CHUNK_SIZE: usize = 10;

const PARAMS: &str = "params.json";
const TOKENIZER: &str = "tokenizer.model";

/// How to repack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RepackOptions {
    /// Layers in a file, 1 or more.
    pub chunk_size: usize,
    /// Write complete files again, and remove chunks of other sizes.
    pub force: bool,
}

impl Default for RepackOptions {
    fn default() -> Self {
        Self { chunk_size: DEFAULT_CHUNK_SIZE, force: false }
    }
}

/// How far repacking is.
#[derive(Debug, Clone, Copy)]
pub struct RepackProgress {
    /// Bytes of weights that have been written.
    pub done_bytes: u64,
    /// Bytes of the files that are being written.
    pub total_bytes: u64,
}

/// What repacking did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RepackReport {
    /// Chunk files in order of layers, written or found complete.
    pub files: Vec<RepackedFile>,
    /// Other files that were copied from the checkpoint.
    pub copied: Vec<&'static str>,
    /// Files that neither the checkpoint nor the output has, although the
    /// model cannot be served without them.
    pub missing: Vec<&'static str>,
    /// Chunk files of other sizes that were removed.
    pub removed: Vec<String>,
}

/// A chunk file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepackedFile {
    /// Name in the output directory.
    pub name: String,
    /// Bytes of the file.
    pub num_bytes: u64,
    /// It was written now, and not found complete.
    pub written: bool,
}

/// Repacks the Meta checkpoint in `checkpoint` into `output`, which may be the
/// same directory and is made if there is none.
///
/// A file that has the right tensors, and their values as far as eight samples
/// of 4 KiB of each tell, is kept; others are written again. `watch` hears of
/// progress every few megabytes and may stop the work, which leaves complete
/// files only.
///
/// # Errors
/// [`RepackError`] says what is wrong with the checkpoint or the output. Except
/// for a full or broken disk, it does so before anything is written.
pub fn repack(
    checkpoint: &Path,
    output: &Path,
    options: RepackOptions,
    watch: &mut dyn FnMut(RepackProgress) -> ControlFlow<()>,
) -> Result<RepackReport, RepackError> {
    if options.chunk_size == 0 {
        return Err(RepackError::ChunkSize);
    }
    let source = Consolidated::open(checkpoint)?;
    let chunks = Chunk::plan(&source, options.chunk_size)?;
    let output = Output::open(output)?;
    check_params(checkpoint, &output)?;
    let mut others = output.chunk_names()?;
    others.retain(|name| chunks.iter().all(|chunk| chunk.name != *name));
    if !others.is_empty() && !options.force {
        return Err(RepackError::OtherChunks { path: output.path().to_owned(), names: others });
    }
    output.remove_partial()?;

    let mut report = RepackReport::default();
    for chunk in &chunks {
        let path = output.file(&chunk.name);
        let keep = !options.force && path.exists() && chunk.is_at(&path, &source)?;
        let num_bytes = if keep { output.num_bytes(&chunk.name) } else { chunk.num_bytes() };
        report.files.push(RepackedFile { name: chunk.name.clone(), num_bytes, written: !keep });
    }
    let total_bytes = check_space(&output, &report)?;
    for name in [PARAMS, TOKENIZER] {
        if !checkpoint.join(name).exists() && !output.file(name).exists() {
            report.missing.push(name);
        } else if output.copy(name, checkpoint)? {
            report.copied.push(name);
        }
    }
    let mut done_bytes = 0;
    let mut advance = |num_bytes| {
        done_bytes += num_bytes;
        watch(RepackProgress { done_bytes, total_bytes })
    };
    for (index, chunk) in chunks.iter().enumerate() {
        if !report.files[index].written {
            continue;
        }
        if output.write(chunk, &source, &mut advance)?.is_break() {
            let later = report.files[index..].iter().filter(|file| !file.written).count();
            return Err(RepackError::Stopped { complete: index + later, total: chunks.len() });
        }
    }
    // Only now, when there is something in their place.
    for name in others {
        output.remove(&name)?;
        report.removed.push(name);
    }
    Ok(report)
}

/// Refuses a directory that already is another model's.
fn check_params(checkpoint: &Path, output: &Output) -> Result<(), RepackError> {
    let (theirs, ours) = (checkpoint.join(PARAMS), output.file(PARAMS));
    if !ours.exists() {
        return Ok(());
    }
    let read = |path: &Path| -> Result<Option<serde_json::Value>, CheckpointError> {
        let bytes = std::fs::read(path)
            .map_err(|source| CheckpointError::Io { path: path.to_owned(), source })?;
        Ok(serde_json::from_slice(&bytes).ok())
    };
    if read(&ours)? == read(&theirs)? {
        return Ok(());
    }
    Err(RepackError::OtherModel { output: ours, checkpoint: theirs })
}

/// Returns the bytes that will be written, for which there must be room.
fn check_space(output: &Output, report: &RepackReport) -> Result<u64, RepackError> {
    let written = || report.files.iter().filter(|file| file.written);
    let sizes = written().map(|file| (file.num_bytes, output.num_bytes(&file.name)));
    let needed = space_needed(sizes);
    if needed > 0 {
        let free = output.free_bytes()?;
        if free < needed {
            return Err(RepackError::DiskSpace { path: output.path().to_owned(), free, needed });
        }
    }
    Ok(written().map(|file| file.num_bytes).sum())
}

#[cfg(test)]
mod tests;
