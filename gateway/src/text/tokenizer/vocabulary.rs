//! The tokens of a model by id: their bytes, and which of them are control tokens.

use super::{TokenizerError, byte_level};

/// The most tokens a vocabulary may have; Llama 3 has 128,256.
const MAX_TOKENS: usize = 1 << 22;

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// A piece of text that merging arrives at.
    Normal,
    /// A piece of text that is one token wherever it stands, also in a user's text.
    UserDefined,
    /// A mark that only a template may set; in a user's text its name is text.
    Control,
}

/// One token as a model file describes it.
#[derive(Debug, Clone)]
pub(super) struct Token {
    /// In the byte alphabet if normal, else as it is.
    pub(super) text: String,
    pub(super) kind: TokenKind,
}

/// The bytes and kinds of all tokens, packed.
#[derive(Debug, Clone)]
pub(super) struct Vocabulary {
    bytes: Vec<u8>,
    /// Where each token's bytes end.
    ends: Vec<usize>,
    is_control: Vec<bool>,
    max_token_bytes: usize,
}

impl Vocabulary {
    pub(super) fn new(tokens: &[Token]) -> Result<Self, TokenizerError> {
        if tokens.is_empty() || tokens.len() > MAX_TOKENS {
            return Err(TokenizerError::VocabularySize { found: tokens.len(), max: MAX_TOKENS });
        }
        let mut vocabulary = Self {
            bytes: Vec::new(),
            ends: Vec::with_capacity(tokens.len()),
            is_control: Vec::with_capacity(tokens.len()),
            max_token_bytes: 0,
        };
        for token in tokens {
            let start = vocabulary.bytes.len();
            match token.kind {
                TokenKind::Normal => vocabulary.bytes.extend(byte_level::decoded(&token.text)),
                TokenKind::UserDefined | TokenKind::Control => {
                    vocabulary.bytes.extend(token.text.as_bytes());
                }
            }
            let end = vocabulary.bytes.len();
            let is_control = token.kind == TokenKind::Control;
            if !is_control {
                vocabulary.max_token_bytes = vocabulary.max_token_bytes.max(end - start);
            }
            vocabulary.ends.push(end);
            vocabulary.is_control.push(is_control);
        }
        Ok(vocabulary)
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn max_token_bytes(&self) -> usize {
        self.max_token_bytes
    }

    /// The token's bytes; none for an id outside the vocabulary.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..end]
    }

    pub(super) fn is_control(&self, id: u32) -> bool {
        self.is_control.get(id as usize).copied().unwrap_or(false)
    }
}
