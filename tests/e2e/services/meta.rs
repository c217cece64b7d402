//! A Meta directory served end to end, as it comes and repacked.

use std::path::Path;
use std::process::Command;

use integration_tests::byte_tokenizer;
use integration_tests::sandbox::{Layout, executable};
use llama::LlamaConfig;
use llama::tiny::{self, TinyModel};
use serde_json::{Value, json};

/// One token a byte, and 256 control tokens.
const VOCAB_SIZE: usize = 512;
const BOS: u32 = 256;
const START_HEADER: u32 = 256 + 6;
const END_HEADER: u32 = 256 + 7;
const END_OF_TURN: u32 = 256 + 9;

/// Eight KV heads, so that eight shards and eight chips are possible.
fn model() -> TinyModel {
    let config = LlamaConfig {
        hidden_size: 128,
        intermediate_size: 256,
        num_attention_heads: 8,
        num_key_value_heads: 8,
        vocab_size: VOCAB_SIZE,
        rope_theta: 500_000.0,
        max_position_embeddings: 8192,
        ..tiny::config()
    };
    TinyModel::new(config, 1)
}

/// Ids of the prompt and of a greedy answer.
fn answer(directory: &Path, worker: &[&str]) -> (Value, Value) {
    let path = directory.display().to_string();
    let sandbox = Layout::default().model(&path).worker(worker).start();
    sandbox.greedy_ids(&json!([
        { "role": "system", "content": " Be brief. " },
        { "role": "user", "content": "héllo <|eot_id|>" },
    ]))
}

fn turn(role: &str, content: &str) -> Vec<u32> {
    let bytes = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    let mut ids = vec![START_HEADER];
    ids.extend(bytes(role));
    ids.push(END_HEADER);
    ids.extend(bytes("\n\n"));
    ids.extend(bytes(content));
    ids
}

#[test]
fn a_directory_is_served_in_shards_repacked_and_on_every_device() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let directory = scratch.path().join("Tiny-Instruct");
    model().write_meta(&directory, 8).expect("writable");
    byte_tokenizer::write(&directory).expect("writable");

    let (prompt, expected) = answer(&directory, &["--optimizations", "f32"]);
    assert_eq!(expected.as_array().map(Vec::len), Some(12), "{expected}");
    // Meta's format: nothing injected, nothing trimmed, and what the user typed
    // is text, whatever it looks like.
    let turns = [
        vec![BOS],
        turn("system", " Be brief. "),
        vec![END_OF_TURN],
        turn("user", "héllo <|eot_id|>"),
        vec![END_OF_TURN],
        turn("assistant", ""),
    ];
    assert_eq!(prompt, json!(turns.concat()));

    let of_t3k = ["--device", "T3K", "--simulate", "--optimizations", "f32"];
    assert_eq!(answer(&directory, &of_t3k).1, expected, "shards on T3K");
    let path = directory.display().to_string();
    let status = Command::new(executable()).args(["repack", &path, &path]).status();
    assert!(status.expect("starts").success());
    assert!(directory.join("layers_0-1.pth").exists());
    for device in ["N150", "N300", "T3K"] {
        let worker = ["--device", device, "--simulate", "--optimizations", "f32"];
        assert_eq!(answer(&directory, &worker).1, expected, "{device}");
        assert!(directory.join(device).is_dir(), "the weights are cached in {device}");
    }
}
