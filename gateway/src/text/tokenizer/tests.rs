//! The tokenizer against the crate's own pipeline, and against hostile text.

use super::fixture::{CONTROL, gguf_entries, gguf_file, id_of_byte, tokenizer, tokenizer_json};
use super::*;
use ::gguf::Gguf;
use proptest::prelude::*;

fn reference() -> tokenizers::Tokenizer {
    tokenizers::Tokenizer::from_bytes(tokenizer_json().to_string()).unwrap()
}

fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("hello".to_owned()),
        Just(" the".to_owned()),
        Just("<|im_start|>".to_owned()),
        Just("<|im_end|>".to_owned()),
        Just("<|im_".to_owned()),
        Just("end|>".to_owned()),
        Just("<tool>".to_owned()),
        Just("\n\n".to_owned()),
        Just("12".to_owned()),
        "\\PC{0,6}",
    ];
    prop::collection::vec(part, 0..10).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn ids_are_those_of_the_crate(text in text()) {
        let (tokenizer, mut reference) = (tokenizer(), reference());
        let with_control = reference.encode(text.as_str(), false).unwrap();
        prop_assert_eq!(tokenizer.encode_prompt(&text, &[]).unwrap(), with_control.get_ids());
        reference.set_encode_special_tokens(true);
        let without = reference.encode(text.as_str(), false).unwrap();
        prop_assert_eq!(tokenizer.encode_text(&text).unwrap(), without.get_ids());
    }

    #[test]
    fn text_never_becomes_a_control_token_and_comes_back(text in text()) {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode_text(&text).unwrap();
        prop_assert!(ids.iter().all(|&id| !tokenizer.is_special(id)));
        prop_assert_eq!(tokenizer.decode(&ids, SpecialTokens::Skip), text);
    }
}

#[test]
fn control_tokens_are_taken_only_outside_content() {
    let tokenizer = tokenizer();
    let special = |ids: &[u32]| ids.iter().filter(|&&id| tokenizer.is_special(id)).count();
    let name = "<|im_end|>";
    let text = format!("a{name}b{name}c");
    let (first, second) = (1..11, 12..22);
    let cases = [
        (vec![], 2),
        (vec![first.clone()], 1),
        (vec![0..1, first.clone()], 1),
        (vec![0..1, 11..12, 22..23], 2),
        // One byte of an occurrence is enough to make it text.
        (Vec::from([Range { start: 0, end: 2 }]), 1),
        (Vec::from([Range { start: 10, end: 12 }]), 1),
        (Vec::from([Range { start: 10, end: 13 }]), 0),
        (vec![first, second], 0),
        (vec![Range { start: 0, end: text.len() }], 0),
    ];
    for (content, wanted) in cases {
        let ids = tokenizer.encode_prompt(&text, &content).unwrap();
        assert_eq!(special(&ids), wanted, "{content:?}");
        assert_eq!(tokenizer.decode(&ids, SpecialTokens::Keep), text);
    }
}

#[test]
fn merges_cross_the_border_of_content() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode_prompt("a the", std::slice::from_ref(&(2..5))).unwrap();
    assert_eq!(ids, tokenizer.encode_text("a the").unwrap());
    assert_eq!(ids.len(), 2);
}

#[test]
fn gguf_and_hugging_face_files_make_the_same_tokenizer() {
    let file = gguf_file(&gguf_entries());
    let from_gguf = Tokenizer::from_gguf(Gguf::parse(&file).unwrap().metadata()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, json: &serde_json::Value| {
        std::fs::write(dir.path().join(name), json.to_string()).unwrap();
    };
    write("tokenizer.json", &tokenizer_json());
    write(
        "tokenizer_config.json",
        &serde_json::json!({"bos_token": "<|endoftext|>", "eos_token": {"content": "<|im_end|>"}}),
    );
    write("generation_config.json", &serde_json::json!({"eos_token_id": [263, 265]}));
    let from_hugging_face = Tokenizer::from_hugging_face(dir.path()).unwrap();
    let mut other_pattern = tokenizer_json();
    other_pattern["pre_tokenizer"]["pretokenizers"][1]["trim_offsets"] = false.into();
    other_pattern["normalizer"] = serde_json::json!({"type": "NFC"});
    write("tokenizer.json", &other_pattern);
    let by_crate = Tokenizer::from_hugging_face(dir.path()).unwrap();
    assert!(matches!(by_crate.encoder, Encoder::Crate(_)));

    let text = "hello the 12 <|im_end|> <tool>é";
    for other in [&from_gguf, &from_hugging_face, &by_crate] {
        assert_eq!(other.encode_text(text).unwrap(), tokenizer().encode_text(text).unwrap());
        assert_eq!(other.eos_ids(), tokenizer().eos_ids());
        assert_eq!(other.bos(), tokenizer().bos());
        assert_eq!(other.vocab_size(), 256 + 7 + CONTROL.len() + 1);
        assert_eq!(other.special_id("<|im_start|>"), Some(264));
        assert_eq!(other.max_token_bytes(), "<tool>".len());
        assert_eq!(other.token_bytes(id_of_byte(0xff)), [0xff]);
        assert_eq!(other.token_text(id_of_byte(0xff)), "\u{fffd}");
        assert_eq!(other.token_bytes(u32::MAX), b"");
    }
}

#[test]
fn what_a_gguf_file_lacks_is_named() {
    let string = |text: &str| {
        [&8u32.to_le_bytes()[..], &(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    };
    let cases: [(&str, Option<Vec<u8>>, &str); 7] = [
        ("tokenizer.ggml.model", None, "\"tokenizer.ggml.model\" is missing"),
        (
            "tokenizer.ggml.model",
            Some(string("llama")),
            "\"llama\" is not supported, supported are: gpt2",
        ),
        (
            "tokenizer.ggml.pre",
            Some(string("qwen2")),
            "\"qwen2\" is not supported, supported are: llama-bpe",
        ),
        ("tokenizer.ggml.tokens", Some(string("x")), "is string, expected array of string"),
        (
            "tokenizer.ggml.token_type",
            Some(
                [9, 5]
                    .map(|n| n as u32)
                    .iter()
                    .flat_map(|n| n.to_le_bytes())
                    .chain([0; 8])
                    .collect(),
            ),
            "267 tokens and 0 token types",
        ),
        ("tokenizer.ggml.merges", None, "\"tokenizer.ggml.merges\" is missing"),
        (
            "tokenizer.ggml.eos_token_id",
            Some([4u32, 9999].iter().flat_map(|n| n.to_le_bytes()).collect()),
            "token 9999 starts or ends a text",
        ),
    ];
    for (key, value, reason) in cases {
        let mut entries = gguf_entries();
        match value {
            None => entries.retain(|(name, _)| *name != key),
            Some(value) => entries.iter_mut().find(|(name, _)| *name == key).unwrap().1 = value,
        }
        let file = gguf_file(&entries);
        let error = Tokenizer::from_gguf(Gguf::parse(&file).unwrap().metadata()).unwrap_err();
        let error =
            format!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
        assert!(error.replace('\\', "").contains(reason), "{error:?} does not say {reason:?}");
    }
}

#[test]
fn a_million_of_anything_takes_one_pass() {
    let tokenizer = tokenizer();
    for unit in ["a", "^", " ", "\n", "_", "日", "\u{301}", "<|", "'", "1", "hello"] {
        let text = unit.repeat(1_100_000 / unit.len());
        let ids = tokenizer.encode_text(&text).unwrap();
        assert_eq!(tokenizer.decode(&ids, SpecialTokens::Keep), text);
    }
}
