//! What a request may ask at most; every default in one place.

use crate::text::TextModel;

/// Limits of one model's requests.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestLimits {
    /// Names that `model` may have; the first is the canonical one.
    pub models: Vec<String>,
    /// Ids are below this.
    pub vocab_size: u32,
    /// Most tokens of prompt and answer together.
    pub max_model_len: u32,
    /// Bytes of the longest token: text longer than `max_model_len` times this
    /// cannot fit, and is refused before it is tokenized.
    pub longest_token_bytes: u32,
    /// Whether the model has a beginning-of-text id, which an empty completion
    /// prompt becomes.
    pub has_bos: bool,
    /// Most answers per prompt.
    pub max_n: u32,
    /// Most prompts of one completion request.
    pub max_prompts: usize,
    /// Most answers of one request, over all its prompts.
    pub max_sequences: u32,
    /// Most messages of a conversation.
    pub max_messages: usize,
    /// Most stop strings, and most stop ids.
    pub max_stop: usize,
    /// Longest stop string.
    pub max_stop_bytes: usize,
    /// Most entries of `logit_bias`.
    pub max_logit_bias: usize,
    /// Most alternatives beside a token.
    pub max_logprobs: u32,
}

impl RequestLimits {
    /// The defaults, for a model with this vocabulary and context.
    pub fn new(model: impl Into<String>, vocab_size: u32, max_model_len: u32) -> Self {
        Self {
            models: vec![model.into()],
            vocab_size,
            max_model_len,
            longest_token_bytes: 256,
            has_bos: false,
            max_n: 8,
            max_prompts: 64,
            max_sequences: 256,
            max_messages: 4096,
            max_stop: 16,
            max_stop_bytes: 256,
            max_logit_bias: 1024,
            max_logprobs: 20,
        }
    }

    /// The defaults for a model of these text files.
    pub fn for_model(name: impl Into<String>, text: &TextModel, max_model_len: u32) -> Self {
        let tokenizer = &text.tokenizer;
        Self {
            longest_token_bytes: tokenizer.max_token_bytes().max(1) as u32,
            has_bos: tokenizer.bos().is_some(),
            ..Self::new(name, tokenizer.vocab_size() as u32, max_model_len)
        }
    }

    /// Most bytes of text that can possibly fit the context.
    pub fn max_prompt_bytes(&self) -> u64 {
        u64::from(self.max_model_len) * u64::from(self.longest_token_bytes)
    }
}
