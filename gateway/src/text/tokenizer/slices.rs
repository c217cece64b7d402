//! Meta's cutting of long texts, before anything else looks at them.
//!
//! Its tokenizer hands `tiktoken` at most 400,000 characters at a time, and no
//! more than 25,000 in a row that all are whitespace or all are not. Pieces and
//! merges end at such a cut, so the ids of long texts depend on it.

/// The most characters of a slice.
const MAX_CHARS: usize = 400_000;

/// The most characters in a row of one kind.
const MAX_RUN_CHARS: usize = 25_000;

/// Calls `slice` with each slice in turn; together they are the text.
pub(super) fn cut<'t>(text: &'t str, mut slice: impl FnMut(&'t str)) {
    let (mut start, mut num_chars, mut run, mut was_space) = (0, 0, 0, false);
    // A text of fewer bytes has no place to cut.
    let chars = if text.len() > MAX_RUN_CHARS { text } else { "" };
    for (at, char) in chars.char_indices() {
        let is_space = is_space(char);
        if num_chars == MAX_CHARS {
            slice(&text[start..at]);
            (start, num_chars, run) = (at, 0, 0);
        }
        if is_space != was_space {
            run = 0;
        }
        if run == MAX_RUN_CHARS {
            slice(&text[start..at]);
            (start, run) = (at, 0);
        }
        (run, was_space, num_chars) = (run + 1, is_space, num_chars + 1);
    }
    slice(&text[start..]);
}

/// What Python calls a space: Unicode's, and four separators of ASCII.
fn is_space(char: char) -> bool {
    char.is_whitespace() || matches!(char, '\u{1c}'..='\u{1f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lens(text: &str) -> Vec<usize> {
        let mut lens = Vec::new();
        let mut all = String::new();
        cut(text, |slice| {
            lens.push(slice.chars().count());
            all += slice;
        });
        assert_eq!(all, text);
        lens
    }

    #[test]
    fn runs_end_at_25_000_characters_and_slices_at_400_000() {
        assert_eq!(lens(""), [0]);
        assert_eq!(lens(&"a".repeat(25_000)), [25_000]);
        assert_eq!(lens(&"é".repeat(25_001)), [25_000, 1]);
        assert_eq!(lens(&" \u{1c}".repeat(25_001)), [25_000, 25_000, 2]);
        let mixed = format!("{}{}{}", "a".repeat(24_999), " ".repeat(25_000), "b".repeat(25_001));
        assert_eq!(lens(&mixed), [74_999, 1]);
        assert_eq!(lens(&"ab ".repeat(200_000)), [400_000, 200_000]);
        // A run goes on from slice to slice only within 400,000 characters.
        let text = format!("{}{}", "a ".repeat(199_995), "b".repeat(25_010));
        assert_eq!(lens(&text), [400_000, 25_000]);
        let text = format!("{}{}", "a ".repeat(199_995), "b".repeat(25_011));
        assert_eq!(lens(&text), [400_000, 25_000, 1]);
    }
}
