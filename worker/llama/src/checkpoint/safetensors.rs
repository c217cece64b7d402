//! Hugging Face directories: `config.json` and safetensors files.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::dequant::Encoding;
use super::json::{MAX_CONFIG_BYTES, read_small};
use super::storage::{Place, StoredTensor, TensorStore};
use super::{CheckpointError, WeightFile, mllama};
use crate::config::{LlamaConfig, hf};

/// A header is parsed into memory several times its size.
const MAX_HEADER_BYTES: u64 = 16 << 20;
const MAX_TENSORS: usize = 65_536;
const MAX_INDEX_BYTES: u64 = 16 << 20;
/// The largest published checkpoints have some 200.
const MAX_SHARDS: usize = 1024;

/// What a directory must have one of.
pub(super) const NAMES: [&str; 2] = [SINGLE, INDEX];

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Reads the configuration and finds every tensor.
pub(super) fn open(directory: &Path) -> Result<(LlamaConfig, TensorStore), CheckpointError> {
    let path = directory.join("config.json");
    let hf::HfConfig { config, cross_attention_layers } =
        hf::read(&read_small(&path, MAX_CONFIG_BYTES)?)
            .map_err(|source| CheckpointError::Config { path, source })?;
    let index = directory.join(INDEX);
    let mut store = TensorStore::default();
    if directory.join(SINGLE).is_file() {
        add_file(&mut store, &directory.join(SINGLE))?;
    } else if index.is_file() {
        let weight_map = read_index(&index)?;
        let shards: BTreeSet<&str> = weight_map.values().map(String::as_str).collect();
        if shards.len() > MAX_SHARDS {
            let message = format!("names {} files, at most {MAX_SHARDS} are read", shards.len());
            return Err(CheckpointError::malformed(&index, message));
        }
        for shard in shards {
            add_file(&mut store, &directory.join(shard))?;
        }
        check_index(&store, &index, &weight_map)?;
    } else {
        let message = format!("has neither {SINGLE} nor {INDEX}");
        return Err(CheckpointError::malformed(directory, message));
    }
    if !cross_attention_layers.is_empty() {
        store = mllama::text_model(store, &config, &cross_attention_layers)?;
    }
    Ok((config, store))
}

/// Tensor name → file name, the latter checked to be one.
fn read_index(path: &Path) -> Result<HashMap<String, String>, CheckpointError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let index: Index = serde_json::from_slice(&read_small(path, MAX_INDEX_BYTES)?)
        .map_err(|error| CheckpointError::malformed(path, error.to_string()))?;
    for shard in index.weight_map.values() {
        let plain = shard.ends_with(".safetensors")
            && !shard.starts_with('.')
            && !shard.contains(['/', '\\', '\0']);
        if !plain {
            let message = format!("names the file {shard:?}, must be a plain *.safetensors name");
            return Err(CheckpointError::malformed(path, message));
        }
    }
    Ok(index.weight_map)
}

/// The index and the files must agree on where every tensor is.
fn check_index(
    store: &TensorStore,
    path: &Path,
    weight_map: &HashMap<String, String>,
) -> Result<(), CheckpointError> {
    for (name, shard) in weight_map {
        let found = store.tensors.get(name).map(|tensor| store.files[tensor.file()].path());
        if found.and_then(Path::file_name) != Some(shard.as_ref()) {
            let message = format!("says that {name} is in {shard}, where it is not");
            return Err(CheckpointError::malformed(path, message));
        }
    }
    Ok(())
}

/// Adds a file and its tensors to the store.
pub(super) fn add_file(store: &mut TensorStore, path: &Path) -> Result<(), CheckpointError> {
    let file = WeightFile::open(path)?;
    let mut prefix = [0; 8];
    if file.num_bytes() < 8 {
        return Err(CheckpointError::malformed(path, "shorter than the 8 bytes of its prefix"));
    }
    file.read_at(0, &mut prefix)?;
    let header_bytes = u64::from_le_bytes(prefix);
    let max = MAX_HEADER_BYTES.min(file.num_bytes() - 8);
    if header_bytes > max {
        let message = format!("header is {header_bytes} bytes, at most {max} are possible");
        return Err(CheckpointError::malformed(path, message));
    }
    let mapped = file.map()?;
    let data_start = 8 + header_bytes as usize;
    // The file may be shorter by now than it was when it was opened.
    let header = mapped
        .get(8..data_start)
        .ok_or_else(|| CheckpointError::Changed { path: path.to_owned() })?;
    let _: Header = serde_json::from_slice(header)
        .map_err(|error| CheckpointError::malformed(path, error.to_string()))?;
    let (_, metadata) = SafeTensors::read_metadata(&mapped)
        .map_err(|error| CheckpointError::malformed(path, error.to_string()))?;
    let index = store.files.len();
    for (name, info) in metadata.tensors() {
        let encoding = match info.dtype {
            Dtype::F32 => Encoding::F32,
            Dtype::F16 => Encoding::F16,
            Dtype::BF16 => Encoding::Bf16,
            other => {
                let found = format!("{other:?}");
                return Err(CheckpointError::UnsupportedType { name, found });
            }
        };
        let (start, end) = info.data_offsets;
        let tensor = StoredTensor {
            place: Place::Packed { file: index, offset: (data_start + start) as u64 },
            num_bytes: (end - start) as u64,
            encoding,
            shape: info.shape.iter().map(|&size| size as u64).collect(),
        };
        if let Some(other) = store.tensors.insert(name.clone(), tensor) {
            let other = store.files[other.file()].path().display();
            let message = format!("{name} is also in {other}");
            return Err(CheckpointError::malformed(path, message));
        }
    }
    drop(mapped);
    store.files.push(file);
    Ok(())
}

/// Counts a header's entries before they are built, and refuses a name that
/// comes twice, of which a map would silently keep the last.
struct Header;

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a safetensors header")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        use serde::de::Error;
        let mut names = BTreeSet::new();
        while let Some(name) = map.next_key::<String>()? {
            map.next_value::<IgnoredAny>()?;
            if names.len() == MAX_TENSORS {
                return Err(A::Error::custom(format!(
                    "header has more than {MAX_TENSORS} entries"
                )));
            }
            if names.contains(&name) {
                return Err(A::Error::custom(format!("{name} comes twice in the header")));
            }
            names.insert(name);
        }
        Ok(Header)
    }
}

#[cfg(test)]
mod tests;
