//! Meta's `tokenizer.model` and chat format against Meta's own package: golden
//! ids (`golden/make_meta_tokenizer.py`), and the package itself on many texts
//! (`tokenizer_oracle.py`). The vocabulary comes with the package.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::Command;

use gateway::text::TextModel;
use gateway::text::chat_template::{ChatMessage, ToolCall};
use gateway::text::tokenizer::SpecialTokens;
use serde::Deserialize;

/// Random texts of one run; those that are always the same come on top.
const NUM_RANDOM_TEXTS: usize = 10_000;

#[derive(Deserialize)]
struct Golden {
    stop: Vec<u32>,
    texts: Vec<Text>,
    dialogs: Vec<Dialog>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Dialog {
    messages: Vec<Message>,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: String,
    tool_calls: Vec<Call>,
}

#[derive(Deserialize)]
struct Call {
    name: String,
    arguments: String,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../../golden/meta_tokenizer.json"))
        .expect("the script's output")
}

#[expect(clippy::disallowed_methods, reason = "tests/run says where Meta's package is")]
fn variable(name: &str) -> PathBuf {
    let value = std::env::var(name);
    value.unwrap_or_else(|_| panic!("{name} is not set; tests/run sets it")).into()
}

/// A directory as Meta ships it, as far as text goes.
fn model() -> TextModel {
    let file = variable("LLAMA_MESH_TEST_TOKENIZER_MODEL");
    TextModel::from_meta(file.parent().expect("a file is in a directory")).expect("loads")
}

#[test]
fn texts_and_dialogs_become_the_ids_of_metas_package() {
    let (golden, model) = (golden(), model());
    assert!(golden.texts.len() >= 30 && golden.dialogs.len() >= 16);
    assert_eq!(model.tokenizer.vocab_size(), 128_256);
    assert_eq!(model.tokenizer.max_token_bytes(), 128);
    let mut stop = golden.stop;
    stop.sort_unstable();
    assert_eq!(model.tokenizer.eos_ids(), stop);
    for Text { text, ids } in &golden.texts {
        assert_eq!(&model.tokenizer.encode_text(text).unwrap(), ids, "{text:?}");
        let completion = model.encode_completion(text).unwrap();
        assert_eq!((completion[0], &completion[1..]), (128_000, &ids[..]));
    }
    for Dialog { messages, ids } in &golden.dialogs {
        let call = |call: &Call| ToolCall::new(None, call.name.clone(), &call.arguments).unwrap();
        let message = |message: &Message| ChatMessage {
            role: message.role.clone(),
            content: message.content.clone(),
            tool_calls: message.tool_calls.iter().map(call).collect(),
        };
        let messages: Vec<_> = messages.iter().map(message).collect();
        let encoded = model.encode_chat(&messages, &[], true).unwrap();
        let shown = |ids: &[u32]| model.tokenizer.decode(ids, SpecialTokens::Keep);
        assert_eq!(&encoded, ids, "{:?} is not {:?}", shown(&encoded), shown(ids));
    }
}

#[test]
fn ids_are_those_of_tiktoken() {
    let python = variable("LLAMA_MESH_TEST_PYTHON");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/model/tokenizer_oracle.py");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("texts.jsonl");
    let seed = std::process::id();
    let status = Command::new(python)
        .arg(script)
        .args([seed.to_string(), NUM_RANDOM_TEXTS.to_string()])
        .arg(&out)
        .status()
        .expect("Python starts");
    assert!(status.success(), "tokenizer_oracle.py failed");
    let tokenizer = model().tokenizer;
    let mut num_texts = 0;
    for line in BufReader::new(std::fs::File::open(&out).unwrap()).lines() {
        let Text { text, ids } = serde_json::from_str(&line.unwrap()).expect("the script's output");
        let ours = tokenizer.encode_text(&text).unwrap();
        if ours != ids {
            let at = ours.iter().zip(&ids).take_while(|(ours, theirs)| ours == theirs).count();
            let near = tokenizer
                .decode(&ids[at.saturating_sub(8)..ids.len().min(at + 8)], SpecialTokens::Keep);
            panic!(
                "seed {seed}, text {num_texts}: other ids from {at} of {} on, near {near:?}",
                ids.len()
            );
        }
        assert!(ours.iter().all(|&id| !tokenizer.is_special(id)), "seed {seed}, text {num_texts}");
        assert_eq!(tokenizer.decode(&ours, SpecialTokens::Keep), text, "seed {seed}");
        num_texts += 1;
    }
    assert!(num_texts > NUM_RANDOM_TEXTS, "only {num_texts} texts");
}
