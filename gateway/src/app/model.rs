//! Reading what the gateway needs of a model: its tokenizer, its template, its
//! names and sizes. Weights are not looked at. Blocks on the disk.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use common::model::{ModelError, ModelFiles};
use gguf::Gguf;

use crate::text::{TextError, TextModel};

/// Context of a model that does not say: no limit of ours; its workers' counts.
const UNSTATED_MAX_MODEL_LEN: u32 = 1 << 20;

/// Longest configuration file that is read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Why a model cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is none, or it cannot be read.
    #[error(transparent)]
    Files(#[from] ModelError),
    /// Its tokenizer or template cannot be used.
    #[error("{path}: {source}")]
    Text {
        /// The model.
        path: PathBuf,
        /// What is wrong.
        source: TextError,
    },
    /// Its configuration cannot be used.
    #[error("{path}: {reason}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// A model's text side.
#[derive(Debug)]
pub(super) struct LoadedModel {
    /// Name that clients use.
    pub(super) name: String,
    pub(super) text: TextModel,
    /// The model's own context.
    pub(super) max_model_len: u32,
}

impl LoadedModel {
    /// Reads the model at `path`; `name` goes over its own.
    pub(super) fn read(path: &Path, name: Option<String>) -> Result<Self, LoadError> {
        let files = ModelFiles::locate(path)?;
        let text = TextModel::load(&files)
            .map_err(|source| LoadError::Text { path: files.path().to_owned(), source })?;
        let max_model_len = match &files {
            ModelFiles::Gguf(file) => gguf_context(file)?,
            ModelFiles::HuggingFace(dir) => hugging_face_context(&dir.join("config.json"))?,
            ModelFiles::Meta(dir) => Some(meta_context(&dir.join("params.json"))?),
        };
        Ok(Self {
            name: name.unwrap_or_else(|| files.name()),
            text,
            max_model_len: max_model_len.unwrap_or(UNSTATED_MAX_MODEL_LEN),
        })
    }
}

fn gguf_context(file: &Path) -> Result<Option<u32>, LoadError> {
    let bytes = ModelFiles::gguf_metadata_bytes(file)?;
    let read = || {
        let metadata = Gguf::parse_metadata(&bytes)?;
        let Some(architecture) = metadata.optional_str("general.architecture")? else {
            return Ok(None);
        };
        metadata.optional_u32(&format!("{architecture}.context_length"))
    };
    read().map_err(|error: gguf::GgufError| LoadError::Config {
        path: file.to_owned(),
        reason: error.to_string(),
    })
}

/// Where the model also sees images, the text has a configuration of its own.
fn hugging_face_context(file: &Path) -> Result<Option<u32>, LoadError> {
    let config = read_json(file)?;
    let text = config.get("text_config").unwrap_or(&config);
    match text.get("max_position_embeddings") {
        None => Ok(None),
        Some(value) => value
            .as_u64()
            .and_then(|value| u32::try_from(value).ok())
            .filter(|value| *value > 0)
            .map(Some)
            .ok_or_else(|| refuse(file, format!("max_position_embeddings is {value}"))),
    }
}

/// Meta's file does not state it: it follows from how the model was trained.
fn meta_context(file: &Path) -> Result<u32, LoadError> {
    let params = read_json(file)?;
    // Older files wrap everything.
    let params = params.get("model").filter(|inner| inner.is_object()).unwrap_or(&params);
    let scaled = params.get("use_scaled_rope").and_then(serde_json::Value::as_bool);
    Ok(if scaled == Some(true) { 131_072 } else { 8192 })
}

fn read_json(file: &Path) -> Result<serde_json::Value, LoadError> {
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .and_then(|file| file.take(MAX_CONFIG_BYTES).read_to_end(&mut bytes))
        .map_err(|error| refuse(file, error.to_string()))?;
    // A longer file is cut, and then no JSON.
    serde_json::from_slice(&bytes).map_err(|error| refuse(file, error.to_string()))
}

fn refuse(file: &Path, reason: String) -> LoadError {
    LoadError::Config { path: file.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_model_is_refused_by_its_path() {
        let scratch = tempfile::tempdir().unwrap();
        let check = |path: &Path| {
            let error = LoadedModel::read(path, None).unwrap_err().to_string();
            assert!(error.contains(&*path.to_string_lossy()), "{error}");
        };
        check(Path::new("/no/such/model"));
        check(scratch.path());
        let file = scratch.path().join("bad.gguf");
        std::fs::write(&file, b"GGUF").unwrap();
        check(&file);
        for (config, tokenizer) in [("{}", "{}"), ("[", "{}"), ("{}", "")] {
            let dir = scratch.path().join("hf");
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("config.json"), config).unwrap();
            std::fs::write(dir.join("tokenizer.json"), tokenizer).unwrap();
            check(&dir);
        }
        let dir = scratch.path().join("meta");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("params.json"), "{}").unwrap();
        std::fs::write(dir.join("tokenizer.model"), "").unwrap();
        check(&dir);
    }

    #[test]
    fn a_directorys_context_is_a_positive_number() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("config.json");
        let context = |text: &str| {
            std::fs::write(&file, text).unwrap();
            hugging_face_context(&file)
        };
        assert_eq!(context("{}").unwrap(), None);
        assert_eq!(context(r#"{"max_position_embeddings":8192}"#).unwrap(), Some(8192));
        let vision = r#"{"text_config":{"max_position_embeddings":4096}}"#;
        assert_eq!(context(vision).unwrap(), Some(4096));
        for bad in ["0", "-1", "1e30", "\"x\"", "null", "4294967296"] {
            context(&format!("{{\"max_position_embeddings\":{bad}}}")).unwrap_err();
        }
    }

    #[test]
    fn metas_context_follows_from_the_scaled_frequencies() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("params.json");
        let context = |text: &str| {
            std::fs::write(&file, text).unwrap();
            meta_context(&file)
        };
        assert_eq!(context(r#"{"use_scaled_rope":true}"#).unwrap(), 131_072);
        assert_eq!(context(r#"{"model":{"use_scaled_rope":true}}"#).unwrap(), 131_072);
        assert_eq!(context(r#"{"dim":4096}"#).unwrap(), 8192);
        context("{").unwrap_err();
    }
}
