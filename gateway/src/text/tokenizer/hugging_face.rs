//! A tokenizer from a Hugging Face directory: `tokenizer.json`, and what
//! `tokenizer_config.json` and `generation_config.json` add to it.

use super::split::Splitter;
use super::{Cutting, Ends, Merges, Parts, Token, TokenKind, Tokenizer, TokenizerError};
use serde_json::Value;
use std::io::Read;
use std::path::Path;

/// The largest JSON file read; Llama 3's `tokenizer.json` has 9 MB.
const MAX_JSON_BYTES: u64 = 128 << 20;

/// Llama 3's pattern as its `tokenizer.json` spells it.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Tokenizer {
    /// The tokenizer of a directory with `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError`] names the file, and what in it is missing, wrong or
    /// not supported.
    pub fn from_hugging_face(dir: &Path) -> Result<Self, TokenizerError> {
        let path = dir.join("tokenizer.json");
        let bytes = read_bounded(&path, MAX_JSON_BYTES)?;
        let json: Value = serde_json::from_slice(&bytes)
            .map_err(|source| TokenizerError::Json { path: path.clone(), source })?;
        let config = optional_json(&dir.join("tokenizer_config.json"))?;
        let generation = optional_json(&dir.join("generation_config.json"))?;

        let model = &json["model"];
        let kind = model["type"].as_str().unwrap_or("BPE");
        if kind != "BPE" || !contains_type(&json["decoder"], "ByteLevel") {
            return Err(TokenizerError::Unsupported {
                what: "the model of tokenizer.json",
                found: kind.to_owned(),
                supported: "BPE with a ByteLevel decoder",
            });
        }
        let tokens = tokens(&json)?;
        let ends = ends(&json, &config, &generation, &tokens);
        let cutting = match splitter(&json) {
            Some(splitter) => Cutting::Known(splitter),
            None => Cutting::Crate(Box::new(by_crate(&bytes)?)),
        };
        Self::from_parts(Parts {
            tokens,
            merges: Merges::Listed(merges(model)?),
            cutting,
            ignore_merges: model["ignore_merges"].as_bool().unwrap_or(false),
            ends,
        })
    }
}

/// Reads a file of at most `max` bytes.
pub(in super::super) fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>, TokenizerError> {
    let read = |source| TokenizerError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(read)?;
    let found = file.metadata().map_err(read)?.len();
    if found > max {
        return Err(TokenizerError::FileSize { path: path.to_owned(), found, max });
    }
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes).map_err(read)?;
    Ok(bytes)
}

/// A JSON file, or null if there is none.
pub(in super::super) fn optional_json(path: &Path) -> Result<Value, TokenizerError> {
    match read_bounded(path, MAX_JSON_BYTES) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|source| TokenizerError::Json { path: path.to_owned(), source }),
        Err(TokenizerError::Read { source, .. })
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(Value::Null)
        }
        Err(error) => Err(error),
    }
}

/// The text of a special token in `tokenizer_config.json`: a string, or an
/// object that has it as `content`.
pub(in super::super) fn token_text<'j>(config: &'j Value, key: &str) -> Option<&'j str> {
    let token = &config[key];
    token.as_str().or_else(|| token["content"].as_str())
}

fn by_crate(bytes: &[u8]) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes)
        .map_err(|error| TokenizerError::Inconsistent(error.to_string()))?;
    // The crate's name for it is inverted: special tokens in the text are text.
    tokenizer.set_encode_special_tokens(true);
    let no_truncation = tokenizer.with_truncation(None);
    no_truncation.map_err(|error| TokenizerError::Inconsistent(error.to_string()))?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// Whether `part`, or a part of it if it is a sequence, has this type.
fn contains_type(part: &Value, name: &str) -> bool {
    steps(part).iter().any(|step| step["type"] == name)
}

/// The steps of a sequence, or the one step that the part is.
fn steps(part: &Value) -> Vec<&Value> {
    let list =
        ["pretokenizers", "decoders", "processors"].iter().find_map(|key| part[key].as_array());
    list.map_or_else(|| vec![part], |list| list.iter().collect())
}

/// The known way of cutting that this tokenizer's is, if it is one.
fn splitter(json: &Value) -> Option<Splitter> {
    if !json["normalizer"].is_null() {
        return None;
    }
    let added = json["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
    let strips = |token: &&Value| {
        ["lstrip", "rstrip", "single_word"].iter().any(|key| token[key] == Value::Bool(true))
    };
    if added.iter().any(|token| strips(&token)) {
        return None;
    }
    let byte_level = |step: &Value, use_regex: bool| {
        step["type"] == "ByteLevel"
            && step["add_prefix_space"] == false
            && step["use_regex"].as_bool().unwrap_or(true) == use_regex
    };
    match steps(&json["pre_tokenizer"])[..] {
        [only] if byte_level(only, true) => Some(Splitter::Gpt2),
        [digits, rest]
            if digits["type"] == "Digits"
                && digits["individual_digits"] == true
                && byte_level(rest, true) =>
        {
            Some(Splitter::SmolLm)
        }
        [split, rest]
            if split["type"] == "Split"
                && split["pattern"]["Regex"] == LLAMA3
                && split["behavior"] == "Isolated"
                && split["invert"] == false
                && byte_level(rest, false) =>
        {
            Some(Splitter::Llama3)
        }
        _ => None,
    }
}

fn tokens(json: &Value) -> Result<Vec<Token>, TokenizerError> {
    let missing =
        |what: &str| TokenizerError::Inconsistent(format!("tokenizer.json has no {what}"));
    let vocab = json["model"]["vocab"].as_object().ok_or_else(|| missing("model.vocab"))?;
    let added = json["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
    let normal = vocab.iter().map(|(text, id)| (text.as_str(), id, TokenKind::Normal));
    let added = added.iter().map(|token| {
        let is_special = token["special"] == Value::Bool(true);
        let kind = if is_special { TokenKind::Control } else { TokenKind::UserDefined };
        (token["content"].as_str().unwrap_or_default(), &token["id"], kind)
    });
    // An added token may be in the vocabulary as well; what it is added as counts.
    let mut by_id = Vec::with_capacity(vocab.len());
    let max = vocab.len() + added.len();
    for (text, id, kind) in normal.chain(added) {
        let id = id.as_u64().and_then(|id| usize::try_from(id).ok()).filter(|&id| id < 2 * max);
        let id = id.ok_or_else(|| missing(&format!("usable id for token {text:?}")))?;
        if by_id.len() <= id {
            by_id.resize(id + 1, None);
        }
        by_id[id] = Some(Token { text: text.to_owned(), kind });
    }
    // A gap in the ids is an id that no text becomes and that has no text.
    let gap = Token { text: String::new(), kind: TokenKind::Control };
    Ok(by_id.into_iter().map(|token| token.unwrap_or_else(|| gap.clone())).collect())
}

/// Merges are `"a b"` in older files and `["a", "b"]` in newer ones.
fn merges(model: &Value) -> Result<Vec<(String, String)>, TokenizerError> {
    let merges = model["merges"].as_array().map_or(&[][..], Vec::as_slice);
    let pair = |merge: &Value| {
        let pair = match merge {
            Value::String(merge) => merge.split_once(' '),
            _ => merge[0].as_str().zip(merge[1].as_str()),
        };
        pair.map(|(left, right)| (left.to_owned(), right.to_owned())).ok_or_else(|| {
            TokenizerError::Inconsistent(format!("merge {merge} of tokenizer.json is not a pair"))
        })
    };
    merges.iter().map(pair).collect()
}

fn ends(json: &Value, config: &Value, generation: &Value, tokens: &[Token]) -> Ends {
    let id_of = |text: &str| {
        let token = |token: &Token| token.kind == TokenKind::Control && token.text == text;
        tokens.iter().position(token).and_then(|id| u32::try_from(id).ok())
    };
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let bos = token_text(config, "bos_token").and_then(id_of).or(id(&generation["bos_token_id"]));
    let mut eos: Vec<u32> = match &generation["eos_token_id"] {
        Value::Array(ids) => ids.iter().filter_map(id).collect(),
        one => id(one).into_iter().collect(),
    };
    eos.extend(token_text(config, "eos_token").and_then(id_of));
    eos.sort_unstable();
    eos.dedup();
    let adds_bos = config["add_bos_token"].as_bool().unwrap_or_else(|| {
        // What a template of one text puts first is what transformers adds.
        let templates = steps(&json["post_processor"]);
        let first = templates.iter().map(|step| &step["single"][0]["SpecialToken"]["id"]);
        bos.is_some() && first.filter_map(Value::as_str).any(|text| id_of(text) == bos)
    });
    Ends { bos, adds_bos, eos }
}
