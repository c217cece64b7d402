//! Token ids to text, one id at a time.
//!
//! A token is bytes, not text: a character may be spread over several tokens.
//! Whole characters are given out as soon as they are whole; bytes that can no
//! longer become one are given out as U+FFFD, exactly as
//! [`String::from_utf8_lossy`] does over all bytes at once.

use super::tokenizer::{SpecialTokens, Tokenizer};
use std::sync::Arc;

/// Turns a stream of token ids into a stream of text.
#[derive(Debug, Clone)]
pub struct IncrementalDetokenizer {
    tokenizer: Arc<Tokenizer>,
    special_tokens: SpecialTokens,
    /// The beginning of a character, at most 3 bytes between calls.
    pending: Vec<u8>,
}

impl IncrementalDetokenizer {
    /// A detokenizer at the start of a text.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>, special_tokens: SpecialTokens) -> Self {
        Self { tokenizer, special_tokens, pending: Vec::new() }
    }

    /// Takes the next id and gives out the text that it completes, perhaps none.
    pub fn push(&mut self, id: u32) -> String {
        if self.special_tokens == SpecialTokens::Skip && self.tokenizer.is_special(id) {
            return String::new();
        }
        self.pending.extend_from_slice(self.tokenizer.token_bytes(id));
        take_characters(&mut self.pending)
    }

    /// What is left when no more ids will come: nothing, or U+FFFD for a
    /// character that was never completed.
    pub fn flush(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        rest
    }
}

/// Takes whole characters from the front of `pending`, with U+FFFD for what can
/// no longer become one, and leaves a beginning that may.
fn take_characters(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut taken = 0;
    for chunk in pending.utf8_chunks() {
        text.push_str(chunk.valid());
        taken += chunk.valid().len();
        let invalid = chunk.invalid();
        let is_last = taken + invalid.len() == pending.len();
        if is_last && may_become_a_character(invalid) {
            break;
        }
        if !invalid.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
            taken += invalid.len();
        }
    }
    pending.drain(..taken);
    text
}

fn may_become_a_character(bytes: &[u8]) -> bool {
    matches!(std::str::from_utf8(bytes), Err(error) if error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::super::tokenizer::fixture;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn any_cut_of_any_bytes_gives_the_text_of_all_bytes(
            pieces in prop::collection::vec(
                prop::collection::vec(prop_oneof![any::<u8>(), Just(0xf0), Just(0x9f), Just(0x98), Just(0x80)], 0..4),
                0..16,
            ),
        ) {
            let mut pending = Vec::new();
            let mut text = String::new();
            for piece in &pieces {
                pending.extend_from_slice(piece);
                text += &take_characters(&mut pending);
                prop_assert!(pending.len() < 4);
            }
            text += &String::from_utf8_lossy(&pending);
            prop_assert_eq!(text, String::from_utf8_lossy(&pieces.concat()).into_owned());
        }

        #[test]
        fn one_by_one_equals_all_at_once(ids in prop::collection::vec(0u32..300, 0..64)) {
            let tokenizer = Arc::new(fixture::tokenizer());
            for special_tokens in [SpecialTokens::Skip, SpecialTokens::Keep] {
                let mut detokenizer = IncrementalDetokenizer::new(tokenizer.clone(), special_tokens);
                let mut text: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
                text += &detokenizer.flush();
                prop_assert_eq!(&text, &tokenizer.decode(&ids, special_tokens));
            }
        }
    }

    #[test]
    fn an_emoji_comes_out_with_its_last_byte() {
        let tokenizer = Arc::new(fixture::tokenizer());
        let ids: Vec<u32> = "😀".bytes().map(fixture::id_of_byte).collect();
        let mut detokenizer = IncrementalDetokenizer::new(tokenizer, SpecialTokens::Skip);
        let texts: Vec<String> = ids.iter().map(|&id| detokenizer.push(id)).collect();
        assert_eq!(texts, ["", "", "", "😀"]);
        detokenizer.push(ids[0]);
        assert_eq!(detokenizer.flush(), "\u{fffd}");
    }
}
