//! A checkpoint of any model's shape that takes no room: every weight is zero,
//! and the file is a hole.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use serde_json::{Map, json};

use super::{config_json, stored_shape};
use crate::config::LlamaConfig;
use crate::names::WeightName;

/// Writes `config.json` and a sparse `model.safetensors` in bf16.
///
/// # Errors
/// When a file cannot be written.
pub fn write_hugging_face(config: &LlamaConfig, directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    std::fs::write(directory.join("config.json"), config_json(config).to_string())?;
    let mut header = Map::new();
    let mut end = 0;
    for name in WeightName::stored(config) {
        let shape = stored_shape(name, config);
        let start = end;
        end += 2 * shape.iter().product::<usize>() as u64;
        let entry = json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] });
        header.insert(name.to_string(), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = File::create(directory.join("model.safetensors"))?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    file.set_len(8 + header.len() as u64 + end)
}
