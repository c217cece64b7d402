//! A model's shape from its small files alone: people plan before they
//! download.

use std::path::Path;

use super::json::{MAX_CONFIG_BYTES, read_small};
use super::{CheckpointError, gguf};
use crate::config::meta::{Params, Stored};
use crate::config::{Llama3Size, LlamaConfig, hf};

/// Rows of Llama 3's embedding table, where `params.json` leaves them to the
/// tokenizer.
const LLAMA_3_VOCABULARY: usize = 128_256;

impl LlamaConfig {
    /// Reads `config.json` or `params.json` of a directory, or a GGUF file's
    /// metadata; no weights need to be there. What only the tensors of a Meta
    /// checkpoint tell is taken as the Llama 3 family has it.
    ///
    /// # Errors
    /// [`CheckpointError`] names the file and what is wrong with it.
    pub fn from_path(path: &Path) -> Result<Self, CheckpointError> {
        let metadata = std::fs::metadata(path)
            .map_err(|source| CheckpointError::Io { path: path.to_owned(), source })?;
        if metadata.is_file() {
            super::check_magic(path)?;
            return Ok(gguf::open(path)?.config);
        }
        let file = |name: &str| path.join(name);
        let (config, params) = (file("config.json"), file("params.json"));
        if config.is_file() {
            return hf::read(&read_small(&config, MAX_CONFIG_BYTES)?)
                .map(|read| read.config)
                .map_err(|source| CheckpointError::Config { path: config, source });
        }
        if !params.is_file() {
            let message = "the directory has neither config.json nor params.json; for a GGUF \
                           model, name the file itself";
            return Err(CheckpointError::unrecognised(path, message));
        }
        from_params(&read_small(&params, MAX_CONFIG_BYTES)?)
            .map_err(|source| CheckpointError::Config { path: params, source })
    }
}

fn from_params(json: &[u8]) -> Result<LlamaConfig, crate::config::ConfigError> {
    let params = Params::parse(json)?;
    let untied = Stored { embedding_rows: LLAMA_3_VOCABULARY, tied: false };
    let config = params.config(untied)?;
    let tied = matches!(config.llama3_size(), Some(Llama3Size::B1 | Llama3Size::B3));
    params.config(Stored { tied, ..untied })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny::family;

    fn params(json: &str) -> Result<LlamaConfig, CheckpointError> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("params.json"), json).unwrap();
        LlamaConfig::from_path(directory.path())
    }

    #[test]
    fn every_member_of_the_family_is_read_from_its_params_alone() {
        for size in Llama3Size::ALL {
            let config = params(&family::params_json(size).to_string());
            assert_eq!(config.unwrap(), family::config(size));
        }
    }

    #[test]
    fn what_is_no_configuration_is_refused_by_name() {
        let text = params(r#"{"dim": 64}"#).unwrap_err().to_string();
        assert!(text.contains("params.json") && text.contains("n_heads"), "{text}");
        let empty = tempfile::tempdir().unwrap();
        let text = LlamaConfig::from_path(empty.path()).unwrap_err().to_string();
        assert!(text.contains("neither config.json nor params.json"), "{text}");
        assert!(LlamaConfig::from_path(Path::new("/no/such/path")).is_err());
    }
}
