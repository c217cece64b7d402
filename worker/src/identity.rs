//! What this worker is: the domain form of `Describe`.

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::Path;

use common::model::ModelFiles;
use mesh::StepRules;
use serde_json::Value as Json;

/// Llama 3's own ends of a turn, which Meta's `tokenizer.model` does not state:
/// `<|end_of_text|>`, `<|eom_id|>`, `<|eot_id|>`.
const META_END_IDS: [u32; 3] = [128_001, 128_008, 128_009];

/// Longest configuration file that is read for the ends of a turn.
const MAX_JSON_BYTES: u64 = 1 << 20;

/// Everything that a gateway asks before it sends work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The model.
    pub model: ModelIdentity,
    /// What it runs on.
    pub device: DeviceIdentity,
    /// What fits.
    pub limits: Limits,
    /// What the mesh asks of steps.
    pub rules: StepRules,
    /// Whether blocks are found again by content.
    pub prefix_cache: bool,
}

/// The model that is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelIdentity {
    /// Name that clients use.
    pub name: String,
    /// For example "llama".
    pub architecture: String,
    /// Changes when the weights do.
    pub weight_fingerprint: String,
    /// Changes when the ids mean other text.
    pub tokenizer_fingerprint: String,
    /// Ids are below this.
    pub vocab_size: u32,
    /// Ids after which the model itself ends a turn; sorted.
    pub eos_token_ids: Vec<u32>,
}

/// The mesh and its number formats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceIdentity {
    /// "CPU", "N150", "N300" or "T3K".
    pub name: String,
    /// The card whose plan and limits simulated chips follow.
    pub simulates: Option<String>,
    /// Chips in the mesh.
    pub num_chips: u32,
    /// The policy's name.
    pub optimizations: String,
    /// Stored type of most weights.
    pub weight_dtype: String,
    /// Stored type of keys and values.
    pub kv_dtype: String,
    /// Precision of the logits that sampling sees.
    pub logits_dtype: String,
}

/// What a request, a step and the memory may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most tokens of one sequence, prompt and answer together.
    pub max_model_len: u32,
    /// Most sequences resident in one step.
    pub max_num_seqs: u32,
    /// Most tokens computed in one step.
    pub max_num_batched_tokens: u32,
    /// Blocks of KV cache.
    pub num_kv_blocks: u32,
    /// Tokens in one block.
    pub kv_block_size: u32,
    /// Most alternatives reported beside a token.
    pub max_logprobs: u32,
}

/// The ids after which the model ends a turn, from wherever its files state
/// them; sorted, below `vocab_size`. None are found in files that state none:
/// then only requests' own stop ids and lengths end an answer.
///
/// Blocks on the disk.
#[must_use]
pub fn eos_token_ids(files: &ModelFiles, vocab_size: u32) -> Vec<u32> {
    let mut ids = match files {
        ModelFiles::Gguf(path) => gguf_ids(path),
        ModelFiles::HuggingFace(dir) => {
            let mut ids = json_ids(&dir.join("generation_config.json"));
            ids.extend(json_ids(&dir.join("config.json")));
            ids
        }
        ModelFiles::Meta(_) => META_END_IDS.to_vec(),
    };
    ids.retain(|id| *id < vocab_size);
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn gguf_ids(path: &Path) -> Vec<u32> {
    let Ok(metadata) = ModelFiles::gguf_metadata_bytes(path) else { return Vec::new() };
    let Ok(metadata) = gguf::Gguf::parse_metadata(&metadata) else { return Vec::new() };
    ["eos", "eot", "eom"]
        .into_iter()
        .filter_map(|name| {
            metadata.optional_u32(&format!("tokenizer.ggml.{name}_token_id")).ok().flatten()
        })
        .collect()
}

/// `eos_token_id` is one id or a list of them.
fn json_ids(path: &Path) -> Vec<u32> {
    let Ok(file) = File::open(path) else { return Vec::new() };
    // A longer file is cut, and then no JSON.
    let Ok(json) = serde_json::from_reader::<_, Json>(BufReader::new(file.take(MAX_JSON_BYTES)))
    else {
        return Vec::new();
    };
    let id = |value: &Json| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match &json["eos_token_id"] {
        Json::Array(values) => values.iter().filter_map(id).collect(),
        value => id(value).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_turn_come_from_every_file_that_states_them() {
        let dir = tempfile::tempdir().unwrap();
        let files = ModelFiles::HuggingFace(dir.path().to_owned());
        assert_eq!(eos_token_ids(&files, 100), [0_u32; 0]);
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("config.json", r#"{"eos_token_id": 9}"#);
        assert_eq!(eos_token_ids(&files, 100), [9]);
        write("generation_config.json", r#"{"eos_token_id": [12, 9, 3, 100, -1, "x"]}"#);
        assert_eq!(eos_token_ids(&files, 100), [3, 9, 12]);
        let long = format!(r#"{{"eos_token_id": 5{}}}"#, " ".repeat(MAX_JSON_BYTES as usize));
        for bad in ["not json", &long] {
            write("generation_config.json", bad);
            assert_eq!(eos_token_ids(&files, 100), [9]);
        }
        let meta = ModelFiles::Meta(dir.path().to_owned());
        assert_eq!(eos_token_ids(&meta, 128_256), META_END_IDS);
    }
}
