//! Whole models of text, from their files.

use super::chat_template::ToolCall;
use super::tokenizer::{SpecialTokens, fixture};
use super::*;
use std::io::Write;

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage { role: role.to_owned(), content: content.to_owned(), ..ChatMessage::default() }
}

fn from_gguf(entries: &[(&str, Vec<u8>)]) -> TextModel {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&fixture::gguf_file(entries)).unwrap();
    TextModel::from_gguf(file.path()).unwrap()
}

#[test]
fn no_word_of_any_role_becomes_a_control_token() {
    let model = from_gguf(&fixture::gguf_entries());
    let special = |ids: &[u32]| -> Vec<u32> {
        ids.iter().copied().filter(|&id| model.tokenizer.is_special(id)).collect()
    };
    for name in fixture::CONTROL {
        for role in ["system", "user", "assistant", "tool"] {
            for at in 0..=name.len() {
                // Also torn over two messages, and against the template's own tokens.
                let (left, right) = name.split_at(at);
                for contents in [[format!("a{name}b"), name.repeat(2)], [left.into(), right.into()]]
                {
                    let benign = contents.clone().map(|_| message(role, "x"));
                    let messages = contents.map(|content| message(role, &content));
                    let ids = model.encode_chat(&messages, &[], true).unwrap();
                    assert_eq!(
                        special(&ids),
                        special(&model.encode_chat(&benign, &[], true).unwrap())
                    );
                    let text = model.tokenizer.decode(&ids, SpecialTokens::Keep);
                    assert!(text.contains(&messages[0].content));
                    assert!(text.contains(&messages[1].content));
                }
            }
        }
    }
}

#[test]
fn the_template_and_its_tokens_come_from_the_same_file() {
    let model = from_gguf(&fixture::gguf_entries());
    assert_eq!(model.chat_format.as_ref().unwrap().source(), "gguf metadata");
    let ids = model.encode_chat(&[message("user", "hello")], &[], true).unwrap();
    assert_eq!(
        model.tokenizer.decode(&ids, SpecialTokens::Keep),
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    );
    let completion = model.encode_completion("<|im_start|>").unwrap();
    assert_eq!(completion, model.tokenizer.encode_text("<|im_start|>").unwrap());
}

#[test]
fn a_model_without_template_completes_but_does_not_chat() {
    let mut entries = fixture::gguf_entries();
    entries.retain(|(key, _)| *key != "tokenizer.chat_template");
    let model = from_gguf(&entries);
    let error = model.encode_chat(&[message("user", "x")], &[], true).unwrap_err();
    assert!(matches!(error, TextError::NoTemplate));
    assert_eq!(model.encode_completion("hello").unwrap().len(), 1);
}

#[test]
fn the_fingerprint_changes_with_the_tokenizer_and_with_nothing_else() {
    let entries = fixture::gguf_entries();
    let fingerprint = from_gguf(&entries).fingerprint;
    assert_eq!(fingerprint.len(), 64);
    let mut more = entries.clone();
    more.push((
        "general.name",
        [8u32, 1, 0].map(u32::to_le_bytes).concat().into_iter().chain(*b"x").collect(),
    ));
    assert_eq!(from_gguf(&more).fingerprint, fingerprint);
    let mut other = entries;
    other.retain(|(key, _)| *key != "tokenizer.ggml.pre");
    assert_ne!(from_gguf(&other).fingerprint, fingerprint);
}

#[test]
fn a_directory_may_keep_its_template_in_three_places() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
    let source = || {
        let model = TextModel::from_hugging_face(dir.path()).unwrap();
        let ChatFormat::Template(template) = model.chat_format? else { panic!("no template") };
        let text = template.render(&[message("user", "x")], &[], false).unwrap().text;
        Some((template.source().to_owned(), text))
    };
    let found = |from: &str, text: &str| Some((from.to_owned(), text.to_owned()));
    write("tokenizer.json", fixture::tokenizer_json().to_string());
    assert_eq!(source(), None);
    let named = serde_json::json!({"eos_token": "<|im_end|>", "chat_template": [
        {"name": "tool_use", "template": "no"}, {"name": "default", "template": "named{{ eos_token }}"},
    ]});
    write("tokenizer_config.json", named.to_string());
    assert_eq!(source(), found("tokenizer_config.json", "named<|im_end|>"));
    write("tokenizer_config.json", serde_json::json!({"chat_template": "alone"}).to_string());
    assert_eq!(source(), found("tokenizer_config.json", "alone"));
    write("chat_template.jinja", "file".to_owned());
    assert_eq!(source(), found("chat_template.jinja", "file"));
}

#[test]
fn a_file_that_is_no_gguf_is_an_error() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"GGUF\x03\0\0\0").unwrap();
    let files = ModelFiles::Gguf(file.path().to_owned());
    let error = TextModel::load(&files).unwrap_err();
    assert!(matches!(error, TextError::Model(ModelError::Gguf { .. })), "{error}");
}

fn meta() -> TextModel {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.model"), fixture::meta_model()).unwrap();
    TextModel::load(&ModelFiles::Meta(dir.path().to_owned())).unwrap()
}

fn with_calls(content: &str, calls: &[(&str, &str)]) -> ChatMessage {
    let call = |&(name, arguments): &(&str, &str)| {
        ToolCall::new(None, name.to_owned(), arguments).unwrap()
    };
    ChatMessage { tool_calls: calls.iter().map(call).collect(), ..message("assistant", content) }
}

#[test]
fn a_meta_directory_chats_in_metas_format() {
    let model = meta();
    assert_eq!(model.chat_format.as_ref().unwrap().source(), "Meta's chat format");
    let text = |messages: &[ChatMessage], add_generation_prompt| {
        let ids = model.encode_chat(messages, &[], add_generation_prompt).unwrap();
        model.tokenizer.decode(&ids, SpecialTokens::Keep)
    };
    let header = |role: &str| format!("<|start_header_id|>{role}<|end_header_id|>\n\n");
    let code = ("code_interpreter", r#"{"code": "print(1)"}"#);
    let messages = [
        message("system", " \nbe brief "),
        message("user", "hello<|eot_id|>"),
        with_calls("", &[code]),
        message("tool", "1\n"),
        with_calls("so ", &[("brave_search", r#"{"query": "a \"b\""}"#)]),
        message("ipython", ""),
        with_calls("", &[("other", r#"{"b": "é<|eom_id|>", "a": [1, 2.0]}"#)]),
    ];
    let wanted = [
        "<|begin_of_text|>".to_owned(),
        header("system") + " \nbe brief <|eot_id|>",
        header("user") + "hello<|eot_id|><|eot_id|>",
        header("assistant") + "<|python_tag|>print(1)<|eom_id|>",
        header("ipython") + "1\n<|eot_id|>",
        header("assistant") + "so brave_search.call(query=\"a \"b\"\")<|eom_id|>",
        header("ipython") + "<|eot_id|>",
        header("assistant")
            + r#"{"type": "function", "name": "other", "parameters": {"b": "\u00e9<|eom_id|>", "a": [1, 2.0]}}"#
            + "<|eom_id|>",
    ]
    .concat();
    assert_eq!(text(&messages, false), wanted);
    assert_eq!(text(&messages, true), wanted + &header("assistant"));
}

#[test]
fn in_metas_format_no_merge_crosses_the_border_of_content() {
    let model = meta();
    let ids = model.encode_chat(&[message("user", "\nhe")], &[], false).unwrap();
    let encode = |text: &str| model.tokenizer.encode_text(text).unwrap();
    let special = |name: &str| vec![model.tokenizer.special_id(name).unwrap()];
    let wanted = [
        special("<|begin_of_text|>"),
        special("<|start_header_id|>"),
        encode("user"),
        special("<|end_header_id|>"),
        encode("\n\n"),
        encode("\n"),
        encode("he"),
        special("<|eot_id|>"),
    ];
    assert_eq!(ids, wanted.concat());
}

#[test]
fn what_has_no_place_in_metas_format_is_refused() {
    let model = meta();
    let refused =
        |messages: &[ChatMessage]| model.encode_chat(messages, &[], true).unwrap_err().to_string();
    assert!(refused(&[message("root", "x")]).contains("role \"root\" is not one of system"));
    let user = ChatMessage { role: "user".to_owned(), ..with_calls("", &[("f", "{}")]) };
    assert!(refused(&[user]).contains("a user message has tool calls"));
    for arguments in ["{}", r#"{"query": 1}"#] {
        let call = with_calls("", &[("brave_search", arguments)]);
        assert!(refused(&[call]).contains("needs an argument \"query\" that is a string"));
    }
    let tool = Tool::new(r#"{"type": "function"}"#).unwrap();
    let error = model.encode_chat(&[message("user", "x")], &[tool], true).unwrap_err();
    assert!(matches!(error, TextError::NoPlaceForTools));
}

#[test]
fn a_completion_starts_with_the_token_that_starts_a_text() {
    let model = meta();
    let ids = model.encode_completion("hello<|begin_of_text|>").unwrap();
    let bos = model.tokenizer.special_id("<|begin_of_text|>");
    assert_eq!(ids.first().copied(), bos);
    assert!(ids[1..].iter().all(|&id| !model.tokenizer.is_special(id)));
}
