//! Weights on disk: a GGUF file, a Hugging Face or a Meta directory, behind one
//! type.
//!
//! Opening reads headers only, and checks there and then that every weight of
//! the model is present in its right shape and that nothing else is, so that
//! what can be wrong with a file is known before anything is loaded.

mod config_only;
mod consolidated;
mod dequant;
mod error;
mod family;
mod fingerprint;
mod gguf;
mod json;
mod meta;
mod meta_files;
mod mllama;
mod pieces;
mod safetensors;
mod storage;
mod weight_file;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use mesh::Matrix;

pub(crate) use consolidated::Consolidated;
pub use error::CheckpointError;
pub use family::NameCheck;
pub(crate) use meta_files::{chunk_layers, chunk_name};
pub use storage::TensorMatrix;
pub(crate) use weight_file::WeightFile;

use crate::config::LlamaConfig;
use crate::names::WeightName;
use crate::rope::inverse_frequencies;
use storage::{RowOrder, TensorStore};

/// Llama 3 scaling in GGUF files: divisors of the rotary frequencies.
const ROPE_FREQS: &str = "rope_freqs.weight";

/// A model's configuration and weights, opened and checked, not yet read.
#[derive(Debug)]
pub struct Checkpoint {
    name: String,
    format: Format,
    config: LlamaConfig,
    store: TensorStore,
    fingerprint: String,
}

/// Which names and row order the checkpoint uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Gguf,
    HuggingFace,
    Meta,
}

impl Checkpoint {
    /// Opens a `.gguf` file; a Hugging Face directory with `config.json` and
    /// `model.safetensors` or `model.safetensors.index.json` and its shards; or a
    /// Meta directory with `params.json` and `consolidated.*.pth`, or
    /// `layers_*.pth` as repacking makes them.
    ///
    /// # Errors
    /// [`CheckpointError`] names the file or tensor and what was expected.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        Self::open_with(path, NameCheck::Enforce)
    }

    /// As [`Self::open`]; a Meta directory may be made to pass under the name of
    /// another model.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(path: &Path, name_check: NameCheck) -> Result<Self, CheckpointError> {
        let metadata = std::fs::metadata(path)
            .map_err(|source| CheckpointError::Io { path: path.to_owned(), source })?;
        let (format, config, name, store) = if metadata.is_dir() {
            match check_directory(path)? {
                Format::Meta => {
                    let (config, store) = meta::open(path)?;
                    if name_check == NameCheck::Enforce {
                        check_name(path, &config)?;
                    }
                    (Format::Meta, config, None, store)
                }
                format => {
                    let (config, store) = safetensors::open(path)?;
                    (format, config, None, store)
                }
            }
        } else if !metadata.is_file() {
            return Err(CheckpointError::unrecognised(path, "neither a file nor a directory"));
        } else {
            check_magic(path)?;
            let opened = gguf::open(path)?;
            (Format::Gguf, opened.config, opened.name, opened.store)
        };
        let fingerprint = fingerprint::compute(&config, &store)?;
        let name = name.unwrap_or_else(|| name_of(path));
        let checkpoint = Self { name, format, config, store, fingerprint };
        checkpoint.verify_complete()?;
        Ok(checkpoint)
    }

    /// The model's shape.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// The model's own name (GGUF), or that of its directory or file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Always `llama`, as yet.
    pub fn architecture(&self) -> &'static str {
        "llama"
    }

    /// 32 hexadecimal digits that change when the weights do, stable across
    /// builds and machines. They cover the configuration, every tensor's name,
    /// format and shape, and eight samples of 4 KiB of each tensor's content;
    /// the same model in another format has another fingerprint.
    pub fn weight_fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// 32 hexadecimal digits that change when the fingerprint does, or a file's
    /// name, size or time: they also tell of an edit that the fingerprint's
    /// samples miss, such as one row of the embedding. What is derived from the
    /// weights and kept must be kept under this.
    pub fn revision(&self) -> String {
        fingerprint::of_revision(&self.fingerprint, &self.store)
    }

    /// A weight, decoded as it is read; rows of q and k in interleaved order.
    /// A tied LM head is the embedding table.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`] for a layer that the model has not.
    pub fn matrix(&self, name: WeightName) -> Result<TensorMatrix<'_>, CheckpointError> {
        let stored = match name {
            WeightName::LmHead if self.config.tie_word_embeddings => WeightName::EmbedTokens,
            name => name,
        };
        let order = match self.format {
            Format::HuggingFace if name.is_rotated() => {
                RowOrder::HalfSplit { head_dim: self.config.head_dim }
            }
            _ => RowOrder::AsStored,
        };
        TensorMatrix::new(&self.store, self.spell(stored), name.shape(&self.config), order)
    }

    /// The rotary frequencies `[head_dim / 2]`, in radians a position, with
    /// Llama 3 scaling, from whichever place this format has for it.
    ///
    /// # Errors
    /// When a GGUF file's divisors cannot be read or are not positive.
    pub fn inverse_frequencies(&self) -> Result<Vec<f32>, CheckpointError> {
        let mut frequencies = inverse_frequencies(&self.config);
        if self.format != Format::Gguf || !self.store.tensors.contains_key(ROPE_FREQS) {
            return Ok(frequencies);
        }
        let name = ROPE_FREQS.to_owned();
        let shape = [1, frequencies.len()];
        let matrix = TensorMatrix::new(&self.store, name, shape, RowOrder::AsStored)?;
        let mut divisors = vec![0.0; frequencies.len()];
        matrix.read_rows(0, &mut divisors).map_err(|error| CheckpointError::WrongData {
            name: ROPE_FREQS.to_owned(),
            message: error.to_string(),
        })?;
        for (frequency, divisor) in frequencies.iter_mut().zip(divisors) {
            if !(divisor > 0.0 && divisor.is_finite()) {
                let message = format!("divisor is {divisor}, must be positive");
                return Err(CheckpointError::WrongData { name: ROPE_FREQS.to_owned(), message });
            }
            *frequency /= divisor;
        }
        Ok(frequencies)
    }

    /// Checks that no file has changed since it was opened.
    ///
    /// # Errors
    /// [`CheckpointError::Changed`].
    pub fn verify_unchanged(&self) -> Result<(), CheckpointError> {
        self.store.files.iter().try_for_each(WeightFile::verify_unchanged)
    }

    fn spell(&self, name: WeightName) -> String {
        match self.format {
            Format::Gguf => name.gguf(),
            Format::HuggingFace => name.to_string(),
            Format::Meta => name.meta(),
        }
    }

    /// Every weight is there in its shape, and no tensor but those.
    fn verify_complete(&self) -> Result<(), CheckpointError> {
        let mut expected = std::collections::BTreeSet::new();
        for name in WeightName::stored(&self.config) {
            self.matrix(name)?;
            expected.insert(self.spell(name));
        }
        self.inverse_frequencies()?;
        for name in self.store.tensors.keys() {
            let harmless = name == ROPE_FREQS
                // Derived from the configuration; old converters wrote them.
                || name.ends_with(".rotary_emb.inv_freq")
                // A second copy of a tied table.
                || name == "lm_head.weight";
            if !harmless && !expected.contains(name) {
                return Err(CheckpointError::UnexpectedTensor { name: name.clone() });
            }
        }
        Ok(())
    }
}

fn name_of(path: &Path) -> String {
    // `.` and `..` have no name of their own before they are resolved.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.map_or_else(|| "llama".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Tells the kinds of directories apart, before anything is parsed.
fn check_directory(path: &Path) -> Result<Format, CheckpointError> {
    let has = |name: &str| path.join(name).is_file();
    let hugging_face = has("config.json");
    // Hugging Face's version may have lost its weights, or never had any.
    let weights = safetensors::NAMES.into_iter().any(has);
    let meta = has("params.json");
    match (hugging_face, meta) {
        (true, false) => Ok(Format::HuggingFace),
        (true, true) if weights => Ok(Format::HuggingFace),
        (_, true) => Ok(Format::Meta),
        (false, false) => {
            let message = if has("consolidated.00.pth") || has("consolidated.pth") {
                "params.json is missing, which belongs to Meta's .pth files"
            } else {
                "the directory has neither config.json (Hugging Face) nor params.json (Meta); \
                 for a GGUF model, name the file itself"
            };
            Err(CheckpointError::unrecognised(path, message))
        }
    }
}

/// Compares the name with the configuration.
fn check_name(path: &Path, config: &LlamaConfig) -> Result<(), CheckpointError> {
    let Some(named) = family::named_in(path) else { return Ok(()) };
    let found = config.llama3_size();
    if found == Some(named) {
        return Ok(());
    }
    let found = found.map_or_else(
        || {
            format!(
                "another model (dim {}, {} layers, {} heads)",
                config.hidden_size, config.num_hidden_layers, config.num_attention_heads
            )
        },
        |size| size.to_string(),
    );
    Err(CheckpointError::NameConflict { path: path.to_owned(), named, found })
}

fn check_magic(path: &Path) -> Result<(), CheckpointError> {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).or_else(
        |error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Ok(()),
            _ => Err(CheckpointError::Io { path: path.to_owned(), source: error }),
        },
    )?;
    if magic == ::gguf::MAGIC {
        return Ok(());
    }
    let message = match path.extension().and_then(|extension| extension.to_str()) {
        Some("safetensors") => "name the directory that it is in, with its config.json",
        Some("pth" | "bin" | "pt") => "name the directory that it is in, with its params.json",
        _ => "not a GGUF file, nor a Hugging Face or Meta directory",
    };
    Err(CheckpointError::unrecognised(path, message))
}

#[cfg(test)]
mod tests;
