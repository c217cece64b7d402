//! Meta directories: `params.json` and `.pth` files.
//!
//! The files may be one, or the shards that Meta's model parallelism made of
//! 70B, or chunks of whole layers. Shards are put together while they are
//! read, by a table that says along what each weight was split.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::CheckpointError;
use super::dequant::Encoding;
use super::json::{MAX_CONFIG_BYTES, read_small};
use super::meta_files::{self, Chunk, MetaFiles, shard_name};
use super::pieces::{Axis, Piece, Pieces};
use super::storage::{Place, StoredTensor, TensorStore};
use crate::config::meta::{Params, Stored};
use crate::config::{Llama3Size, LlamaConfig};
use crate::names::{LayerWeight, MetaSplit, WeightName};
use crate::pth::{PthDtype, PthFile, PthTensor};

const PARAMS: &str = "params.json";
/// Before every text weight of a vision model.
const TEXT_PREFIX: &str = "text_model.";
/// Parts of a vision model that text alone does not need.
const VISION_PREFIXES: [&str; 3] =
    ["vision_model.", "text_model.cross_attention_layers.", "text_model.learnable_embedding."];
/// Rotary frequencies, which follow from the configuration.
const ROPE_FREQS: &str = "rope.freqs";

/// Reads the configuration and finds every weight of the text model.
pub(super) fn open(directory: &Path) -> Result<(LlamaConfig, TensorStore), CheckpointError> {
    let params = params(directory)?;
    open_files(directory, &params, &MetaFiles::find(directory)?)
}

/// As [`open`], for repacking: chunks that were made before are not looked at.
pub(super) fn open_consolidated(
    directory: &Path,
) -> Result<(LlamaConfig, TensorStore), CheckpointError> {
    if !directory.join(PARAMS).is_file() {
        let message = "it has no params.json, which Meta's directories have beside \
                       consolidated.00.pth";
        return Err(CheckpointError::unrecognised(directory, message));
    }
    let params = params(directory)?;
    if params.has_vision() {
        let message = "is of a model that sees images: its weights are not repacked, \
                       they are loaded as they are";
        return Err(CheckpointError::malformed(&directory.join(PARAMS), message));
    }
    open_files(directory, &params, &MetaFiles::find_consolidated(directory)?)
}

fn params(directory: &Path) -> Result<Params, CheckpointError> {
    let path = directory.join(PARAMS);
    Params::parse(&read_small(&path, MAX_CONFIG_BYTES)?)
        .map_err(|source| CheckpointError::Config { path, source })
}

fn open_files(
    directory: &Path,
    params: &Params,
    files: &MetaFiles,
) -> Result<(LlamaConfig, TensorStore), CheckpointError> {
    let mut source = Source::default();
    match files {
        MetaFiles::Shards(paths) => {
            for path in paths {
                source.add(path, params)?;
            }
        }
        MetaFiles::Chunks(chunks) => {
            for chunk in chunks {
                source.add(&chunk.path, params)?;
            }
        }
    }
    let config = params
        .config(source.stored(files))
        .map_err(|source| CheckpointError::Config { path: directory.join(PARAMS), source })?;
    source.check_head(&config)?;
    let tensors = match files {
        MetaFiles::Shards(_) => source.join_shards(directory, &config)?,
        MetaFiles::Chunks(chunks) => {
            meta_files::check_chunks(directory, chunks, config.num_hidden_layers)?;
            source.gather_chunks(chunks, &config)?
        }
    };
    source.check_names(&config)?;
    Ok((config, TensorStore { files: source.store.files, tensors }))
}

/// The opened files and the tensors of each, by their names in a text model.
#[derive(Debug, Default)]
struct Source {
    store: TensorStore,
    files: Vec<BTreeMap<String, PthTensor>>,
}

impl Source {
    fn add(&mut self, path: &Path, params: &Params) -> Result<(), CheckpointError> {
        let file = PthFile::open(path)?;
        if let Some(name) = file.first_other_value() {
            let message = format!("{name} is no tensor");
            return Err(CheckpointError::malformed(path, message));
        }
        let (file, tensors) = file.into_parts();
        let text = |(name, tensor): (String, PthTensor)| {
            if !params.has_vision() {
                return Some((name, tensor));
            }
            if VISION_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
                return None;
            }
            let name = name.strip_prefix(TEXT_PREFIX).map(str::to_owned).unwrap_or(name);
            Some((name, tensor))
        };
        self.files.push(tensors.into_iter().filter_map(text).collect());
        self.store.files.push(file);
        Ok(())
    }

    /// What the configuration needs to know of the tensors.
    fn stored(&self, files: &MetaFiles) -> Stored {
        let (embedding, head) = (WeightName::EmbedTokens.meta(), WeightName::LmHead.meta());
        // Alias or absent: both names for one place in every file that has them.
        let tied = self.files.iter().all(|tensors| match tensors.get(&head) {
            Some(head) => tensors.get(&embedding) == Some(head),
            None => true,
        });
        let rows = self
            .files
            .iter()
            .filter_map(|tensors| usize::try_from(*tensors.get(&embedding)?.shape.first()?).ok());
        let embedding_rows = match files {
            MetaFiles::Shards(_) => rows.fold(0, usize::saturating_add),
            MetaFiles::Chunks(_) => rows.max().unwrap_or(0),
        };
        Stored { embedding_rows, tied }
    }

    /// A model that is known to have an LM head of its own must not be served
    /// with its embedding in place of one that was lost.
    fn check_head(&self, config: &LlamaConfig) -> Result<(), CheckpointError> {
        let has_its_own = matches!(
            config.llama3_size(),
            Some(Llama3Size::B8 | Llama3Size::B11 | Llama3Size::B70)
        );
        let name = WeightName::LmHead.meta();
        if has_its_own && !self.files.iter().any(|tensors| tensors.contains_key(&name)) {
            let expected = WeightName::LmHead.shape(config).to_vec();
            return Err(CheckpointError::MissingTensor { name, expected });
        }
        Ok(())
    }

    /// Every weight from its parts in all files.
    fn join_shards(
        &self,
        directory: &Path,
        config: &LlamaConfig,
    ) -> Result<BTreeMap<String, StoredTensor>, CheckpointError> {
        self.check_shard_count(directory, config)?;
        let num_shards = self.files.len();
        let mut joined = BTreeMap::new();
        for weight in WeightName::stored(config) {
            let name = weight.meta();
            let [rows, cols] = weight.shape(config);
            let (axis, num_parts, shape) = match weight.meta_split() {
                MetaSplit::Replicated => (Axis::Rows, 1, [rows, cols]),
                MetaSplit::Rows => (Axis::Rows, num_shards, [rows / num_shards, cols]),
                MetaSplit::Cols => (Axis::Cols, num_shards, [rows, cols / num_shards]),
            };
            if shape.iter().product::<usize>() * num_parts != rows * cols {
                let message =
                    format!("{name} of {rows} x {cols} is not in {num_shards} equal shards");
                return Err(CheckpointError::malformed(directory, message));
            }
            let mut parts = Vec::with_capacity(num_parts);
            // A replicated weight is read from the first file, and must be in all.
            for (file, tensors) in self.files.iter().enumerate() {
                let Some(tensor) = tensors.get(&name) else {
                    return Err(self.missing(file, name, &shape));
                };
                check_shape(&name, tensor, shape)?;
                if parts.len() < num_parts {
                    parts.push(Part { file, tensor });
                }
            }
            let tensor = join(&name, [rows, cols], axis, &parts)?;
            joined.insert(name, tensor);
        }
        Ok(joined)
    }

    /// Compares the number of files with the share that the first has.
    fn check_shard_count(
        &self,
        directory: &Path,
        config: &LlamaConfig,
    ) -> Result<(), CheckpointError> {
        let found = self.files.len();
        let name = WeightName::Layer(0, LayerWeight::QProj).meta();
        let share = self.files[0].get(&name).and_then(|tensor| tensor.shape.first());
        let whole = config.query_size() as u64;
        let Some(&share) = share.filter(|&&share| share > 0 && whole.is_multiple_of(share)) else {
            // Something else is wrong, which the shapes will tell.
            return Ok(());
        };
        let expected = whole / share;
        if expected == found as u64 {
            return Ok(());
        }
        let which = if expected > found as u64 && expected <= 1024 {
            let missing: Vec<_> = (found..expected as usize).map(shard_name).collect();
            format!("{} missing", missing.join(", "))
        } else {
            "remove those that are not of this model".to_owned()
        };
        let message =
            format!("the model is in {expected} shards, of which there are {found}: {which}");
        Err(CheckpointError::malformed(directory, message))
    }

    /// Every weight, whole, from the file that must have it.
    fn gather_chunks(
        &self,
        chunks: &[Chunk],
        config: &LlamaConfig,
    ) -> Result<BTreeMap<String, StoredTensor>, CheckpointError> {
        let mut gathered = BTreeMap::new();
        for weight in WeightName::stored(config) {
            let name = weight.meta();
            let shape = weight.shape(config);
            let mut holders =
                self.files.iter().enumerate().filter(|(_, has)| has.contains_key(&name));
            let Some((file, tensors)) = holders.next() else {
                return Err(CheckpointError::MissingTensor { name, expected: shape.to_vec() });
            };
            let path = self.store.files[file].path();
            if let Some((other, _)) = holders.next() {
                let other = self.store.files[other].path().display();
                let message = format!("{name} is also in {other}");
                return Err(CheckpointError::malformed(path, message));
            }
            let Chunk { first, last, .. } = chunks[file];
            if let WeightName::Layer(layer, _) = weight
                && !(first..=last).contains(&layer)
            {
                let message = format!("has {name}, which its name says it has not");
                return Err(CheckpointError::malformed(path, message));
            }
            let tensor = &tensors[&name];
            check_shape(&name, tensor, shape)?;
            let tensor = join(&name, shape, Axis::Rows, &[Part { file, tensor }])?;
            gathered.insert(name, tensor);
        }
        Ok(gathered)
    }

    /// Every tensor of every file is one that the model has.
    fn check_names(&self, config: &LlamaConfig) -> Result<(), CheckpointError> {
        let mut known: BTreeSet<_> =
            WeightName::stored(config).into_iter().map(WeightName::meta).collect();
        // Under its second name, if the two are tied.
        known.insert(WeightName::LmHead.meta());
        known.insert(ROPE_FREQS.to_owned());
        match self.files.iter().flat_map(BTreeMap::keys).find(|name| !known.contains(*name)) {
            Some(name) => Err(CheckpointError::UnexpectedTensor { name: name.clone() }),
            None => Ok(()),
        }
    }

    fn missing(&self, file: usize, name: String, expected: &[usize]) -> CheckpointError {
        if self.files.len() == 1 {
            return CheckpointError::MissingTensor { name, expected: expected.to_vec() };
        }
        let message = format!("tensor {name} is missing, expected with shape {expected:?}");
        CheckpointError::malformed(self.store.files[file].path(), message)
    }
}

/// A tensor and the index of its file.
struct Part<'a> {
    file: usize,
    tensor: &'a PthTensor,
}

fn check_shape(
    name: &str,
    tensor: &PthTensor,
    [rows, cols]: [usize; 2],
) -> Result<(), CheckpointError> {
    let fits = match *tensor.shape {
        [c] => rows == 1 && c == cols as u64,
        [r, c] => r == rows as u64 && c == cols as u64,
        _ => false,
    };
    if fits {
        return Ok(());
    }
    let (name, found, expected) = (name.to_owned(), tensor.shape.clone(), vec![rows, cols]);
    Err(CheckpointError::WrongShape { name, found, expected })
}

/// One matrix of parts whose shapes have been checked to make it up.
fn join(
    name: &str,
    [rows, cols]: [usize; 2],
    axis: Axis,
    parts: &[Part<'_>],
) -> Result<StoredTensor, CheckpointError> {
    let dtype = parts[0].tensor.dtype;
    let unsupported = |dtype: PthDtype| CheckpointError::UnsupportedType {
        name: name.to_owned(),
        found: dtype.to_string(),
    };
    let encoding = match dtype {
        PthDtype::Bf16 => Encoding::Bf16,
        PthDtype::F16 => Encoding::F16,
        PthDtype::F32 => Encoding::F32,
        other => return Err(unsupported(other)),
    };
    if let Some(other) = parts.iter().find(|part| part.tensor.dtype != dtype) {
        let message =
            format!("is of {dtype} in one shard and of {} in another", other.tensor.dtype);
        return Err(CheckpointError::WrongData { name: name.to_owned(), message });
    }
    let value_bytes = dtype.num_bytes();
    let place = match parts {
        [only] if only.tensor.is_contiguous() => {
            Place::Packed { file: only.file, offset: only.tensor.offset }
        }
        _ => {
            let pieces = parts.iter().map(|part| piece(part, value_bytes)).collect();
            Place::Pieces(Pieces { axis, value_bytes: value_bytes as usize, pieces })
        }
    };
    // Their product is bounded by the configuration's limits.
    let num_bytes = rows as u64 * cols as u64 * value_bytes;
    let shape = match rows {
        1 => vec![cols as u64],
        _ => vec![rows as u64, cols as u64],
    };
    Ok(StoredTensor { place, num_bytes, encoding, shape })
}

fn piece(part: &Part<'_>, value_bytes: u64) -> Piece {
    let tensor = part.tensor;
    let [rows, cols, row_stride, col_stride] = match (&*tensor.shape, &*tensor.strides) {
        (&[rows, cols], &[down, along]) => [rows, cols, down, along],
        (&[cols], &[along]) => [1, cols, 0, along],
        _ => unreachable!("check_shape lets only vectors and matrices pass"),
    };
    Piece {
        file: part.file,
        offset: tensor.offset,
        rows: rows as usize,
        cols: cols as usize,
        // A stride that is never walked may be anything.
        row_stride: if rows == 1 { cols * value_bytes } else { row_stride * value_bytes },
        col_stride: if cols == 1 { value_bytes } else { col_stride * value_bytes },
    }
}

#[cfg(test)]
mod tests;
