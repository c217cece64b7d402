//! The directory that chunks are written to.

use std::fs::{self, File, TryLockError};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::chunk::Chunk;
use super::error::{ChunkError, RepackError};
use crate::checkpoint::{CheckpointError, Consolidated, chunk_layers};
use crate::pth::PthWriteError;

/// After the name of a file that is not complete; no loader looks at it.
const PARTIAL: &str = ".tmp";

/// An output directory that no other process repacks into.
#[derive(Debug)]
pub(super) struct Output {
    path: PathBuf,
    /// Held open for its lock.
    directory: File,
}

impl Output {
    /// Makes the directory if there is none, and locks it.
    pub(super) fn open(path: &Path) -> Result<Self, RepackError> {
        fs::create_dir_all(path).map_err(RepackError::write(path))?;
        let directory = File::open(path).map_err(RepackError::write(path))?;
        match directory.try_lock() {
            Err(TryLockError::WouldBlock) => Err(RepackError::Busy { path: path.to_owned() }),
            // Network file systems cannot lock directories: there, that only one
            // process writes is left to its user.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Self { path: path.to_owned(), directory }),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Names of chunk files, of whatever size and model.
    pub(super) fn chunk_names(&self) -> Result<Vec<String>, RepackError> {
        let mut names = self.names()?;
        names.retain(|name| chunk_layers(name).is_some());
        names.sort_by_key(|name| chunk_layers(name));
        Ok(names)
    }

    /// Removes what an interrupted process left behind.
    pub(super) fn remove_partial(&self) -> Result<(), RepackError> {
        for name in self.names()? {
            if name.strip_suffix(PARTIAL).is_some_and(|name| chunk_layers(name).is_some()) {
                self.remove(&name)?;
            }
        }
        Ok(())
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), RepackError> {
        let path = self.file(name);
        fs::remove_file(&path).map_err(RepackError::write(&path))
    }

    /// Bytes that the file has now; 0 without one.
    pub(super) fn num_bytes(&self, name: &str) -> u64 {
        fs::metadata(self.file(name)).map_or(0, |metadata| metadata.len())
    }

    /// Bytes that may be written here.
    pub(super) fn free_bytes(&self) -> Result<u64, RepackError> {
        let space = rustix::fs::fstatvfs(&self.directory)
            .map_err(|error| RepackError::write(&self.path)(error.into()))?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    /// Writes the chunk under another name, and gives it its own when all of it
    /// is on the disk. `Break` says that `advance` stopped it.
    pub(super) fn write(
        &self,
        chunk: &Chunk,
        source: &Consolidated,
        advance: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, RepackError> {
        let path = self.file(&chunk.name);
        let partial = self.file(&format!("{}{PARTIAL}", chunk.name));
        let mut write = || -> Result<(), ChunkError> {
            let file = File::create(&partial).map_err(PthWriteError::from)?;
            let file = chunk.write(source, file, advance)?;
            source.verify_unchanged()?;
            file.sync_all().map_err(PthWriteError::from)?;
            fs::rename(&partial, &path).map_err(PthWriteError::from)?;
            Ok(self.directory.sync_all().map_err(PthWriteError::from)?)
        };
        let Err(error) = write() else { return Ok(ControlFlow::Continue(())) };
        // Why it failed matters more than whether this fails, too.
        let _ = fs::remove_file(&partial);
        match error {
            ChunkError::Stopped => Ok(ControlFlow::Break(())),
            ChunkError::Source(error) => Err(error.into()),
            ChunkError::Output(PthWriteError::Io(error)) => Err(RepackError::write(&path)(error)),
            ChunkError::Output(error) => Err(RepackError::write(&path)(io::Error::other(error))),
        }
    }

    /// Copies a file of the checkpoint, unless there is one of its name. Returns
    /// whether it did.
    pub(super) fn copy(&self, name: &str, checkpoint: &Path) -> Result<bool, RepackError> {
        let (from, path) = (checkpoint.join(name), self.file(name));
        if path.exists() {
            return Ok(false);
        }
        let partial = self.file(&format!("{name}{PARTIAL}"));
        let copy = || {
            let mut source = File::open(&from)?;
            let mut file = File::create(&partial)?;
            io::copy(&mut source, &mut file)?;
            file.sync_all()?;
            fs::rename(&partial, &path)
        };
        copy().map(|()| true).map_err(|error| {
            let _ = fs::remove_file(&partial);
            RepackError::write(&path)(error)
        })
    }

    fn names(&self) -> Result<Vec<String>, RepackError> {
        let io = |source| CheckpointError::Io { path: self.path.clone(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(io)? {
            if let Ok(name) = entry.map_err(io)?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }
}

/// Bytes that must be free to write files one after the other, each beside the
/// one that it then replaces: `(bytes of the new file, bytes of the old one)`.
pub(super) fn space_needed(files: impl IntoIterator<Item = (u64, u64)>) -> u64 {
    let (mut added, mut needed) = (0_i128, 0_i128);
    for (new, old) in files {
        added += i128::from(new);
        needed = needed.max(added);
        added -= i128::from(old);
    }
    u64::try_from(needed).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_beside_the_one_that_it_replaces() {
        let cases: [(&[(u64, u64)], u64); 5] = [
            (&[], 0),
            (&[(10, 0), (7, 0)], 17),
            // Replaced one by one: room for one more is enough.
            (&[(10, 10), (7, 7)], 10),
            (&[(10, 2), (7, 7)], 15),
            (&[(1, 100), (50, 0)], 1),
        ];
        for (files, needed) in cases {
            assert_eq!(space_needed(files.iter().copied()), needed, "{files:?}");
        }
    }
}
