//! Cutting text into the pieces that byte-pair encoding merges within.
//!
//! The patterns are those of the models' own tokenizers, as regular expressions
//! with look-ahead; here they are scanned by hand. A backtracking engine keeps a
//! stack entry for every character of a run of spaces and gives up at a million
//! of them; this takes one pass, constant space, and time linear in the text,
//! whatever the text. Tests compare it with the expressions themselves.

use std::sync::LazyLock;
use tokenizers::utils::SysRegex;

/// How a model cuts text before merging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Splitter {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// Every `\p{N}` alone, then [`Splitter::Gpt2`] on what lies between.
    SmolLm,
    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|
    /// ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    Llama3,
}

impl Splitter {
    /// Calls `piece` with each piece in turn; together they are the text.
    pub(super) fn split<'t>(self, text: &'t str, mut piece: impl FnMut(&'t str)) {
        match self {
            Self::Gpt2 => runs(text, gpt2, &mut piece),
            Self::Llama3 => runs(text, llama3, &mut piece),
            Self::SmolLm => {
                let mut rest = text;
                while let Some(at) = rest.find(char::is_numeric) {
                    runs(&rest[..at], gpt2, &mut piece);
                    let end = at + rest[at..].chars().next().map_or(0, char::len_utf8);
                    piece(&rest[at..end]);
                    rest = &rest[end..];
                }
                runs(rest, gpt2, &mut piece);
            }
        }
    }
}

/// Cuts `text` by `next`, which gives the length in bytes of the piece that its
/// argument starts with: at least one character.
fn runs<'t>(text: &'t str, next: fn(&str) -> usize, piece: &mut impl FnMut(&'t str)) {
    let mut rest = text;
    while !rest.is_empty() {
        let (head, tail) = rest.split_at(next(rest));
        piece(head);
        rest = tail;
    }
}

fn gpt2(text: &str) -> usize {
    if let Some(len) = contraction(text, |char, letter| char == letter) {
        return len;
    }
    let space = usize::from(text.starts_with(' '));
    let after = &text[space..];
    match after.chars().next().map(Class::of) {
        Some(Class::Letter) => space + prefix(after, |char| Class::of(char) == Class::Letter),
        Some(Class::Number) => space + prefix(after, |char| Class::of(char) == Class::Number),
        Some(Class::Other) => space + prefix(after, |char| Class::of(char) == Class::Other),
        Some(Class::Space) | None => spaces(text, prefix(text, char::is_whitespace)),
    }
}

fn llama3(text: &str) -> usize {
    let letters = |text: &str| prefix(text, |char| Class::of(char) == Class::Letter);
    // U+017F is what Unicode folds to "s", so the case-insensitive pattern takes it too.
    let folded = |char: char, letter| {
        char.to_ascii_lowercase() == letter || (letter == 's' && char == '\u{17f}')
    };
    if let Some(len) = contraction(text, folded) {
        return len;
    }
    let Some(first) = text.chars().next() else { return 0 };
    let class = Class::of(first);
    if class == Class::Letter {
        return letters(text);
    }
    if !matches!(first, '\r' | '\n') && class != Class::Number {
        let run = letters(&text[first.len_utf8()..]);
        if run > 0 {
            return first.len_utf8() + run;
        }
    }
    if class == Class::Number {
        let numbers = text.chars().take(3).take_while(|&char| Class::of(char) == Class::Number);
        return numbers.map(char::len_utf8).sum();
    }
    let space = usize::from(first == ' ');
    let others = prefix(&text[space..], |char| Class::of(char) == Class::Other);
    if others > 0 {
        let end = space + others;
        return end + prefix(&text[end..], |char| matches!(char, '\r' | '\n'));
    }
    let run = prefix(text, char::is_whitespace);
    match text[..run].rfind(['\r', '\n']) {
        Some(newline) => newline + 1,
        None => spaces(text, run),
    }
}

/// `\s+(?!\S)|\s+`: all of a run of spaces at the end of the text, else all but
/// its last, which belongs to the word that follows.
fn spaces(text: &str, run: usize) -> usize {
    if run == text.len() {
        return run;
    }
    let last = text[..run].chars().next_back().map_or(0, char::len_utf8);
    if run > last { run - last } else { run }
}

/// The length of an English contraction at the start of the text.
fn contraction(text: &str, same: impl Fn(char, char) -> bool) -> Option<usize> {
    let mut chars = text.strip_prefix('\'')?.chars();
    let (first, second) = (chars.next()?, chars.next());
    let one = ['s', 't', 'm', 'd'].iter().any(|&letter| same(first, letter));
    if one {
        return Some(1 + first.len_utf8());
    }
    let second = second?;
    let two = [('r', 'e'), ('v', 'e'), ('l', 'l')];
    let two = two.iter().any(|&(a, b)| same(first, a) && same(second, b));
    two.then(|| 1 + first.len_utf8() + second.len_utf8())
}

/// The length in bytes of the longest prefix of characters that satisfy `is`.
fn prefix(text: &str, is: impl Fn(char) -> bool) -> usize {
    text.find(|char| !is(char)).unwrap_or(text.len())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\s`
    Space,
    Other,
}

impl Class {
    fn of(char: char) -> Self {
        if let Some(&class) = ASCII.get(char as usize) {
            class
        } else if char.is_whitespace() {
            Self::Space
        } else if LETTERS.contains(char) {
            Self::Letter
        } else if NUMBERS.contains(char) {
            Self::Number
        } else {
            Self::Other
        }
    }
}

/// The classes of ASCII, where most text is.
const ASCII: [Class; 128] = {
    let mut classes = [Class::Other; 128];
    let mut code = 0u8;
    while code < 128 {
        classes[code as usize] = match code {
            b'a'..=b'z' | b'A'..=b'Z' => Class::Letter,
            b'0'..=b'9' => Class::Number,
            b' ' | b'\t'..=b'\r' => Class::Space,
            _ => Class::Other,
        };
        code += 1;
    }
    classes
};

/// One bit for each code point: whether it is in the class. The standard library
/// has "alphabetic" but not `\p{L}`, and a newer Unicode than the regular
/// expression engine, so the classes are asked of the engine, once.
struct CodePoints(Vec<u64>);

static LETTERS: LazyLock<CodePoints> = LazyLock::new(|| CodePoints::matching(r"\p{L}+"));
static NUMBERS: LazyLock<CodePoints> = LazyLock::new(|| CodePoints::matching(r"\p{N}+"));

impl CodePoints {
    fn matching(pattern: &str) -> Self {
        let all: String = (0..=u32::from(char::MAX)).filter_map(char::from_u32).collect();
        let class = SysRegex::new(pattern).expect("the patterns are constants");
        let mut bits = vec![0u64; (char::MAX as usize + 1) / 64];
        for (start, end) in class.find_iter(&all) {
            for char in all[start..end].chars() {
                bits[char as usize / 64] |= 1 << (char as usize % 64);
            }
        }
        Self(bits)
    }

    fn contains(&self, char: char) -> bool {
        self.0[char as usize / 64] >> (char as usize % 64) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GPT2: &str =
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
    const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

    static REGEXES: LazyLock<[SysRegex; 2]> =
        LazyLock::new(|| [GPT2, LLAMA3].map(|pattern| SysRegex::new(pattern).unwrap()));

    fn cut(index: usize, text: &str) -> Vec<&str> {
        REGEXES[index].find_iter(text).map(|(start, end)| &text[start..end]).collect()
    }

    fn by_regex(splitter: Splitter, text: &str) -> Vec<&str> {
        match splitter {
            Splitter::Gpt2 => cut(0, text),
            Splitter::Llama3 => cut(1, text),
            Splitter::SmolLm => text
                .split_inclusive(char::is_numeric)
                .flat_map(|part| {
                    let end = part.trim_end_matches(char::is_numeric).len();
                    let mut pieces = cut(0, &part[..end]);
                    pieces.extend((end < part.len()).then_some(&part[end..]));
                    pieces
                })
                .collect(),
        }
    }

    fn check(text: &str) {
        for splitter in [Splitter::Gpt2, Splitter::SmolLm, Splitter::Llama3] {
            let mut pieces = Vec::new();
            splitter.split(text, |piece| pieces.push(piece));
            assert_eq!(pieces.concat(), text);
            assert_eq!(pieces, by_regex(splitter, text), "{splitter:?} of {text:?}");
        }
    }

    #[test]
    fn every_character_in_every_company_is_cut_as_by_the_regex() {
        for char in (0..=0x2_ffffu32).filter_map(char::from_u32) {
            check(&format!("a{char} {char}1{char}"));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn structured_text_is_cut_as_by_the_regex(
            text in prop::collection::vec(
                prop_oneof![
                    Just(" "), Just("  "), Just("\n"), Just("\r\n"), Just("\t"), Just("\u{a0}"),
                    Just("'"), Just("'s"), Just("'S"), Just("'\u{17f}"), Just("'lL"), Just("'re"),
                    Just("a"), Just("Zé"), Just("1"), Just("2345"), Just("½"), Just("."), Just("!?"),
                    Just("日本"), Just("😀"), Just("e\u{301}"), Just("\u{3000}"), Just("_"),
                ],
                0..12,
            ),
        ) {
            check(&text.concat());
        }

        #[test]
        fn any_text_is_cut_as_by_the_regex(text in "\\PC{0,24}") {
            check(&text);
        }
    }
}
