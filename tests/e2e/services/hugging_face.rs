//! A Hugging Face directory, single or in shards, served end to end.

use std::path::Path;

use integration_tests::sandbox::Layout;
use llama::LlamaConfig;
use llama::tiny::{self, TinyModel};
use serde_json::{Value, json};

const TURN: u32 = 256;
const END: u32 = 257;
const TEMPLATE: &str =
    "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}<|end|>{% endfor %}<|turn|>";

/// Bytes in the alphabet of byte-level BPE, in byte order.
fn byte_letters() -> Vec<char> {
    let mut next = 256;
    (0..=255_u8)
        .map(|byte| {
            if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
                return char::from(byte);
            }
            next += 1;
            char::from_u32(next - 1).expect("below the surrogates")
        })
        .collect()
}

/// One token a byte, and two control tokens.
fn write_tokenizer(directory: &Path) {
    let letters = byte_letters();
    let vocab: serde_json::Map<String, Value> =
        letters.iter().enumerate().map(|(id, letter)| (letter.to_string(), json!(id))).collect();
    let control = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false,
        })
    };
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [control(TURN, "<|turn|>"), control(END, "<|end|>")],
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocab, "merges": [],
        },
    });
    let config = json!({ "chat_template": TEMPLATE, "eos_token": "<|end|>" });
    for (name, content) in [("tokenizer.json", tokenizer), ("tokenizer_config.json", config)] {
        std::fs::write(directory.join(name), content.to_string()).expect("writable");
    }
}

fn model() -> TinyModel {
    TinyModel::new(LlamaConfig { vocab_size: 258, ..tiny::config() }, 1)
}

/// Ids of the prompt and of a greedy answer.
fn answer(directory: &Path, chips: &str) -> (Value, Value) {
    let path = directory.display().to_string();
    let sandbox = Layout::default().model(&path).worker(&["--chips", chips]).start();
    sandbox.greedy_ids(&json!([{ "role": "user", "content": "héllo <|end|>" }]))
}

#[test]
fn a_directory_is_served_whole_or_in_shards_on_one_chip_or_two() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let (single, sharded) = (scratch.path().join("single"), scratch.path().join("sharded"));
    for directory in [&single, &sharded] {
        std::fs::create_dir(directory).expect("writable");
        write_tokenizer(directory);
    }
    model().write_hugging_face(&single).expect("writable");
    model().write_sharded(&sharded, 3).expect("writable");
    let (prompt, expected) = answer(&single, "1");
    assert_eq!(expected.as_array().map(Vec::len), Some(12), "{expected}");
    // The user's "<|end|>" is text: bytes, not the control token.
    let text = "user: héllo <|end|>".bytes().map(u32::from);
    let ids: Vec<u32> = [TURN].into_iter().chain(text).chain([END, TURN]).collect();
    assert_eq!(prompt, json!(ids));
    assert_eq!(answer(&sharded, "1").1, expected);
    assert_eq!(answer(&single, "2").1, expected);
}
