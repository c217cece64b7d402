//! GGUF files: one file with metadata and tensors.

use std::path::Path;

use gguf::{GgmlType, Gguf};

use super::dequant::Encoding;
use super::storage::{Place, StoredTensor, TensorStore};
use super::{CheckpointError, WeightFile};
use crate::config::{LlamaConfig, gguf as config};

/// What a GGUF file says about itself.
pub(super) struct Opened {
    pub(super) config: LlamaConfig,
    /// `general.name`
    pub(super) name: Option<String>,
    pub(super) store: TensorStore,
}

/// Reads the configuration and finds every tensor.
pub(super) fn open(path: &Path) -> Result<Opened, CheckpointError> {
    let file = WeightFile::open(path)?;
    let mapped = file.map()?;
    let gguf = Gguf::parse(&mapped)
        .map_err(|error| CheckpointError::malformed(path, error.to_string()))?;
    let config = config::parse(&gguf)
        .map_err(|source| CheckpointError::Config { path: path.to_owned(), source })?;
    let name = gguf
        .metadata()
        .optional_str("general.name")
        .map_err(|error| CheckpointError::malformed(path, error.to_string()))?
        .map(str::to_owned);
    let mut store = TensorStore::default();
    for tensor in gguf.tensors() {
        let tensor = tensor.map_err(|error| CheckpointError::malformed(path, error.to_string()))?;
        let stored = StoredTensor {
            // The parser's slices lie in the mapping; their distance from its
            // start is their offset in the file.
            place: Place::Packed {
                file: 0,
                offset: (tensor.data.as_ptr().addr() - mapped.as_ptr().addr()) as u64,
            },
            num_bytes: tensor.data.len() as u64,
            encoding: encoding(tensor.ggml_type),
            shape: tensor.dims().iter().rev().copied().collect(),
        };
        store.tensors.insert(tensor.name.to_owned(), stored);
    }
    drop(mapped);
    store.files.push(file);
    Ok(Opened { config, name, store })
}

fn encoding(ggml_type: GgmlType) -> Encoding {
    match ggml_type {
        GgmlType::F32 => Encoding::F32,
        GgmlType::F16 => Encoding::F16,
        GgmlType::BF16 => Encoding::Bf16,
        GgmlType::Q8_0 => Encoding::Q8_0,
        GgmlType::Q4_0 => Encoding::Q4_0,
        GgmlType::Q4_1 => Encoding::Q4_1,
        GgmlType::Q4_K => Encoding::Q4K,
        GgmlType::Q5_K => Encoding::Q5K,
        GgmlType::Q6_K => Encoding::Q6K,
    }
}
