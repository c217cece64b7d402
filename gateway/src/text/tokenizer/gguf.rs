//! A tokenizer from the metadata of a GGUF file.

use super::split::Splitter;
use super::{Cutting, Ends, Merges, Parts, Token, TokenKind, Tokenizer, TokenizerError};
use gguf::{GgufError, Metadata};

/// Names by which a control token ends a turn, for files that do not say so by id.
const END_OF_TURN: [&str; 6] =
    ["<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "<|end|>"];

impl Tokenizer {
    /// The tokenizer that the metadata describes.
    ///
    /// # Errors
    /// [`TokenizerError`] names the key that is missing, wrong or not supported.
    pub fn from_gguf(metadata: &Metadata<'_>) -> Result<Self, TokenizerError> {
        let model = metadata.str("tokenizer.ggml.model")?;
        if model != "gpt2" {
            return Err(TokenizerError::Unsupported {
                what: "tokenizer.ggml.model",
                found: model.to_owned(),
                supported: "gpt2",
            });
        }
        let pre = metadata.optional_str("tokenizer.ggml.pre")?.unwrap_or("default");
        let splitter = splitter(pre)?;
        let tokens = tokens(metadata)?;
        let is_llama3 = splitter == Splitter::Llama3;
        let adds_bos = metadata.optional_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(is_llama3);
        let ends = ends(metadata, &tokens, adds_bos)?;
        Self::from_parts(Parts {
            tokens,
            merges: Merges::Listed(merges(metadata)?),
            cutting: Cutting::Known(splitter),
            ignore_merges: is_llama3,
            ends,
        })
    }
}

/// The names are llama.cpp's; those in one arm have the same pattern there. It
/// has another one for files without a name, made up for lack of it; GPT-2's is
/// what byte-level tokenizers have unless they say otherwise.
fn splitter(pre: &str) -> Result<Splitter, TokenizerError> {
    match pre {
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => Ok(Splitter::SmolLm),
        "llama-bpe" | "llama3" | "llama-v3" => Ok(Splitter::Llama3),
        "gpt-2" | "default" => Ok(Splitter::Gpt2),
        _ => Err(TokenizerError::Unsupported {
            what: "tokenizer.ggml.pre",
            found: pre.to_owned(),
            supported: "llama-bpe, llama3, llama-v3, smollm, starcoder, refact, command-r, codeshell, gpt-2, default",
        }),
    }
}

fn tokens(metadata: &Metadata<'_>) -> Result<Vec<Token>, TokenizerError> {
    let texts = metadata.strings("tokenizer.ggml.tokens")?;
    let types = metadata.optional_i32s("tokenizer.ggml.token_type")?;
    let types = types.unwrap_or_else(|| vec![1; texts.len()]);
    if types.len() != texts.len() {
        return Err(TokenizerError::Inconsistent(format!(
            "there are {} tokens and {} token types",
            texts.len(),
            types.len()
        )));
    }
    let kind = |number| match number {
        // 2 is the token for what the vocabulary lacks; no text should become it.
        2 | 3 => TokenKind::Control,
        4 => TokenKind::UserDefined,
        _ => TokenKind::Normal,
    };
    let token = |(text, number): (&str, i32)| Token { text: text.to_owned(), kind: kind(number) };
    Ok(texts.zip(types).map(token).collect())
}

fn merges(metadata: &Metadata<'_>) -> Result<Vec<(String, String)>, TokenizerError> {
    let pair = |merge: &str| match merge.split_once(' ') {
        Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
        None => Err(TokenizerError::Inconsistent(format!("merge {merge:?} is not a pair"))),
    };
    metadata.strings("tokenizer.ggml.merges")?.map(pair).collect()
}

fn ends(metadata: &Metadata<'_>, tokens: &[Token], adds_bos: bool) -> Result<Ends, GgufError> {
    let bos = metadata.optional_u32("tokenizer.ggml.bos_token_id")?;
    let mut eos = Vec::new();
    for key in ["eos", "eot", "eom"] {
        eos.extend(metadata.optional_u32(&format!("tokenizer.ggml.{key}_token_id"))?);
    }
    let ends_turn = |token: &Token| {
        token.kind == TokenKind::Control && END_OF_TURN.contains(&token.text.as_str())
    };
    eos.extend((0u32..).zip(tokens).filter(|(_, token)| ends_turn(token)).map(|(id, _)| id));
    eos.sort_unstable();
    eos.dedup();
    Ok(Ends { bos, adds_bos, eos })
}
