//! The byte alphabet of GPT-2: a printable character for every byte.
//!
//! Vocabularies and merges are written in it, so that every token is text.

use std::sync::LazyLock;

/// First code point given to bytes that have no printable character of their own.
const SHIFTED: u32 = 256;

struct Alphabet {
    chars: [char; 256],
    /// The byte of each character below `SHIFTED + 256`.
    bytes: [Option<u8>; 2 * 256],
}

static ALPHABET: LazyLock<Alphabet> = LazyLock::new(|| {
    let mut alphabet = Alphabet { chars: ['\0'; 256], bytes: [None; 2 * 256] };
    let mut next = SHIFTED;
    for byte in 0..=u8::MAX {
        let code = if matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) {
            u32::from(byte)
        } else {
            next += 1;
            next - 1
        };
        alphabet.chars[usize::from(byte)] =
            char::from_u32(code).expect("the codes are below the surrogates");
        alphabet.bytes[code as usize] = Some(byte);
    }
    alphabet
});

/// Appends the characters that stand for these bytes.
pub(super) fn push_encoded(bytes: &[u8], out: &mut String) {
    let chars = &ALPHABET.chars;
    out.extend(bytes.iter().map(|&byte| chars[usize::from(byte)]));
}

/// The bytes that a token stands for; a token that is not written in the
/// alphabet stands for its own UTF-8.
pub(super) fn decoded(token: &str) -> Vec<u8> {
    let bytes = &ALPHABET.bytes;
    let decoded: Option<Vec<u8>> =
        token.chars().map(|char| bytes.get(char as usize).copied().flatten()).collect();
    decoded.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// Whether the text is written in the alphabet.
pub(super) fn is_encoded(text: &str) -> bool {
    text.chars().all(|char| ALPHABET.bytes.get(char as usize).copied().flatten().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        let mut text = String::new();
        push_encoded(&all, &mut text);
        assert_eq!(text.chars().count(), 256);
        assert!(text.chars().all(|char| !char.is_whitespace() && !char.is_control()));
        assert_eq!(decoded(&text), all);
        assert!(is_encoded(&text));
    }

    #[test]
    fn the_alphabet_is_gpt2s() {
        let mut text = String::new();
        push_encoded("a \n é".as_bytes(), &mut text);
        assert_eq!(text, "aĠĊĠÃ©");
        assert_eq!(decoded("日本"), "日本".as_bytes());
        assert!(!is_encoded("a日") && !is_encoded(" "));
    }
}
