//! Merging against the naive algorithm and against the `tokenizers` crate, with
//! vocabularies that nobody would train.

use super::super::split::Splitter;
use super::super::{Cutting, Ends, Merges, Parts, TokenizerError};
use super::super::{Token, TokenKind, Tokenizer, byte_level};
use super::MAX_SHORT_BYTES;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};
use tokenizers::Model as _;
use tokenizers::models::bpe::BPE;

fn encoded(bytes: &[u8]) -> String {
    let mut text = String::new();
    byte_level::push_encoded(bytes, &mut text);
    text
}

/// All bytes, then these.
fn vocabulary(more: &[String]) -> Vec<String> {
    let mut seen = HashSet::new();
    let bytes = (0..=255).map(|byte| encoded(&[byte]));
    let more = more.iter().map(|text| encoded(text.as_bytes()));
    bytes.chain(more).filter(|text| seen.insert(text.clone())).collect()
}

fn tokenizer(texts: &[String], merges: Merges, ignore_merges: bool) -> Tokenizer {
    let token = |text: &String| Token { text: text.clone(), kind: TokenKind::Normal };
    Tokenizer::from_parts(Parts {
        tokens: texts.iter().map(token).collect(),
        merges,
        cutting: Cutting::Known(Splitter::Gpt2),
        ignore_merges,
        ends: Ends::default(),
    })
    .unwrap()
}

/// `tiktoken`'s rule, in as few words as possible.
fn by_rule(texts: &[String], piece: &str) -> Vec<u32> {
    let ranks: HashMap<&str, u32> = texts.iter().map(String::as_str).zip(0..).collect();
    let piece = encoded(piece.as_bytes());
    if let Some(&id) = ranks.get(piece.as_str()) {
        return vec![id];
    }
    let mut parts: Vec<String> = piece.chars().map(String::from).collect();
    loop {
        let joined = |at: usize| ranks.get(format!("{}{}", parts[at], parts[at + 1]).as_str());
        let best = (1..parts.len()).filter_map(|at| Some((joined(at - 1)?, at - 1))).min();
        let Some((_, at)) = best else { break };
        let right = parts.remove(at + 1);
        parts[at] += &right;
    }
    parts.iter().map(|part| ranks[part.as_str()]).collect()
}

/// What the crate makes of a piece.
fn by_crate(
    texts: &[String],
    merges: &[(String, String)],
    ignore_merges: bool,
    piece: &str,
) -> Vec<u32> {
    let vocab = texts.iter().cloned().zip(0u32..).collect();
    let builder =
        BPE::builder().vocab_and_merges::<tokenizers::models::bpe::Vocab>(vocab, merges.to_vec());
    let bpe = builder.ignore_merges(ignore_merges).build().unwrap();
    let tokens = bpe.tokenize(&encoded(piece.as_bytes())).unwrap();
    tokens.iter().map(|token| token.id).collect()
}

/// Pieces on both sides of where the heap takes over.
fn piece() -> impl Strategy<Value = String> {
    let repeated = |unit: &'static str, most| (1..most).prop_map(move |n| unit.repeat(n));
    let long = MAX_SHORT_BYTES + 40;
    prop_oneof![
        "[ab]{1,12}",
        prop::collection::vec("[abc]", MAX_SHORT_BYTES - 20..long).prop_map(|all| all.concat()),
        repeated("a", long),
        repeated("ab", long),
        "(é|日){1,60}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn merging_by_rank_is_tiktokens(
        more in prop::collection::vec(prop_oneof!["[ab]{2,6}", "[abc]{2,3}", "é", "日", "éé"], 0..24),
        piece in piece(),
    ) {
        let texts = vocabulary(&more);
        let tokenizer = tokenizer(&texts, Merges::ByRank, true);
        prop_assert_eq!(tokenizer.encode_text(&piece).unwrap(), by_rule(&texts, &piece));
    }

    #[test]
    fn merging_by_list_is_the_crates(
        choices in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..24),
        lone in prop::collection::vec("[ab]{2,6}", 0..4),
        ignore_merges in any::<bool>(),
        piece in piece(),
    ) {
        let mut known: Vec<String> = "abc".chars().map(String::from).collect();
        known.extend("é日".bytes().map(|byte| encoded(&[byte])));
        let mut merges = Vec::new();
        for (left, right) in choices {
            let (left, right) = (left.get(&known).clone(), right.get(&known).clone());
            known.push(format!("{left}{right}"));
            merges.push((left, right));
        }
        let mut texts = vocabulary(&lone);
        let mut seen: HashSet<_> = texts.iter().cloned().collect();
        texts.extend(known.into_iter().filter(|text| seen.insert(text.clone())));
        let tokenizer = tokenizer(&texts, Merges::Listed(merges.clone()), ignore_merges);
        prop_assert_eq!(
            tokenizer.encode_text(&piece).unwrap(),
            by_crate(&texts, &merges, ignore_merges, &piece)
        );
    }
}

#[test]
fn a_byte_without_a_token_is_left_out_as_by_the_crate() {
    let mut texts = vocabulary(&["ab".to_owned()]);
    texts.retain(|text| text != "x");
    let merges = vec![("a".to_owned(), "b".to_owned())];
    let tokenizer = tokenizer(&texts, Merges::Listed(merges.clone()), false);
    for piece in ["axb", "x", "xaxbxx"] {
        let ids = tokenizer.encode_text(piece).unwrap();
        assert_eq!(ids, by_crate(&texts, &merges, false, piece), "{piece:?}");
    }
}

#[test]
fn a_merge_of_what_is_no_token_is_refused() {
    let texts = vocabulary(&[]);
    let token = |text: &String| Token { text: text.clone(), kind: TokenKind::Normal };
    let parts = |tokens: Vec<Token>, merges| Parts {
        tokens,
        merges: Merges::Listed(merges),
        cutting: Cutting::Known(Splitter::Gpt2),
        ignore_merges: false,
        ends: Ends::default(),
    };
    let tokens: Vec<Token> = texts.iter().map(token).collect();
    let merge = vec![("a".to_owned(), "b".to_owned())];
    let refused = |parts| match Tokenizer::from_parts(parts).unwrap_err() {
        TokenizerError::Inconsistent(what) => what,
        other => panic!("{other}"),
    };
    let what = refused(parts(tokens.clone(), merge));
    assert_eq!(what, "a merge needs token \"ab\", there is none");
    let twice = [tokens.clone(), tokens[..1].to_vec()].concat();
    assert_eq!(refused(parts(twice, Vec::new())), "tokens 0 and 256 have the same text");
}
