//! `llama-mesh repack` on the shards of a small model.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use integration_tests::sandbox::executable;
use llama::tiny::{self, TinyModel};
use llama::{Checkpoint, LlamaConfig, WeightName};
use mesh::Matrix as _;
use serde_json::Value;

/// A KV head for each of eight shards, as 70B has.
fn like_70b() -> TinyModel {
    let config = LlamaConfig {
        hidden_size: 128,
        intermediate_size: 256,
        num_hidden_layers: 5,
        num_attention_heads: 16,
        num_key_value_heads: 8,
        head_dim: 8,
        vocab_size: 320,
        ..tiny::config()
    };
    TinyModel::new(config, 70)
}

fn repack(checkpoint: &Path, output: &Path, more: &[&str]) -> Output {
    Command::new(executable())
        .arg("repack")
        .args([checkpoint, output])
        .args(more)
        .output()
        .expect("the executable starts")
}

fn report(output: &Output) -> Value {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    serde_json::from_slice(&output.stdout).expect("one JSON object on standard output")
}

/// Every weight that the loader finds there, in its order.
fn weights(directory: &Path) -> Vec<Vec<f32>> {
    let checkpoint = Checkpoint::open(directory).expect("the loader reads it");
    WeightName::stored(checkpoint.config())
        .into_iter()
        .map(|name| {
            let matrix = checkpoint.matrix(name).expect("a weight of the model");
            let mut values = vec![0.0; matrix.rows() * matrix.cols()];
            matrix.read_rows(0, &mut values).expect("the files do not change");
            values
        })
        .collect()
}

#[test]
fn the_loader_reads_the_same_weights_from_chunks_as_from_shards() {
    let root = tempfile::tempdir().expect("a directory");
    let (checkpoint, output) = (root.path().join("checkpoint"), root.path().join("made/by/repack"));
    like_70b().write_meta(&checkpoint, 8).expect("writable");
    fs::write(checkpoint.join("tokenizer.model"), "tokens").expect("writable");
    let before = weights(&checkpoint);

    let first = report(&repack(&checkpoint, &output, &["--chunk-size", "2", "--json"]));
    let names: Vec<_> = first["files"].as_array().expect("files").iter().collect();
    let expected = ["layers_0-1.pth", "layers_2-3.pth", "layers_4-4.pth"];
    assert_eq!(names.len(), expected.len());
    let mut num_bytes = 0;
    for (file, name) in names.iter().zip(expected) {
        assert_eq!((&file["name"], &file["written"]), (&name.into(), &true.into()));
        let on_disk = fs::metadata(output.join(name)).expect("was written").len();
        assert_eq!(file["bytes"], on_disk);
        num_bytes += on_disk;
    }
    assert_eq!(first["written_bytes"], num_bytes);
    assert_eq!(first["copied"], serde_json::json!(["params.json", "tokenizer.model"]));
    assert_eq!(weights(&output), before);

    let second = report(&repack(&checkpoint, &output, &["--chunk-size", "2", "--json"]));
    assert_eq!(second["written_bytes"], 0);
    let mixed = repack(&checkpoint, &output, &[]);
    assert_eq!(mixed.status.code(), Some(1));
    let error = String::from_utf8_lossy(&mixed.stderr);
    assert!(error.contains("layers_0-1.pth") && error.contains("--force"), "{error}");

    // Into the checkpoint's own directory, where the loader then leaves the
    // shards alone: they could not even be opened.
    let text = repack(&checkpoint, &checkpoint, &[]);
    let lines = String::from_utf8_lossy(&text.stdout);
    assert!(lines.contains("written") && lines.contains("layers_0-4.pth"), "{lines}");
    for shard in 0..8 {
        fs::write(checkpoint.join(format!("consolidated.{shard:02}.pth")), "").expect("writable");
    }
    assert_eq!(weights(&checkpoint), before);
}

#[test]
fn what_cannot_be_repacked_is_refused() {
    let root = tempfile::tempdir().expect("a directory");
    let checkpoint = root.path().join("checkpoint");
    like_70b().write_meta(&checkpoint, 8).expect("writable");
    let output = root.path().join("output");
    let refused = |checkpoint: &Path, more: &[&str], code, expected: &str| {
        let result = repack(checkpoint, &output, more);
        let error = String::from_utf8_lossy(&result.stderr);
        assert_eq!(result.status.code(), Some(code), "{error}");
        assert!(error.contains(expected), "{error}");
        assert!(result.stdout.is_empty() && !output.exists());
    };
    refused(&checkpoint, &["--chunk-size", "0"], 2, "1 or more");
    refused(root.path(), &[], 1, "no params.json");
    fs::remove_file(checkpoint.join("consolidated.05.pth")).expect("is there");
    refused(&checkpoint, &[], 1, "consolidated.05.pth is missing");
}
