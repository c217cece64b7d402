//! A small `tokenizer.model`, whole and damaged.

use super::super::SpecialTokens;
use super::super::fixture::{META_TOKENS, meta_model};
use super::*;
use proptest::prelude::*;

fn load(file: &[u8]) -> Result<Tokenizer, TokenizerError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(FILE), file).unwrap();
    Tokenizer::from_meta(dir.path())
}

fn tokenizer() -> Tokenizer {
    load(meta_model().as_bytes()).unwrap()
}

#[test]
fn control_tokens_have_metas_names_after_the_last_rank() {
    let tokenizer = tokenizer();
    let first = 256 + META_TOKENS.len() as u32;
    assert_eq!(tokenizer.vocab_size(), first as usize + 256);
    for (name, place) in [
        ("<|begin_of_text|>", 0),
        ("<|finetune_right_pad_id|>", 4),
        ("<|eot_id|>", 9),
        ("<|image|>", 11),
        ("<|reserved_special_token_2|>", 12),
        ("<|reserved_special_token_245|>", 255),
    ] {
        assert_eq!(tokenizer.special_id(name), Some(first + place), "{name}");
        assert_eq!(tokenizer.token_text(first + place), name);
        assert!(tokenizer.is_special(first + place));
    }
    assert_eq!(tokenizer.special_id("<|reserved_special_token_246|>"), None);
    assert_eq!(tokenizer.bos(), Some(first));
    assert_eq!(tokenizer.eos_ids(), [first + 1, first + 8, first + 9]);
    assert!(tokenizer.adds_bos());
}

#[test]
fn the_file_may_have_empty_lines_and_other_line_ends() {
    let file = meta_model().replace('\n', "\r\n") + "\r\n \r\n";
    let text = "hello the 1234";
    assert_eq!(load(file.as_bytes()).unwrap().encode_text(text).unwrap(), {
        tokenizer().encode_text(text).unwrap()
    });
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    let lines: Vec<String> = meta_model().lines().map(str::to_owned).collect();
    let with = |at: usize, line: &str| {
        let mut lines = lines.clone();
        line.clone_into(&mut lines[at]);
        lines.join("\n").into_bytes()
    };
    let long = BASE64_STANDARD.encode([b'a'; MAX_TOKEN_BYTES + 1]);
    let cases: [(Vec<u8>, &str); 11] = [
        (with(4, "YQ=="), "line 5: \"YQ==\" is not a token in base64, a space and a rank"),
        (with(4, "YQ== 4 4"), "line 5: \"YQ== 4 4\" is not a token"),
        (with(4, "Y?== 4"), "line 5: \"Y?==\" is not base64: Invalid symbol 63, offset 1."),
        (with(4, "= 4"), "line 5: \"=\" is not base64"),
        (with(4, &format!("{long} 4")), "the token has 257 bytes, it may have 1 to 256"),
        (with(4, "YQ== 5"), "line 5: the rank is \"5\", it must be 4"),
        (with(4, "YQ== -4"), "line 5: the rank is \"-4\", it must be 4"),
        (with(4, "YQ== 99999999999999999999"), "it must be 4"),
        (
            with(256, &lines[7].replace(" 7", " 256")),
            "line 257: the token is the same as on line 8",
        ),
        (lines[..255].join("\n").into_bytes(), "no token is the single byte 0xff, all 256"),
        (Vec::new(), "no token is the single byte 0x00, all 256"),
    ];
    for (file, wanted) in cases {
        let error = load(&file).unwrap_err();
        assert!(matches!(error, TokenizerError::Meta(_)));
        let error = error.to_string();
        assert!(error.contains(wanted), "{error:?} does not say {wanted:?}");
        assert!(error.contains("tokenizer.model"), "{error:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let missing = Tokenizer::from_meta(dir.path()).unwrap_err();
    assert!(missing.to_string().contains("tokenizer.model"), "{missing}");
    let huge = std::fs::File::create(dir.path().join(FILE)).unwrap();
    huge.set_len(MAX_FILE_BYTES + 1).unwrap();
    let error = Tokenizer::from_meta(dir.path()).unwrap_err();
    assert!(matches!(error, TokenizerError::FileSize { .. }), "{error}");
}

#[test]
fn long_runs_end_where_metas_do() {
    let tokenizer = tokenizer();
    // 25,001 times "h", then "e": the cut keeps "he" apart, but not at 25,002.
    let he = tokenizer.encode_text("he").unwrap();
    assert_eq!(he.len(), 1);
    for (run, wanted) in [(24_999, true), (25_000, false), (25_001, true)] {
        let text = format!("{}e", "h".repeat(run));
        let ids = tokenizer.encode_text(&text).unwrap();
        assert_eq!(ids.ends_with(&he), wanted, "{run}");
        assert_eq!(tokenizer.decode(&ids, SpecialTokens::Keep), text);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn damaged_files_are_errors_and_nothing_worse(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        len in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let mut file = meta_model().into_bytes();
        for (at, byte) in edits {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if cut {
            file.truncate(len.index(file.len()));
        }
        if let Ok(tokenizer) = load(&file) {
            let ids = tokenizer.encode_text("hello the end").unwrap();
            prop_assert_eq!(tokenizer.decode(&ids, SpecialTokens::Keep), "hello the end");
        }
    }

    #[test]
    fn no_text_becomes_a_control_token(
        parts in prop::collection::vec(
            prop_oneof![
                prop::sample::select(&CONTROL[..]).prop_map(str::to_owned),
                (0u32..260).prop_map(|n| format!("<|reserved_special_token_{n}|>")),
                Just("<|eot_".to_owned()),
                Just("id|>".to_owned()),
                "\\PC{0,6}",
            ],
            0..8,
        ),
    ) {
        let (tokenizer, text) = (tokenizer(), parts.concat());
        let ids = tokenizer.encode_text(&text).unwrap();
        prop_assert!(ids.iter().all(|&id| !tokenizer.is_special(id)));
        prop_assert_eq!(tokenizer.decode(&ids, SpecialTokens::Keep), text);
    }
}
