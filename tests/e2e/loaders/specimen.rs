//! A small valid checkpoint of every format, and how each is opened and read.

use std::path::{Path, PathBuf};

use gateway::text::TextModel;
use integration_tests::byte_tokenizer;
use llama::tiny::{self, TinyModel};
use llama::{Checkpoint, LlamaConfig, WeightName};
use mesh::Matrix as _;
use tempfile::TempDir;

/// A checkpoint on disk and the one file of it that is going to be damaged.
pub(crate) struct Specimen {
    /// What it is, for messages.
    pub(crate) name: &'static str,
    /// Removed with the specimen.
    _directory: TempDir,
    /// What is opened.
    pub(crate) model: PathBuf,
    /// What is damaged.
    pub(crate) file: PathBuf,
    /// Opens it and reads everything: how a load would go.
    pub(crate) exercise: fn(&Path) -> Result<(), String>,
}

/// One layer, a few kilobytes.
pub(crate) fn config() -> LlamaConfig {
    LlamaConfig {
        hidden_size: 16,
        intermediate_size: 16,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 8,
        vocab_size: 16,
        ..tiny::config()
    }
}

/// Every format that a checkpoint may have, with every file that is parsed.
pub(crate) fn all() -> Vec<Specimen> {
    vec![
        gguf(),
        safetensors("model.safetensors"),
        safetensors("config.json"),
        index(),
        meta("consolidated.00.pth", 1),
        meta("consolidated.01.pth", 2),
        meta("params.json", 1),
        tokenizer_model(),
    ]
}

fn gguf() -> Specimen {
    let directory = directory();
    let file = directory.path().join("tiny.gguf");
    TinyModel::new(config(), 1).write_gguf(&file).expect("writes");
    Specimen {
        name: "GGUF",
        _directory: directory,
        model: file.clone(),
        file,
        exercise: read_weights,
    }
}

fn safetensors(file: &'static str) -> Specimen {
    let directory = directory();
    TinyModel::new(config(), 1).write_hugging_face(directory.path()).expect("writes");
    in_directory(file, directory, file)
}

fn index() -> Specimen {
    let directory = directory();
    TinyModel::new(config(), 1).write_sharded(directory.path(), 2).expect("writes");
    in_directory("safetensors index", directory, "model.safetensors.index.json")
}

/// Meta's layout, with a configuration that its `params.json` can state.
fn meta(file: &'static str, num_shards: usize) -> Specimen {
    let directory = directory();
    let config = LlamaConfig {
        num_key_value_heads: 2,
        rope_theta: 500_000.0,
        max_position_embeddings: 8192,
        ..config()
    };
    TinyModel::new(config, 1).write_meta(directory.path(), num_shards).expect("writes");
    in_directory(file, directory, file)
}

fn tokenizer_model() -> Specimen {
    let directory = directory();
    byte_tokenizer::write(directory.path()).expect("writes");
    let specimen = in_directory("tokenizer.model", directory, "tokenizer.model");
    Specimen { exercise: read_text, ..specimen }
}

fn in_directory(name: &'static str, directory: TempDir, file: &str) -> Specimen {
    let (model, file) = (directory.path().to_owned(), directory.path().join(file));
    Specimen { name, _directory: directory, model, file, exercise: read_weights }
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// Opens a checkpoint and decodes every weight, as far as a model of this size
/// goes: a damaged configuration may well describe a larger one that its file
/// does not hold, and that is an error of opening.
fn read_weights(path: &Path) -> Result<(), String> {
    let checkpoint = Checkpoint::open(path).map_err(|error| error.to_string())?;
    for name in WeightName::stored(checkpoint.config()) {
        let matrix = checkpoint.matrix(name).map_err(|error| error.to_string())?;
        let mut values = vec![0.0; matrix.rows() * matrix.cols()];
        matrix.read_rows(0, &mut values).map_err(|error| error.to_string())?;
    }
    checkpoint.inverse_frequencies().map_err(|error| error.to_string())?;
    Ok(())
}

/// Makes a tokenizer, and encodes with it.
fn read_text(path: &Path) -> Result<(), String> {
    let text = TextModel::from_meta(path).map_err(|error| error.to_string())?;
    let ids = text.tokenizer.encode_text("Grüße <|eot_id|> 1234").map_err(|e| e.to_string())?;
    assert!(ids.iter().all(|&id| (id as usize) < text.tokenizer.vocab_size()));
    Ok(())
}
