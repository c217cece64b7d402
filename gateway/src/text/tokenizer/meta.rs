//! A tokenizer from Meta's `tokenizer.model`.
//!
//! One line for each token: its bytes in base64, a space, and its rank, which is
//! its id. Which tokens merge follows from the ranks. The control tokens are not
//! in the file: they have the ids after the last rank, under names that Meta's
//! own package gives them, the same for Llama 3, 3.1 and 3.2.

use super::hugging_face::read_bounded;
use super::split::Splitter;
use super::{
    Cutting, Ends, Merges, Parts, Token, TokenKind, Tokenizer, TokenizerError, byte_level,
};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The name of the file.
const FILE: &str = "tokenizer.model";

/// The largest file read; Llama 3's has 2,183,982 bytes.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// The longest token taken, in bytes; Llama 3's longest has 128.
const MAX_TOKEN_BYTES: usize = 256;

/// How many ids control tokens have, named or reserved.
const NUM_CONTROL: u32 = 256;

/// The control tokens with a name, by their place after the last rank.
const CONTROL: [&str; 12] = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
];

/// The number in the name of the first control token after [`CONTROL`].
const FIRST_RESERVED: u32 = 2;

/// Places in [`CONTROL`] of the token that starts a text, and of those that end
/// a text, a message and a turn.
const BOS: u32 = 0;
const EOS: [u32; 3] = [1, 8, 9];

/// What is wrong with a `tokenizer.model`.
#[derive(Debug, thiserror::Error)]
#[error("{}{}: {problem}", path.display(), line.map(|line| format!(", line {line}")).unwrap_or_default())]
pub struct MetaTokenizerError {
    /// The file.
    pub path: PathBuf,
    /// The line, counted from 1, unless it is about the whole file.
    pub line: Option<usize>,
    /// What is wrong there.
    pub problem: MetaTokenizerProblem,
}

/// See [`MetaTokenizerError`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MetaTokenizerProblem {
    /// A line that is not two words.
    #[error("{0:?} is not a token in base64, a space and a rank")]
    Line(String),
    /// A token that is not base64.
    #[error("{text:?} is not base64: {reason}")]
    Base64 {
        /// The first word of the line.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A token of no bytes or of too many.
    #[error("the token has {found} bytes, it may have 1 to {MAX_TOKEN_BYTES}")]
    TokenBytes {
        /// How many it has.
        found: usize,
    },
    /// Ranks do not count up from 0.
    #[error("the rank is {found:?}, it must be {expected}: ranks count up from 0")]
    Rank {
        /// The second word of the line.
        found: String,
        /// What it must be.
        expected: u32,
    },
    /// A token that is there twice.
    #[error("the token is the same as on line {first}")]
    Duplicate {
        /// The line where it was first.
        first: usize,
    },
    /// A byte that text could not be made of.
    #[error("no token is the single byte 0x{0:02x}, all 256 are needed")]
    MissingByte(u8),
}

impl Tokenizer {
    /// The tokenizer of a directory with `tokenizer.model`.
    ///
    /// # Errors
    /// [`TokenizerError`] names the file, the line and what is wrong with it.
    pub fn from_meta(dir: &Path) -> Result<Self, TokenizerError> {
        let path = dir.join(FILE);
        let file = read_bounded(&path, MAX_FILE_BYTES)?;
        let mut tokens = ranked(&file)
            .map_err(|(line, problem)| Box::new(MetaTokenizerError { path, line, problem }))?;
        // The file has at most 16 MiB, so there are fewer lines than this.
        let num_ranks = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        let names = CONTROL.iter().map(|&name| name.to_owned());
        let reserved = (FIRST_RESERVED..).map(|n| format!("<|reserved_special_token_{n}|>"));
        let control = names.chain(reserved).take(NUM_CONTROL as usize);
        tokens.extend(control.map(|text| Token { text, kind: TokenKind::Control }));
        Self::from_parts(Parts {
            tokens,
            merges: Merges::ByRank,
            cutting: Cutting::Meta(Splitter::Llama3),
            ignore_merges: true,
            ends: Ends {
                bos: Some(num_ranks + BOS),
                adds_bos: true,
                eos: EOS.map(|place| num_ranks + place).to_vec(),
            },
        })
    }
}

type Problem = (Option<usize>, MetaTokenizerProblem);

/// The tokens of a file in the order of their ranks.
fn ranked(file: &[u8]) -> Result<Vec<Token>, Problem> {
    let mut tokens = Vec::new();
    let mut lines = HashMap::new();
    let file_lines = file.split(|&byte| byte == b'\n').enumerate();
    for (line, text) in file_lines.map(|(at, text)| (at + 1, text.trim_ascii())) {
        if text.is_empty() {
            continue;
        }
        let on_line = |problem| (Some(line), problem);
        let bytes = token(text, tokens.len()).map_err(on_line)?;
        let mut text = String::new();
        byte_level::push_encoded(&bytes, &mut text);
        if let Some(first) = lines.insert(bytes, line) {
            return Err(on_line(MetaTokenizerProblem::Duplicate { first }));
        }
        tokens.push(Token { text, kind: TokenKind::Normal });
    }
    let missing = (0..=u8::MAX).find(|&byte| !lines.contains_key(&[byte][..]));
    missing.map_or(Ok(tokens), |byte| Err((None, MetaTokenizerProblem::MissingByte(byte))))
}

/// The bytes of the token on a line, whose rank has to be the number of those before.
fn token(line: &[u8], num_before: usize) -> Result<Vec<u8>, MetaTokenizerProblem> {
    let quoted = |text: &[u8]| String::from_utf8_lossy(&text[..text.len().min(80)]).into_owned();
    let words: Vec<&[u8]> = line.split(u8::is_ascii_whitespace).filter(|w| !w.is_empty()).collect();
    let [base64, rank] = words[..] else { return Err(MetaTokenizerProblem::Line(quoted(line))) };
    let bytes = BASE64_STANDARD.decode(base64).map_err(|error| MetaTokenizerProblem::Base64 {
        text: quoted(base64),
        reason: error.to_string(),
    })?;
    if bytes.is_empty() || bytes.len() > MAX_TOKEN_BYTES {
        return Err(MetaTokenizerProblem::TokenBytes { found: bytes.len() });
    }
    let expected = u32::try_from(num_before).unwrap_or(u32::MAX);
    let found = std::str::from_utf8(rank).ok().and_then(|rank| rank.parse::<u32>().ok());
    if found != Some(expected) {
        return Err(MetaTokenizerProblem::Rank { found: quoted(rank), expected });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
