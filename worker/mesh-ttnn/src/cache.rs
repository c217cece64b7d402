//! Prepared weights on disk between starts: one `.tensorbin` file each, and a
//! manifest that says of what they were made.
//!
//! A folder is complete or not there: it is written beside its place and
//! renamed. What does not match what is asked for, or is damaged, is made anew.

use std::fs::{self, File};
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use mesh::{MeshError, WeightCacheUse};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::ops::Ops;
use crate::packing::Packing;
use crate::spec::HostMatrix;
use crate::weight::num_threads;

/// Changes when the same weights would be laid out in another way.
const LAYOUT_VERSION: u32 = 1;
const MANIFEST: &str = "manifest.json";
/// Not the name of a weight's file, which ends in its format before this.
const SCRATCH: &str = "scratch.tensorbin";

/// Where a model's prepared weights are kept, and what they depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightCacheDir {
    /// The folder, for example `$LLAMA_DIR/T3K/performance`.
    pub path: PathBuf,
    /// Revision of the checkpoint.
    pub checkpoint: String,
    /// Formats of the weights.
    pub policy: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    layout_version: u32,
    checkpoint: String,
    policy: String,
    num_chips: usize,
    files: Vec<CachedFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct CachedFile {
    name: String,
    bytes: u64,
    /// XXH3 of its content: against damage, not malice.
    hash: u64,
}

/// What is done with weights as they are asked for.
#[derive(Debug)]
pub(crate) enum WeightCache {
    /// They are made, and forgotten.
    Off,
    /// They are mapped from a complete folder.
    Reading(PathBuf),
    /// They are made, and written.
    Writing(Box<Writing>),
}

#[derive(Debug)]
pub(crate) struct Writing {
    place: PathBuf,
    partial: PathBuf,
    manifest: Manifest,
}

impl WeightCache {
    /// Looks for a complete, undamaged folder that was made of the same.
    pub(crate) fn open(cache: WeightCacheDir, num_chips: usize) -> Self {
        let WeightCacheDir { path, checkpoint, policy } = cache;
        let layout_version = LAYOUT_VERSION;
        let wanted = Manifest { layout_version, checkpoint, policy, num_chips, files: Vec::new() };
        match verify(&path, &wanted) {
            Ok(()) => {
                tracing::info!(path = %path.display(), "weights are cached");
                return Self::Reading(path);
            }
            Err(reason) => {
                tracing::info!(path = %path.display(), reason, "weights are prepared");
            }
        }
        let partial = path.with_extension(format!("partial-{}", std::process::id()));
        let made = fs::remove_dir_all(&partial)
            .or_else(
                |error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) },
            )
            .and_then(|()| fs::create_dir_all(&partial));
        match made {
            Ok(()) => Self::Writing(Box::new(Writing { place: path, partial, manifest: wanted })),
            Err(error) => {
                tracing::warn!(path = %partial.display(), %error, "weights are not kept");
                Self::Off
            }
        }
    }

    /// The packed weight `name`: mapped, or packed from what `make` gives.
    ///
    /// # Errors
    /// As `make`, or of the operations. A file that cannot be written only ends
    /// the caching.
    pub(crate) fn load<O: Ops>(
        &mut self,
        ops: &mut O,
        name: &str,
        make: impl FnOnce() -> Result<HostMatrix, MeshError>,
    ) -> Result<O::HostTensor, MeshError> {
        let file = format!("{}.tensorbin", file_name(name));
        if let Self::Reading(path) = self {
            return ops.load(&path.join(file));
        }
        let matrix = make()?;
        if let Self::Writing(writing) = self {
            match writing.write(ops, &file, &matrix) {
                Ok(Some(tensor)) => return Ok(tensor),
                Ok(None) => {}
                Err(error) => self.give_up(&file, &error),
            }
        }
        let tensor = ops.pack(matrix)?;
        if let Self::Writing(writing) = self
            && let Err(error) = writing.dump(ops, &file, &tensor)
        {
            self.give_up(&file, &error);
        }
        Ok(tensor)
    }

    /// All weights are loaded: what was written takes its place.
    pub(crate) fn finish(&mut self) -> WeightCacheUse {
        match std::mem::replace(self, Self::Off) {
            Self::Off => WeightCacheUse::Unused,
            Self::Reading(_) => WeightCacheUse::Hit,
            Self::Writing(writing) => match writing.complete() {
                Ok(()) => WeightCacheUse::Written,
                Err(error) => {
                    tracing::warn!(%error, path = %writing.place.display(), "weights are not kept");
                    WeightCacheUse::Unused
                }
            },
        }
    }

    fn give_up(&mut self, file: &str, error: &str) {
        tracing::warn!(file, error, "weights are not kept");
        // Dropped, and removed with it.
        *self = Self::Off;
    }
}

impl Writing {
    /// Packs `matrix` with all threads into `file`, and maps it. None for what
    /// only the operations can pack.
    fn write<O: Ops>(
        &mut self,
        ops: &mut O,
        file: &str,
        matrix: &HostMatrix,
    ) -> Result<Option<O::HostTensor>, String> {
        let Some(packing) = Packing::new(matrix, ops.num_chips()) else { return Ok(None) };
        let &HostMatrix { shape, dtype, spread, .. } = matrix;
        let scratch = self.partial.join(SCRATCH);
        let header = match ops.file_header(shape, dtype, spread, &scratch) {
            Ok(Some(header)) => header,
            Ok(None) => return Ok(None),
            Err(error) => {
                tracing::warn!(file, %error, "a weight is packed with one thread");
                return Ok(None);
            }
        };
        let path = self.partial.join(file);
        let (bytes, hash) = write_packed(&path, &header, packing).map_err(|e| e.to_string())?;
        let tensor = ops.load(&path).map_err(|error| error.to_string())?;
        self.manifest.files.push(CachedFile { name: file.to_owned(), bytes, hash });
        Ok(Some(tensor))
    }

    /// Writes what the operations have packed into `file`.
    fn dump<O: Ops>(
        &mut self,
        ops: &mut O,
        file: &str,
        tensor: &O::HostTensor,
    ) -> Result<(), String> {
        let path = self.partial.join(file);
        ops.dump(tensor, &path).map_err(|error| error.to_string())?;
        let (bytes, hash) = digest(&path).map_err(|error| error.to_string())?;
        self.manifest.files.push(CachedFile { name: file.to_owned(), bytes, hash });
        Ok(())
    }

    fn complete(&self) -> io::Result<()> {
        let manifest = self.partial.join(MANIFEST);
        fs::write(&manifest, serde_json::to_vec_pretty(&self.manifest)?)?;
        for file in &self.manifest.files {
            File::open(self.partial.join(&file.name))?.sync_all()?;
        }
        File::open(&manifest)?.sync_all()?;
        // A folder cannot be renamed over another one that holds files.
        let old = self.place.with_extension(format!("old-{}", std::process::id()));
        let replaced = match fs::rename(&self.place, &old) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        fs::rename(&self.partial, &self.place)?;
        if replaced {
            fs::remove_dir_all(&old)?;
        }
        if let Some(parent) = self.place.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(())
    }
}

impl Drop for Writing {
    /// Removes what was not completed; nothing is there otherwise.
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.partial);
    }
}

/// Says why the folder cannot be used, if so.
fn verify(path: &Path, wanted: &Manifest) -> Result<(), String> {
    let text = match fs::read(path.join(MANIFEST)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err("none yet".into()),
        Err(error) => return Err(error.to_string()),
    };
    let found: Manifest = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    if (Manifest { files: Vec::new(), ..found.clone() }) != *wanted {
        return Err("made of another checkpoint, or in other formats".into());
    }
    check(path, &found.files, num_threads())
}

/// Compares every file with its hash, `threads` files at a time. Says which
/// differs, if one does.
fn check(path: &Path, files: &[CachedFile], threads: usize) -> Result<(), String> {
    let next = AtomicUsize::new(0);
    let some_of_them = || {
        while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            let same = digest(&path.join(&file.name))
                .map_err(|error| format!("{}: {error}", file.name))
                .map(|found| found == (file.bytes, file.hash));
            if same != Ok(true) {
                // The others need not be read.
                next.store(files.len(), Ordering::Relaxed);
                return same.and(Err(format!("{} is damaged", file.name)));
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let readers: Vec<_> =
            (0..threads.min(files.len())).map(|_| scope.spawn(some_of_them)).collect();
        readers.into_iter().try_for_each(|reader| {
            reader.join().unwrap_or_else(|_| Err("reading it panicked".to_owned()))
        })
    })
}

/// Length and hash of a file.
fn digest(path: &Path) -> io::Result<(u64, u64)> {
    let mut file = File::open(path)?;
    let mut hash = Xxh3::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((bytes, hash.digest())),
            read => {
                hash.update(&buffer[..read]);
                bytes += read as u64;
            }
        }
    }
}

/// Writes a header and what `packing` gives; length and hash of all of it.
fn write_packed(path: &Path, header: &[u8], packing: Packing<'_>) -> io::Result<(u64, u64)> {
    let mut out = Hashed { file: File::create(path)?, hash: Xxh3::new(), bytes: 0 };
    out.write_all(header)?;
    packing.write(&mut out)?;
    Ok((out.bytes, out.hash.digest()))
}

/// A file whose hash is known once it is written.
struct Hashed {
    file: File,
    hash: Xxh3,
    bytes: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A tensor's name without what a path could take for something else.
fn file_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-+".contains(c) { c } else { '_' };
    name.chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::spec::{DataType, HostData, Layout, Spread};

    #[test]
    fn a_file_that_is_written_has_the_hash_that_is_read() {
        let matrix = HostMatrix {
            shape: [1, 1, 96, 64],
            rank: 4,
            data: HostData::BFloat16((0..96 * 64).map(|v| bf16::from_f32(v as f32)).collect()),
            dtype: DataType::BFloat4B,
            layout: Layout::Tile,
            spread: Spread::Cut(3),
        };
        let packing = Packing::new(&matrix, 2).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w");
        let written = write_packed(&path, b"header", packing).unwrap();
        assert_eq!(written, digest(&path).unwrap());
        let mut expected = b"header".to_vec();
        packing.write(&mut expected).unwrap();
        assert!(fs::read(&path).unwrap() == expected);
        assert!(write_packed(&folder.path().join("no/folder"), b"", packing).is_err());
    }

    #[test]
    fn one_damaged_file_of_many_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut files: Vec<_> = (0..20)
            .map(|idx| {
                let name = format!("{idx}.tensorbin");
                let path = folder.path().join(&name);
                fs::write(&path, [idx; 100]).unwrap();
                let (bytes, hash) = digest(&path).unwrap();
                CachedFile { name, bytes, hash }
            })
            .collect();
        for threads in [1, 3, 50] {
            assert_eq!(check(folder.path(), &files, threads), Ok(()));
            for damaged in [0, 13, 19] {
                files[damaged].hash ^= 1;
                let found = check(folder.path(), &files, threads);
                assert_eq!(found, Err(format!("{damaged}.tensorbin is damaged")));
                files[damaged].hash ^= 1;
            }
        }
        fs::remove_file(folder.path().join("7.tensorbin")).unwrap();
        assert!(check(folder.path(), &files, 3).unwrap_err().starts_with("7.tensorbin: "));
    }
}
