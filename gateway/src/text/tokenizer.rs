//! Text to token ids and back, with the ids that the model was trained on.
//!
//! Byte-level byte-pair encoding: text is cut into pieces (`split`), and the bytes
//! of each piece are merged into tokens (`merge`). Both take time linear in the
//! text. The `tokenizers` crate is used only for patterns that `split` does not
//! know, because it backtracks; in tests it is what ids are compared with.
//!
//! Control tokens (`<|eot_id|>` and the like) are set by a chat template and by
//! nothing else: [`Tokenizer::encode_text`] never yields one, and
//! [`Tokenizer::encode_prompt`] takes one only where no byte of it came from a
//! user. They are not even in the vocabulary that merging works with.
//!
//! Where the parts come from: `gguf` (GGUF metadata), `hugging_face` (a directory
//! with `tokenizer.json`) and `meta` (a directory with `tokenizer.model`).

mod byte_level;
#[cfg(test)]
pub(crate) mod fixture;
mod gguf;
mod hugging_face;
mod literals;
mod merge;
mod meta;
mod slices;
mod split;
#[cfg(test)]
mod tests;
mod vocabulary;

use literals::Literals;
use merge::{Merger, Scratch};
use split::Splitter;
use std::ops::Range;
use std::path::PathBuf;
use vocabulary::{Token, TokenKind, Vocabulary};

pub use meta::{MetaTokenizerError, MetaTokenizerProblem};

pub(super) use hugging_face::{optional_json, read_bounded, token_text as special_text};

/// Whether control tokens show in decoded text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// They are left out.
    Skip,
    /// They are written by name.
    Keep,
}

/// A model's tokenizer. Encoding takes CPU time in proportion to the text, so
/// long texts belong on a blocking thread.
#[derive(Debug)]
pub struct Tokenizer {
    encoder: Encoder,
    vocabulary: Vocabulary,
    control: Literals,
    user_defined: Literals,
    ends: Ends,
}

/// The ids with a meaning at the start and end of a text.
#[derive(Debug, Clone, Default)]
struct Ends {
    bos: Option<u32>,
    adds_bos: bool,
    /// Ids after which the model itself ends its turn, without duplicates.
    eos: Vec<u32>,
}

/// What a model file has to tell for a tokenizer to be made.
#[derive(Debug)]
struct Parts {
    /// By id.
    tokens: Vec<Token>,
    merges: Merges,
    cutting: Cutting,
    /// A piece that is a token is that token, even if merging would not get there.
    ignore_merges: bool,
    ends: Ends,
}

/// Which tokens merge.
#[derive(Debug)]
enum Merges {
    /// These pairs in the byte alphabet, in the order of their rank.
    Listed(Vec<(String, String)>),
    /// Every two tokens that together are a third one, at the rank of its id.
    ByRank,
}

/// How text is cut into pieces.
#[derive(Debug)]
enum Cutting {
    Known(Splitter),
    /// As `Known`, after cutting long texts and runs as Meta does (`slices`).
    Meta(Splitter),
    /// A pattern only the crate can run, with the whole tokenizer it came in.
    Crate(Box<tokenizers::Tokenizer>),
}

#[derive(Debug)]
enum Encoder {
    Known { splitter: Splitter, merger: Box<Merger>, is_meta: bool },
    Crate(Box<tokenizers::Tokenizer>),
}

/// Why a tokenizer could not be made, or (the last two) could not encode.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file is larger than any of its kind.
    #[error("{} has {found} bytes, the limit is {max}", path.display())]
    FileSize {
        /// The file.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// The most it may have.
        max: u64,
    },
    /// A file is not the JSON it should be.
    #[error("{} is not valid", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        #[source]
        source: serde_json::Error,
    },
    /// The GGUF metadata is damaged or lacks something.
    #[error("the tokenizer's GGUF metadata cannot be used")]
    Gguf(#[from] ::gguf::GgufError),
    /// Meta's `tokenizer.model` is damaged.
    #[error(transparent)]
    Meta(#[from] Box<MetaTokenizerError>),
    /// A kind of tokenizer that is not supported.
    #[error("{what} {found:?} is not supported, supported are: {supported}")]
    Unsupported {
        /// What is not supported, such as `tokenizer.ggml.pre`.
        what: &'static str,
        /// Its value.
        found: String,
        /// The values that are.
        supported: &'static str,
    },
    /// Parts of a tokenizer contradict each other.
    #[error("the tokenizer is inconsistent: {0}")]
    Inconsistent(String),
    /// A vocabulary of no or of too many tokens.
    #[error("the vocabulary has {found} tokens, it may have 1 to {max}")]
    VocabularySize {
        /// How many it has.
        found: usize,
        /// The most it may have.
        max: usize,
    },
    /// The crate could not encode a text.
    #[error("the text cannot be tokenized: {0}")]
    Encode(String),
    /// Merging arrived at a control token, which only a template may set.
    #[error("the text contains token {0}, which is reserved for the chat template")]
    ControlToken(u32),
}

impl Tokenizer {
    /// Encodes text of which nothing is a control token, whatever it looks like.
    /// No token is added at either end.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`] if the model's own pattern fails on the text,
    /// which Llama 3's, SmolLM's and GPT-2's cannot, or for 4 GiB of text.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::with_capacity(text.len() / 4);
        self.encode_into(text, &mut ids)?;
        Ok(ids)
    }

    /// As [`Tokenizer::encode_text`], after the ids that are there already.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_text`].
    pub fn encode_into(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        self.encode_run(text, ids)
    }

    /// Encodes a rendered chat: control tokens are taken where they lie wholly
    /// outside `content`, the sorted byte ranges that came from users. What lies
    /// between control tokens is encoded as one text, so that merges cross the
    /// borders of content as they did in training.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_text`].
    pub fn encode_prompt(
        &self,
        text: &str,
        content: &[Range<usize>],
    ) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::with_capacity(text.len() / 4);
        let mut at = 0;
        // Occurrences come in order, so the ranges behind one are behind all later ones.
        let mut next_content = 0;
        let mut is_template = |found: &Range<usize>| {
            while content.get(next_content).is_some_and(|range| range.end <= found.start) {
                next_content += 1;
            }
            content.get(next_content).is_none_or(|range| range.start >= found.end)
        };
        while let Some((found, id)) = self.control.find(text, at, &mut is_template) {
            self.encode_run(&text[at..found.start], &mut ids)?;
            ids.push(id);
            at = found.end;
        }
        self.encode_run(&text[at..], &mut ids)?;
        Ok(ids)
    }

    /// The text of these ids, with U+FFFD for bytes that are no character.
    #[must_use]
    pub fn decode(&self, ids: &[u32], special_tokens: SpecialTokens) -> String {
        let keep = |id: &u32| special_tokens == SpecialTokens::Keep || !self.is_special(*id);
        let bytes: Vec<u8> = ids
            .iter()
            .copied()
            .filter(keep)
            .flat_map(|id| self.token_bytes(id).iter().copied())
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes that a token stands for; none if there is no such token.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.vocabulary.bytes(id)
    }

    /// The text of one token alone, with U+FFFD for bytes that are no character.
    #[must_use]
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.token_bytes(id)).into_owned()
    }

    /// The number of token ids.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// Whether the token is a control token.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.vocabulary.is_control(id)
    }

    /// The id of a control token by its name, such as `<|eot_id|>`.
    #[must_use]
    pub fn special_id(&self, name: &str) -> Option<u32> {
        self.control.get(name)
    }

    /// The names of all control tokens.
    pub(super) fn control_tokens(&self) -> Vec<String> {
        self.control.texts().map(str::to_owned).collect()
    }

    /// The ids after which the model itself ends its turn.
    #[must_use]
    pub fn eos_ids(&self) -> &[u32] {
        &self.ends.eos
    }

    /// The id that starts a text, if the model has one.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.ends.bos
    }

    /// Whether a text that no chat template rendered starts with [`Tokenizer::bos`].
    #[must_use]
    pub fn adds_bos(&self) -> bool {
        self.ends.adds_bos
    }

    /// Bytes of the longest token that text can become: a text longer than this
    /// times the context cannot fit, which is known before it is tokenized.
    #[must_use]
    pub fn max_token_bytes(&self) -> usize {
        self.vocabulary.max_token_bytes()
    }

    fn from_parts(parts: Parts) -> Result<Self, TokenizerError> {
        let Parts { tokens, merges, cutting, ignore_merges, ends } = parts;
        let vocabulary = Vocabulary::new(&tokens)?;
        let known = |id: u32| (id as usize) < tokens.len();
        if let Some(id) = ends.bos.iter().chain(&ends.eos).copied().find(|&id| !known(id)) {
            let size = tokens.len();
            return Err(TokenizerError::Inconsistent(format!(
                "token {id} starts or ends a text, the vocabulary has {size} tokens"
            )));
        }
        let of_kind = |kind| {
            let texts = (0u32..).zip(&tokens).filter(move |(_, token)| token.kind == kind);
            Literals::new(texts.map(|(id, token)| (token.text.as_str(), id)))
        };
        let (control, user_defined) =
            (of_kind(TokenKind::Control), of_kind(TokenKind::UserDefined));
        let merger = || Merger::new(&tokens, &vocabulary, &merges, ignore_merges).map(Box::new);
        let encoder = match cutting {
            Cutting::Crate(tokenizer) => Encoder::Crate(tokenizer),
            Cutting::Known(splitter) => {
                Encoder::Known { splitter, merger: merger()?, is_meta: false }
            }
            Cutting::Meta(splitter) => {
                Encoder::Known { splitter, merger: merger()?, is_meta: true }
            }
        };
        Ok(Self { encoder, vocabulary, control, user_defined, ends })
    }

    /// Encodes a run of plain text, in which only user-defined tokens are literal.
    fn encode_run(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let (splitter, merger, is_meta) = match &self.encoder {
            Encoder::Known { splitter, merger, is_meta } => (*splitter, merger, *is_meta),
            Encoder::Crate(tokenizer) => return self.encode_by_crate(tokenizer, text, ids),
        };
        if u32::try_from(text.len()).is_err() {
            let bytes = text.len();
            return Err(TokenizerError::Encode(format!("it has {bytes} bytes, 2^32 are too many")));
        }
        let mut scratch = Scratch::default();
        let mut encode = |text: &str, ids: &mut Vec<u32>| {
            splitter.split(text, |piece| {
                merger.encode(piece.as_bytes(), &self.vocabulary, &mut scratch, ids);
            });
        };
        if is_meta {
            slices::cut(text, |slice| encode(slice, ids));
            return Ok(());
        }
        let mut at = 0;
        while let Some((found, id)) = self.user_defined.find(text, at, |_| true) {
            encode(&text[at..found.start], ids);
            ids.push(id);
            at = found.end;
        }
        encode(&text[at..], ids);
        Ok(())
    }

    fn encode_by_crate(
        &self,
        tokenizer: &tokenizers::Tokenizer,
        text: &str,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let encoding = tokenizer
            .encode_fast(text, false)
            .map_err(|error| TokenizerError::Encode(error.to_string()))?;
        let new = encoding.get_ids();
        if let Some(&id) = new.iter().find(|&&id| self.is_special(id)) {
            return Err(TokenizerError::ControlToken(id));
        }
        ids.extend_from_slice(new);
        Ok(())
    }
}
