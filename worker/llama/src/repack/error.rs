//! Why weights cannot be repacked.

use std::io;
use std::path::{Path, PathBuf};

use crate::checkpoint::CheckpointError;
use crate::pth::PthWriteError;

/// Why weights cannot be repacked.
#[derive(Debug, thiserror::Error)]
pub enum RepackError {
    /// The checkpoint is not one of Meta's, or is not complete.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Chunks of no layers.
    #[error("chunk size is 0, must be 1 or more layers")]
    ChunkSize,
    /// A file or directory of the output cannot be made.
    #[error("cannot write {}: {source}", .path.display())]
    Write {
        /// What was to be written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process repacks into the same directory.
    #[error("another process is repacking into {}", .path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// The output directory has chunks that are not of this model and chunk size.
    #[error(
        "{} has {} of another chunk size or model: a model is never read from such a mixture. \
         Remove them, name another directory, or use --force to replace them",
        .path.display(), .names.join(", ")
    )]
    OtherChunks {
        /// The directory.
        path: PathBuf,
        /// Names of those files.
        names: Vec<String>,
    },
    /// The output directory is that of another model.
    #[error(
        "{} differs from {}: the directory is of another model, name another one",
        .output.display(), .checkpoint.display()
    )]
    OtherModel {
        /// `params.json` of the output.
        output: PathBuf,
        /// `params.json` of the checkpoint.
        checkpoint: PathBuf,
    },
    /// The disk is too small.
    #[error(
        "{} has {:.2} GB free, {:.2} GB are needed",
        .path.display(), *.free as f64 / 1e9, *.needed as f64 / 1e9
    )]
    DiskSpace {
        /// The output directory.
        path: PathBuf,
        /// Bytes that are free.
        free: u64,
        /// Bytes that must be.
        needed: u64,
    },
    /// The caller asked to stop; finished files stay.
    #[error(
        "stopped; the same command goes on from the {complete} of {total} files that are complete"
    )]
    Stopped {
        /// Chunk files that are complete.
        complete: usize,
        /// Chunk files that there will be.
        total: usize,
    },
}

impl RepackError {
    pub(super) fn write(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Write { path: path.to_owned(), source }
    }
}

/// Why one chunk file cannot be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChunkError {
    #[error(transparent)]
    Source(#[from] CheckpointError),
    #[error(transparent)]
    Output(#[from] PthWriteError),
    #[error("stopped")]
    Stopped,
}
