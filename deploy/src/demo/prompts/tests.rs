//! Prompt files: ours are what the documents promise, others are read or refused.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::*;

/// Tokens of each text that comes with the program, by Meta's tokenizer:
/// SHA-256 to count. `make_prompt_lengths.py` measured them.
const LENGTHS: &str = include_str!("../../../../tests/golden/prompt_lengths.json");

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Measured length of a text in Llama 3 tokens.
fn llama3_tokens(text: &str) -> usize {
    let lengths: BTreeMap<String, usize> = serde_json::from_str(LENGTHS).unwrap();
    let length = lengths.get(&sha256(text));
    *length.unwrap_or_else(|| panic!("run tests/golden/make_prompt_lengths.py for {text:?}"))
}

#[test]
fn both_sets_have_32_different_prompts_of_about_128_tokens() {
    for mode in [DemoMode::Instruct, DemoMode::General] {
        let prompts = built_in(mode, false).unwrap();
        assert_eq!(prompts.len(), 32);
        for (number, prompt) in prompts.iter().enumerate() {
            assert_eq!(prompt.context, None);
            let tokens = llama3_tokens(&prompt.prompt);
            assert!((100..=130).contains(&tokens), "{mode:?} prompt {number}: {tokens} tokens");
            let same = prompts.iter().filter(|other| other.prompt == prompt.prompt).count();
            assert_eq!(same, 1, "{mode:?} prompt {number} is there {same} times");
        }
    }
}

#[test]
fn the_long_prompt_is_long_and_fits_the_packaged_model() {
    let prompts = built_in(DemoMode::Instruct, true).unwrap();
    let [prompt] = &prompts[..] else { panic!("{} long prompts", prompts.len()) };
    assert_eq!(prompt.context.as_deref(), Some(LONG_TEXT));
    let tokens = llama3_tokens(LONG_TEXT);
    // The packaged model's context is 8192 of its own, somewhat shorter, tokens.
    assert!((4000..=6500).contains(&tokens), "{tokens} tokens");
}

#[test]
fn a_file_is_read_with_its_contexts() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("text.txt"), "äöü rest").unwrap();
    let path = directory.path().join("prompts.json");
    let json = r#"[{"prompt": "Why?"}, {"prompt": "What?", "context": "text.txt"},
                   {"prompt": "Who?", "context": "text.txt", "max_length": 2}]"#;
    std::fs::write(&path, json).unwrap();
    let prompts = from_file(&path).unwrap();
    let contexts: Vec<_> = prompts.iter().map(|prompt| prompt.context.as_deref()).collect();
    assert_eq!(contexts, [None, Some("äöü rest"), Some("äö")]);
    let third = &prompts[2];
    assert_eq!(third.with_body(DemoMode::Instruct, third.body()), "```äö```\n\nWho?");
    assert_eq!(third.with_body(DemoMode::General, third.body()), "äö");
    assert_eq!(prompts[0].with_body(DemoMode::Instruct, prompts[0].body()), "Why?");
}

#[test]
fn what_is_wrong_with_a_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("prompts.json");
    let cases = [
        ("{}", "not a JSON array"),
        ("[]", "no prompt"),
        (r#"[{"text": "Why?"}]"#, "text"),
        (r#"[{"prompt": 1}]"#, "line 1"),
        (r#"[{"prompt": "a"}, {"prompt": "b", "context": "none.txt"}]"#, "prompt 2"),
        (r#"[{"prompt": "a", "context": "https://example.com/a.txt"}]"#, "nothing is fetched"),
    ];
    for (json, expected) in cases {
        std::fs::write(&path, json).unwrap();
        let error = format!("{:#}", from_file(&path).unwrap_err());
        assert!(error.contains(expected) && error.contains("prompts.json"), "{json}: {error}");
    }
    let error = format!("{:#}", from_file(Path::new("/no/such/file.json")).unwrap_err());
    assert!(error.contains("/no/such/file.json"), "{error}");
}
