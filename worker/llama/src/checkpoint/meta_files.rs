//! The weight files of a Meta directory, by their names.
//!
//! Names are compared whole, and only those of the directory itself: what else
//! lies there is never opened.

use std::path::{Path, PathBuf};

use super::CheckpointError;

/// The largest published checkpoints have 16.
const MAX_FILES: usize = 1024;

/// One kind of weight files; kinds are never mixed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MetaFiles {
    /// Each holds a part of every weight, in order; one file holds everything.
    Shards(Vec<PathBuf>),
    /// Each holds whole layers, in order: what repacking makes.
    Chunks(Vec<Chunk>),
}

/// A file with whole layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunk {
    /// First and last layer.
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) path: PathBuf,
}

/// What a file's name says that it is.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Single,
    Shard(usize),
    Chunk(usize, usize),
}

impl MetaFiles {
    /// Lists the directory. Chunks go over shards, from which they were made.
    pub(super) fn find(directory: &Path) -> Result<Self, CheckpointError> {
        let mut listed = Listed::read(directory)?;
        if listed.chunks.is_empty() {
            return listed.consolidated(directory);
        }
        listed.chunks.sort_by_key(|chunk| (chunk.first, chunk.last));
        Ok(Self::Chunks(listed.chunks))
    }

    /// Lists the directory, without chunks.
    pub(super) fn find_consolidated(directory: &Path) -> Result<Self, CheckpointError> {
        Listed::read(directory)?.consolidated(directory)
    }
}

/// The weight files of a directory, in no order.
#[derive(Debug, Default)]
struct Listed {
    single: Option<PathBuf>,
    shards: Vec<(usize, PathBuf)>,
    chunks: Vec<Chunk>,
}

impl Listed {
    fn read(directory: &Path) -> Result<Self, CheckpointError> {
        let io = |source| CheckpointError::Io { path: directory.to_owned(), source };
        let mut listed = Self::default();
        for entry in std::fs::read_dir(directory).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            let path = directory.join(&name);
            match name.to_str().and_then(kind) {
                Some(Kind::Single) => listed.single = Some(path),
                Some(Kind::Shard(n)) => listed.shards.push((n, path)),
                Some(Kind::Chunk(first, last)) => listed.chunks.push(Chunk { first, last, path }),
                None => {}
            }
        }
        if listed.shards.len().max(listed.chunks.len()) > MAX_FILES {
            let message = format!("has more than {MAX_FILES} weight files");
            return Err(CheckpointError::malformed(directory, message));
        }
        Ok(listed)
    }

    fn consolidated(mut self, directory: &Path) -> Result<MetaFiles, CheckpointError> {
        self.shards.sort();
        let message = match (self.single, self.shards.is_empty()) {
            (Some(single), true) => return Ok(MetaFiles::Shards(vec![single])),
            (Some(_), false) => "holds consolidated.pth beside numbered consolidated files: \
                                 remove those that are not of this model"
                .to_owned(),
            (None, true) if !self.chunks.is_empty() => {
                "holds layers_*.pth, but no consolidated.*.pth from which they were made".to_owned()
            }
            (None, true) => "holds params.json, but no weights: consolidated.00.pth (and the \
                             other shards), consolidated.pth or layers_*.pth is missing"
                .to_owned(),
            (None, false) => {
                match self.shards.iter().enumerate().find(|(n, shard)| *n != shard.0) {
                    None => {
                        let paths = self.shards.into_iter().map(|(_, path)| path).collect();
                        return Ok(MetaFiles::Shards(paths));
                    }
                    Some((n, (other, _))) if *other < n => {
                        format!("holds shard {other} under two names")
                    }
                    Some((n, _)) => format!("{} is missing", shard_name(n)),
                }
            }
        };
        Err(CheckpointError::malformed(directory, message))
    }
}

/// First and last layer of a chunk file of this name.
pub(crate) fn chunk_layers(name: &str) -> Option<(usize, usize)> {
    match kind(name)? {
        Kind::Chunk(first, last) => Some((first, last)),
        _ => None,
    }
}

/// The name of the chunk file with these layers.
pub(crate) fn chunk_name(first: usize, last: usize) -> String {
    format!("layers_{first}-{last}.pth")
}

/// The name of a shard's file.
pub(super) fn shard_name(n: usize) -> String {
    format!("consolidated.{n:02}.pth")
}

/// Checks that the chunks hold every layer once.
pub(super) fn check_chunks(
    directory: &Path,
    chunks: &[Chunk],
    num_layers: usize,
) -> Result<(), CheckpointError> {
    let mut missing = Vec::new();
    let mut next = 0;
    for chunk in chunks {
        let Chunk { first, last, path } = chunk;
        if *first < next {
            let message = format!("layer {first} is also in another layers_*.pth file");
            return Err(CheckpointError::malformed(path, message));
        }
        if *last >= num_layers {
            let message = format!("names layers beyond the model's {num_layers}");
            return Err(CheckpointError::malformed(path, message));
        }
        if *first > next {
            missing.push(range(next, first - 1));
        }
        next = last + 1;
    }
    if next < num_layers {
        missing.push(range(next, num_layers - 1));
    }
    if missing.is_empty() {
        return Ok(());
    }
    let message = format!(
        "layers {} are in no layers_*.pth file; repack the model again",
        missing.join(" and ")
    );
    Err(CheckpointError::malformed(directory, message))
}

fn range(first: usize, last: usize) -> String {
    format!("{first}-{last}")
}

fn kind(name: &str) -> Option<Kind> {
    let stem = name.strip_suffix(".pth")?;
    if stem == "consolidated" {
        return Some(Kind::Single);
    }
    if let Some(number) = stem.strip_prefix("consolidated.") {
        return (number.len() >= 2).then(|| self::number(number))?.map(Kind::Shard);
    }
    let (first, last) = stem.strip_prefix("layers_")?.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some(Kind::Chunk(first, last))
}

/// A decimal number of at most four digits.
fn number(digits: &str) -> Option<usize> {
    let plain = (1..=4).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_names_count() {
        let cases = [
            ("consolidated.pth", Some(Kind::Single)),
            ("consolidated.00.pth", Some(Kind::Shard(0))),
            ("consolidated.07.pth", Some(Kind::Shard(7))),
            ("layers_0-9.pth", Some(Kind::Chunk(0, 9))),
            ("layers_70-79.pth", Some(Kind::Chunk(70, 79))),
            ("consolidated.0.pth", None),
            ("consolidated.-1.pth", None),
            ("consolidated.00.pth.py", None),
            ("consolidated.00.PTH", None),
            ("layers_9-0.pth", None),
            ("layers_0-9.pth.tmp", None),
            ("xlayers_0-9.pth", None),
            ("layers_+0-9.pth", None),
            ("layers_0-99999999999999999999.pth", None),
            ("model.pth", None),
            (".pth", None),
        ];
        for (name, expected) in cases {
            assert_eq!(kind(name), expected, "{name}");
        }
    }
}
