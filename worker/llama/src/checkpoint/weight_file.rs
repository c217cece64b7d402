//! A file of weights, read by position.
//!
//! A file is mapped only while its header is parsed, or not at all. Values are
//! read by position: a file that shrinks under us is then an error, where a
//! mapping would kill the process.

use std::fs::{File, Metadata};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use memmap2::Mmap;

use super::CheckpointError;

/// A file of a checkpoint.
#[derive(Debug)]
pub(crate) struct WeightFile {
    path: PathBuf,
    file: File,
    num_bytes: u64,
    modified: Option<SystemTime>,
}

impl WeightFile {
    /// Opens `path` and notes its size and time.
    pub(crate) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let io = |source| CheckpointError::Io { path: path.to_owned(), source };
        // Before it is opened: opening a pipe waits for its other end.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(CheckpointError::malformed(path, "not a regular file"));
        }
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        let (num_bytes, modified) = identity(&metadata);
        Ok(Self { path: path.to_owned(), file, num_bytes, modified })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn num_bytes(&self) -> u64 {
        self.num_bytes
    }

    /// When it was last written to, as it was opened.
    pub(crate) fn modified(&self) -> Option<SystemTime> {
        self.modified
    }

    /// Maps the file, to parse its header.
    #[expect(unsafe_code, reason = "mapping a file is unsafe whatever the care taken")]
    pub(crate) fn map(&self) -> Result<Mmap, CheckpointError> {
        // SAFETY: the mapping is private, read-only, and dropped when the
        // header has been parsed. Someone who truncates the file in those
        // milliseconds stops the process by SIGBUS, which is not undefined
        // behaviour; someone who writes to it changes bytes that the parser
        // checks as it reads them, each once.
        unsafe { Mmap::map(&self.file) }
            .map_err(|source| CheckpointError::Io { path: self.path.clone(), source })
    }

    pub(crate) fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), CheckpointError> {
        self.file.read_exact_at(out, offset).map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                CheckpointError::Changed { path: self.path.clone() }
            }
            _ => CheckpointError::Io { path: self.path.clone(), source },
        })
    }

    /// Checks that neither size nor time has moved since the file was opened.
    pub(crate) fn verify_unchanged(&self) -> Result<(), CheckpointError> {
        let metadata = self
            .file
            .metadata()
            .map_err(|source| CheckpointError::Io { path: self.path.clone(), source })?;
        if identity(&metadata) == (self.num_bytes, self.modified) {
            Ok(())
        } else {
            Err(CheckpointError::Changed { path: self.path.clone() })
        }
    }
}

fn identity(metadata: &Metadata) -> (u64, Option<SystemTime>) {
    (metadata.len(), metadata.modified().ok())
}
