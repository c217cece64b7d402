//! Packed weights kept in a file, so that only the first start of a model packs
//! them.
//!
//! The first start writes each weight as it is packed, under another name, and
//! gives the file its name when everything is on the disk. A later start maps
//! it: nothing is packed, copied, or read from the checkpoint. What it maps is
//! checked against checksums before it is used, weight by weight; a file that is
//! damaged, or of another checkpoint, policy, number of chips or program, is
//! written again. Whatever goes wrong with it, the model loads, from the
//! checkpoint.

mod checksum;
mod claim;
mod layout;
mod reader;
mod writer;

use std::io;
use std::path::{Path, PathBuf};

use kernels::{Format, Pool};
use mesh::{DType, Matrix, MeshError, WeightCacheUse};

use crate::weights::{Weight, format_of};
use layout::Identity;
use reader::Reader;
use writer::Writer;

/// Where to keep a model's packed weights, and what they are made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightCacheFile {
    /// The file; its directory is made if it is missing.
    pub path: PathBuf,
    /// Changes when the weights do.
    pub checkpoint: String,
    /// Number formats by kind of weight, in words.
    pub policy: String,
}

/// Why a file's weights are not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// There is none yet.
    Absent,
    /// Something is there that is not to be replaced.
    NoFile,
    /// It was written for something else.
    Stale(String),
    /// It is not what was written.
    Damaged(String),
}

/// Which weight, in words: the names of its parts, their shapes, how they are
/// cut, and the number format.
#[derive(Debug)]
pub(crate) struct WeightKey {
    pub(crate) name: String,
    pub(crate) placement: Placement,
    pub(crate) format: Format,
}

/// What a weight is on the chips.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    Gain,
    Shards,
}

impl WeightKey {
    pub(crate) fn column_parallel(parts: &[&dyn Matrix], dtype: DType) -> Self {
        Self::new("column-parallel", parts, Placement::Shards, dtype)
    }

    pub(crate) fn row_parallel(matrix: &dyn Matrix, dtype: DType) -> Self {
        Self::new("row-parallel", &[matrix], Placement::Shards, dtype)
    }

    pub(crate) fn embedding(table: &dyn Matrix, dtype: DType) -> Self {
        Self::new("embedding", &[table], Placement::Shards, dtype)
    }

    pub(crate) fn gain(gain: &dyn Matrix) -> Self {
        Self::new("gain", &[gain], Placement::Gain, DType::F32)
    }

    fn new(cut: &str, parts: &[&dyn Matrix], placement: Placement, dtype: DType) -> Self {
        let parts: Vec<String> = parts
            .iter()
            .map(|part| format!("{} [{}, {}]", part.name(), part.rows(), part.cols()))
            .collect();
        let name = format!("{} ({cut}, {dtype})", parts.join(" + "));
        Self { name, placement, format: format_of(dtype) }
    }
}

/// A mesh's weights on disk, if it keeps them there.
#[derive(Debug, Default)]
pub(crate) enum WeightCache {
    /// It does not, or cannot.
    #[default]
    Off,
    /// They are there, as far as is known.
    Reading { path: PathBuf, identity: Identity, reader: Reader },
    /// They will be.
    Writing { path: PathBuf, identity: Identity, writer: Writer },
}

impl WeightCache {
    /// Looks at the file; where it cannot be used, begins to write it.
    pub(crate) fn open(file: WeightCacheFile, num_chips: usize) -> Self {
        let (path, identity) = identity_of(file, num_chips);
        match Reader::open(&path, &identity) {
            Ok(reader) => {
                // What is left of another model's first start, if anything.
                let _ = claim::remove_orphan(&writer::unfinished_path(&path));
                Self::Reading { path, identity, reader }
            }
            Err(unusable) => Self::rebuild(path, identity, &unusable),
        }
    }

    /// A weight, from the file where it is there, else by `pack`, for the file.
    pub(crate) fn load(
        &mut self,
        pool: &Pool,
        key: &WeightKey,
        pack: impl FnOnce() -> Result<Weight, MeshError>,
    ) -> Result<Weight, MeshError> {
        if let Self::Reading { reader, .. } = self {
            match reader.take(pool, key) {
                Ok(weight) => return Ok(weight),
                Err(how) => self.replace(pool, how),
            }
        }
        let weight = pack()?;
        if let Self::Writing { path, writer, .. } = self
            && let Err(error) = writer.append(pool, &key.name, &weight)
        {
            give_up(path, &error);
            *self = Self::Off;
        }
        Ok(weight)
    }

    /// The last weight has been loaded.
    pub(crate) fn finish(&mut self) -> WeightCacheUse {
        match std::mem::take(self) {
            Self::Off => WeightCacheUse::Unused,
            Self::Reading { path, .. } => {
                tracing::info!("the weights came from the weight cache {}", path.display());
                WeightCacheUse::Hit
            }
            Self::Writing { path, identity, writer } => match writer.finish(identity) {
                Ok(num_bytes) => {
                    tracing::info!(num_bytes, "wrote the weight cache {}", path.display());
                    WeightCacheUse::Written
                }
                Err(error) => {
                    give_up(&path, &error);
                    WeightCacheUse::Unused
                }
            },
        }
    }

    /// Goes on without a file in which something is wrong, and writes another,
    /// beginning with what was right.
    fn replace(&mut self, pool: &Pool, how: String) {
        let Self::Reading { path, identity, reader } = std::mem::take(self) else { return };
        *self = Self::rebuild(path, identity, &Unusable::Damaged(how));
        if let Self::Writing { path, writer, .. } = self
            && let Err(error) = writer.carry_over(pool, &reader)
        {
            give_up(path, &error);
            *self = Self::Off;
        }
    }

    /// Begins to write the file, and says why, in one line.
    fn rebuild(path: PathBuf, identity: Identity, unusable: &Unusable) -> Self {
        let shown = path.display();
        let what = match unusable {
            Unusable::Absent => format!("there is no weight cache {shown} yet"),
            Unusable::NoFile => {
                tracing::warn!("{shown} is not a regular file; going without a weight cache");
                return Self::Off;
            }
            Unusable::Stale(how) => format!("weight cache {shown} is stale: {how}"),
            Unusable::Damaged(how) => format!("weight cache {shown} is damaged: {how}"),
        };
        match (Writer::begin(&path), unusable) {
            (Ok(Some(writer)), Unusable::Absent) => {
                tracing::info!("{what}; writing it");
                Self::Writing { path, identity, writer }
            }
            (Ok(Some(writer)), _) => {
                tracing::warn!("{what}; rebuilding");
                Self::Writing { path, identity, writer }
            }
            (Ok(None), _) => {
                tracing::warn!("{what}; another process is writing it, going without");
                Self::Off
            }
            (Err(error), _) => {
                tracing::warn!("{what}, and it cannot be written; going without: {error}");
                Self::Off
            }
        }
    }
}

/// Where the file is, and what it must have been written for.
fn identity_of(file: WeightCacheFile, num_chips: usize) -> (PathBuf, Identity) {
    let WeightCacheFile { path, checkpoint, policy } = file;
    let packer =
        format!("version {}, layout {}", env!("CARGO_PKG_VERSION"), kernels::LAYOUT_VERSION);
    (path, Identity { checkpoint, policy, num_chips: num_chips as u64, packer })
}

/// Says that no file will be written after all.
fn give_up(path: &Path, error: &io::Error) {
    let path = path.display();
    tracing::warn!("cannot write the weight cache {path}; going without: {error}");
}

#[cfg(test)]
mod tests;
