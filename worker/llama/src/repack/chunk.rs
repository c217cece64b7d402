//! One chunk: which weights it has, and its file.

use std::fs::File;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::Path;

use super::error::ChunkError;
use crate::checkpoint::{CheckpointError, Consolidated, chunk_name};
use crate::config::LlamaConfig;
use crate::names::{LayerWeight, WeightName};
use crate::pth::{PthFile, PthWriteError, PthWriter};

/// Bytes that are read, and then written, at once.
const PIECE_BYTES: usize = 4 << 20;

/// Whole layers, and in the first chunk what belongs to no layer.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) name: String,
    weights: Vec<WeightName>,
    writer: PthWriter,
}

impl Chunk {
    /// All chunks of the model, of `chunk_size` layers; the last may have fewer.
    pub(super) fn plan(
        source: &Consolidated,
        chunk_size: usize,
    ) -> Result<Vec<Self>, CheckpointError> {
        let num_layers = source.config().num_hidden_layers;
        (0..num_layers)
            .step_by(chunk_size)
            .map(|first| Self::new(source, first, first.saturating_add(chunk_size).min(num_layers)))
            .collect()
    }

    fn new(source: &Consolidated, first: usize, end: usize) -> Result<Self, CheckpointError> {
        let name = chunk_name(first, end - 1);
        let weights = weights(source.config(), first, end);
        let writer = declare(source, name.trim_end_matches(".pth"), &weights)?;
        let writer = writer.map_err(|error| CheckpointError::WrongData {
            name: name.clone(),
            message: error.to_string(),
        })?;
        Ok(Self { name, weights, writer })
    }

    /// Bytes of the file, exactly.
    pub(super) fn num_bytes(&self) -> u64 {
        self.writer.num_bytes()
    }

    /// True when the file at `path` is this chunk of this source: the same
    /// names, types and shapes, and the same values in eight samples of 4 KiB of
    /// every tensor. Who wrote the file does not matter.
    pub(super) fn is_at(
        &self,
        path: &Path,
        source: &Consolidated,
    ) -> Result<bool, CheckpointError> {
        // What cannot be read as a checkpoint is made again.
        let Ok(file) = PthFile::open(path) else { return Ok(false) };
        let tied = source.config().tie_word_embeddings;
        let is_known = |name: &str| {
            let alias = tied && name == WeightName::LmHead.meta();
            alias || self.weights.iter().any(|weight| weight.meta() == name)
        };
        if !file.tensors().keys().all(|name| is_known(name)) {
            return Ok(false);
        }
        for &weight in &self.weights {
            let (dtype, shape) = source.header(weight)?;
            let fits = file.tensors().get(&weight.meta()).is_some_and(|tensor| {
                tensor.dtype == dtype && tensor.shape == shape && tensor.is_contiguous()
            });
            if !fits || !source.is_sampled_in(weight, &file)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes the file. `advance` hears of bytes as they are written, and may
    /// stop it.
    pub(super) fn write(
        &self,
        source: &Consolidated,
        file: File,
        advance: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<File, ChunkError> {
        self.writer.write(file, |name, storage| {
            let weight = self.weights.iter().find(|weight| weight.meta() == name);
            let Some(&weight) = weight else {
                unreachable!("{name} was declared from the list of weights");
            };
            source.read(weight, PIECE_BYTES, |piece| {
                storage.write_all(piece).map_err(PthWriteError::from)?;
                match advance(piece.len() as u64) {
                    ControlFlow::Continue(()) => Ok(()),
                    ControlFlow::Break(()) => Err(ChunkError::Stopped),
                }
            })
        })
    }
}

/// Stored weights of the chunk with layers `first..end`.
fn weights(config: &LlamaConfig, first: usize, end: usize) -> Vec<WeightName> {
    let mut weights = Vec::new();
    if first == 0 {
        weights.extend([WeightName::EmbedTokens, WeightName::Norm]);
        if !config.tie_word_embeddings {
            weights.push(WeightName::LmHead);
        }
    }
    let layers = first..end;
    weights.extend(layers.flat_map(|layer| {
        LayerWeight::ALL.into_iter().map(move |weight| WeightName::Layer(layer, weight))
    }));
    weights
}

fn declare(
    source: &Consolidated,
    top: &str,
    weights: &[WeightName],
) -> Result<Result<PthWriter, PthWriteError>, CheckpointError> {
    let mut headers = Vec::with_capacity(weights.len());
    for &weight in weights {
        headers.push((weight.meta(), source.header(weight)?));
    }
    let tied = source.config().tie_word_embeddings && weights.contains(&WeightName::EmbedTokens);
    let declare = || {
        let mut writer = PthWriter::new(top)?;
        for (name, (dtype, shape)) in headers {
            writer.tensor(&name, dtype, shape)?;
        }
        if tied {
            writer.alias(&WeightName::LmHead.meta(), &WeightName::EmbedTokens.meta())?;
        }
        Ok(writer)
    };
    Ok(declare())
}
