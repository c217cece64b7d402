//! Prepared weights on disk between starts: one `.tensorbin` file each, and a
//! manifest that says of what they were made.
//!
//! A folder is complete or not there: it is written beside its place and
//! renamed. What does not match what is asked for, or is damaged, is made anew.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use mesh::{MeshError, WeightCacheUse};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::ops::Ops;
use crate::spec::HostMatrix;

/// Changes when the same weights would be laid out in another way.
const LAYOUT_VERSION: u32 = 1;
const MANIFEST: &str = "manifest.json";

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
        let tensor = ops.pack(make()?)?;
        if let Self::Writing(writing) = self {
            let path = writing.partial.join(&file);
            let kept = ops.dump(&tensor, &path).map_err(|error| error.to_string()).and_then(|()| {
                let (bytes, hash) = digest(&path).map_err(|error| error.to_string())?;
                writing.manifest.files.push(CachedFile { name: file, bytes, hash });
                Ok(())
            });
            if let Err(error) = kept {
                tracing::warn!(path = %path.display(), error, "weights are not kept");
                self.give_up();
            }
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

    fn give_up(&mut self) {
        // Dropped, and removed with it.
        *self = Self::Off;
    }
}

impl Writing {
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
    for file in &found.files {
        let (bytes, hash) =
            digest(&path.join(&file.name)).map_err(|error| format!("{}: {error}", file.name))?;
        if (bytes, hash) != (file.bytes, file.hash) {
            return Err(format!("{} is damaged", file.name));
        }
    }
    Ok(())
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

/// A tensor's name without what a path could take for something else.
fn file_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-+".contains(c) { c } else { '_' };
    name.chars().map(plain).collect()
}
