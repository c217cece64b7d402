//! Meta directories of one model in all their forms, and what is wrong with
//! others.

mod faults;
mod layouts;

use std::fs;
use std::path::Path;

use mesh::Matrix as _;
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use crate::checkpoint::Checkpoint;
use crate::config::LlamaConfig;
use crate::names::{MetaSplit, WeightName};
use crate::pth::crafted::{self, Dtype};
use crate::tiny::{self, TinyModel};

/// Name, shape and values of a tensor.
type Tensor = (String, Vec<usize>, Vec<f32>);

/// Heads and KV heads for 8 shards; `multiple_of` makes the MLP's width.
fn config() -> LlamaConfig {
    LlamaConfig {
        hidden_size: 64,
        intermediate_size: 192,
        num_hidden_layers: 3,
        num_attention_heads: 16,
        num_key_value_heads: 8,
        head_dim: 4,
        vocab_size: 64,
        rope_theta: 500_000.0,
        max_position_embeddings: 8192,
        ..tiny::config()
    }
}

fn params(config: &LlamaConfig) -> Json {
    json!({
        "dim": config.hidden_size, "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads, "n_kv_heads": config.num_key_value_heads,
        "vocab_size": config.vocab_size, "multiple_of": 96, "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta, "use_scaled_rope": config.rope_scaling.is_some(),
    })
}

/// The share of a weight that one of so many shards has.
fn share(model: &TinyModel, name: WeightName, shard: usize, num_shards: usize) -> Tensor {
    let [rows, cols] = name.shape(model.config());
    let values = model.weight(name);
    let (shape, values) = match name.meta_split() {
        MetaSplit::Replicated => (vec![cols], values.to_vec()),
        MetaSplit::Rows => {
            let rows = rows / num_shards;
            (vec![rows, cols], values[shard * rows * cols..][..rows * cols].to_vec())
        }
        MetaSplit::Cols => {
            let part = cols / num_shards;
            let rows_of = values.chunks(cols).flat_map(|row| &row[shard * part..][..part]);
            (vec![rows, part], rows_of.copied().collect())
        }
    };
    (name.meta(), shape, values)
}

fn tensors(model: &TinyModel, shard: usize, num_shards: usize) -> Vec<Tensor> {
    let names = WeightName::stored(model.config());
    names.into_iter().map(|name| share(model, name, shard, num_shards)).collect()
}

fn directory(config: &LlamaConfig) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("params.json"), params(config).to_string()).unwrap();
    directory
}

fn write(directory: &TempDir, name: &str, tensors: &[Tensor]) {
    fs::write(directory.path().join(name), crafted::dense(tensors, Dtype::F32)).unwrap();
}

fn write_shards(directory: &TempDir, model: &TinyModel, num_shards: usize) {
    for shard in 0..num_shards {
        let name = format!("consolidated.{shard:02}.pth");
        write(directory, &name, &tensors(model, shard, num_shards));
    }
}

/// Chunks that end before these layers; the first has what is in no layer.
fn write_chunks(directory: &TempDir, model: &TinyModel, ends: &[usize]) {
    let mut first = 0;
    for &end in ends {
        let in_chunk = |name: &WeightName| match name {
            WeightName::Layer(layer, _) => (first..end).contains(layer),
            _ => first == 0,
        };
        let names = WeightName::stored(model.config()).into_iter().filter(in_chunk);
        let tensors: Vec<_> = names.map(|name| share(model, name, 0, 1)).collect();
        write(directory, &format!("layers_{first}-{}.pth", end - 1), &tensors);
        first = end;
    }
}

fn values(checkpoint: &Checkpoint, name: WeightName) -> Vec<f32> {
    let matrix = checkpoint.matrix(name).unwrap();
    let mut values = vec![0.0; matrix.rows() * matrix.cols()];
    matrix.read_rows(0, &mut values).unwrap();
    values
}

/// Opens it and compares every weight; returns the fingerprint.
fn check(path: &Path, model: &TinyModel) -> String {
    let checkpoint = Checkpoint::open(path).unwrap();
    assert_eq!(checkpoint.config(), model.config());
    for name in WeightName::stored(model.config()).into_iter().chain([WeightName::LmHead]) {
        assert!(values(&checkpoint, name) == model.weight(name), "{name}");
    }
    checkpoint.verify_unchanged().unwrap();
    checkpoint.weight_fingerprint().to_owned()
}

fn error_of(path: &Path) -> String {
    Checkpoint::open(path).unwrap_err().to_string()
}
