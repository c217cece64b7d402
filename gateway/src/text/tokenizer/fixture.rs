//! A tiny byte-level tokenizer for tests, and the files it would come in.

use super::split::Splitter;
use super::{Cutting, Ends, Merges, Parts, Token, TokenKind, Tokenizer, byte_level};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

pub(crate) const TEMPLATE: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

const MERGES: [(&str, &str); 7] =
    [("h", "e"), ("t", "he"), ("Ġ", "the"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ċ", "Ċ")];
pub(crate) const CONTROL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const USER_DEFINED: &str = "<tool>";

/// Ids 0 to 255 are the bytes.
pub(crate) fn id_of_byte(byte: u8) -> u32 {
    u32::from(byte)
}

fn tokens() -> Vec<Token> {
    let byte = |byte: u8| {
        let mut text = String::new();
        byte_level::push_encoded(&[byte], &mut text);
        Token { text, kind: TokenKind::Normal }
    };
    let mut tokens: Vec<Token> = (0..=255).map(byte).collect();
    let merged = MERGES.iter().map(|(left, right)| format!("{left}{right}"));
    tokens.extend(merged.map(|text| Token { text, kind: TokenKind::Normal }));
    tokens.extend(CONTROL.map(|text| Token { text: text.to_owned(), kind: TokenKind::Control }));
    tokens.push(Token { text: USER_DEFINED.to_owned(), kind: TokenKind::UserDefined });
    tokens
}

pub(crate) fn tokenizer() -> Tokenizer {
    let merges = MERGES.map(|(left, right)| (left.to_owned(), right.to_owned())).to_vec();
    let control = 256 + MERGES.len() as u32;
    Tokenizer::from_parts(Parts {
        tokens: tokens(),
        merges: Merges::Listed(merges),
        cutting: Cutting::Known(Splitter::SmolLm),
        ignore_merges: false,
        ends: Ends { bos: Some(control), adds_bos: false, eos: vec![control, control + 2] },
    })
    .unwrap()
}

/// The fixture as GGUF metadata, entry by entry, so that tests can change one.
pub(crate) fn gguf_entries() -> Vec<(&'static str, Vec<u8>)> {
    let string = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let one = |of: u32, bytes: &[u8]| [&of.to_le_bytes(), bytes].concat();
    let array = |of: u32, elements: Vec<Vec<u8>>| {
        let count = elements.len() as u64;
        one(9, &[&of.to_le_bytes()[..], &count.to_le_bytes(), &elements.concat()].concat())
    };
    let number = |kind| match kind {
        TokenKind::Normal => 1i32,
        TokenKind::Control => 3,
        TokenKind::UserDefined => 4,
    };
    let control = 256 + MERGES.len() as u32;
    let (texts, types) = tokens()
        .iter()
        .map(|token| (string(&token.text), number(token.kind).to_le_bytes().to_vec()))
        .unzip();
    let merges = MERGES.iter().map(|(left, right)| string(&format!("{left} {right}"))).collect();
    vec![
        ("tokenizer.ggml.model", one(8, &string("gpt2"))),
        ("tokenizer.ggml.pre", one(8, &string("smollm"))),
        ("tokenizer.ggml.tokens", array(8, texts)),
        ("tokenizer.ggml.token_type", array(5, types)),
        ("tokenizer.ggml.merges", array(8, merges)),
        ("tokenizer.ggml.bos_token_id", one(4, &control.to_le_bytes())),
        ("tokenizer.ggml.eos_token_id", one(4, &(control + 2).to_le_bytes())),
        ("tokenizer.chat_template", one(8, &string(TEMPLATE))),
    ]
}

/// A GGUF file without tensors.
pub(crate) fn gguf_file(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend((entries.len() as u64).to_le_bytes());
    for (key, value) in entries {
        file.extend((key.len() as u64).to_le_bytes());
        file.extend(key.as_bytes());
        file.extend(value);
    }
    file
}

/// The fixture as `tokenizer.json`.
pub(crate) fn tokenizer_json() -> serde_json::Value {
    let tokens = tokens();
    let numbered = || (0u32..).zip(&tokens);
    let vocab: serde_json::Map<_, _> = numbered()
        .filter(|(_, token)| token.kind == TokenKind::Normal)
        .map(|(id, token)| (token.text.clone(), id.into()))
        .collect();
    let added: Vec<_> = numbered()
        .filter(|(_, token)| token.kind != TokenKind::Normal)
        .map(|(id, token)| {
            serde_json::json!({
                "id": id, "content": token.text, "special": token.kind == TokenKind::Control,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocab, "merges": MERGES.map(|(a, b)| [a, b]),
        },
    })
}

/// Tokens of the Meta fixture after the 256 bytes.
pub(crate) const META_TOKENS: [&str; 14] = [
    "he", "ll", "hell", "hello", " t", " the", "th", "aa", "aaaa", "\n\n", "er", "user", "é",
    "日本",
];

/// A `tokenizer.model`.
pub(crate) fn meta_model() -> String {
    let bytes = (0..=255u8).map(|byte| vec![byte]);
    let tokens = bytes.chain(META_TOKENS.iter().map(|text| text.as_bytes().to_vec()));
    let line = |(rank, token)| format!("{} {rank}\n", BASE64_STANDARD.encode(token));
    (0..).zip(tokens).map(|(rank, token): (u32, Vec<u8>)| line((rank, token))).collect()
}
