//! Text on this side, token ids on the workers': tokenizer, chat template,
//! detokenizer and stop strings.
//!
//! Nothing here waits or talks to anyone; encoding long text takes CPU time, and
//! the callers move it off the I/O threads. Read `tokenizer` first.

pub mod chat_template;
pub mod detokenizer;
pub mod meta_format;
mod python_json;
pub mod stop;
pub mod tokenizer;

#[cfg(test)]
mod tests;

use chat_template::{ChatMessage, ChatTemplate, TemplateError, TemplateTokens, Tool};
use common::model::{ModelError, ModelFiles};
use gguf::Gguf;
use meta_format::MetaChatFormat;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use tokenizer::{Tokenizer, TokenizerError};

/// Everything of a model that concerns text.
#[derive(Debug)]
pub struct TextModel {
    /// Text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Conversations to ids; a model without one only completes.
    pub chat_format: Option<ChatFormat>,
    /// [`ModelFiles::tokenizer_fingerprint`]: a worker with another one means
    /// other words by its ids.
    pub fingerprint: String,
}

/// How a model reads conversations.
#[derive(Debug)]
pub enum ChatFormat {
    /// By the template that came with the model.
    Template(Box<ChatTemplate>),
    /// By Llama 3's own format, for models of that family without a template.
    Meta(MetaChatFormat),
}

impl ChatFormat {
    /// Which one it is, and where it came from, for people.
    #[must_use]
    pub fn source(&self) -> &str {
        match self {
            Self::Template(template) => template.source(),
            Self::Meta(_) => "Meta's chat format",
        }
    }
}

/// Why a model's text files cannot be used, or a prompt cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The model's files cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The tokenizer cannot be made, or cannot encode.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template cannot be used, or does not render the messages.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The model has no chat template.
    #[error("the model has no chat template, only plain completion")]
    NoTemplate,
    /// Meta's format says nothing of tools.
    #[error(
        "Meta's chat format has no place for tools: describe them in the system message, in the words that the model was trained on"
    )]
    NoPlaceForTools,
}

impl TextModel {
    /// Reads what of a model's files concerns text.
    ///
    /// # Errors
    /// [`TextError`] names the file and what is wrong with it.
    pub fn load(files: &ModelFiles) -> Result<Self, TextError> {
        match files {
            ModelFiles::Gguf(path) => Self::from_gguf(path),
            ModelFiles::HuggingFace(dir) => Self::from_hugging_face(dir),
            ModelFiles::Meta(dir) => Self::from_meta(dir),
        }
    }

    /// Reads a directory as Meta ships it: `tokenizer.model`. It has no template;
    /// conversations are read by Meta's own format, of base models too.
    ///
    /// # Errors
    /// [`TextError`] names the file, the line and what is wrong with it.
    pub fn from_meta(dir: &Path) -> Result<Self, TextError> {
        let tokenizer = Tokenizer::from_meta(dir)?;
        let fingerprint = ModelFiles::Meta(dir.to_owned()).tokenizer_fingerprint()?;
        Ok(Self::new(tokenizer, None, fingerprint))
    }

    /// With Meta's format in place of a template, if the model's tokens have it.
    fn new(tokenizer: Tokenizer, template: Option<ChatTemplate>, fingerprint: String) -> Self {
        let chat_format = match template {
            Some(template) => Some(ChatFormat::Template(Box::new(template))),
            None => MetaChatFormat::new(&tokenizer).map(ChatFormat::Meta),
        };
        Self { tokenizer: Arc::new(tokenizer), chat_format, fingerprint }
    }

    /// Reads the metadata of a GGUF file.
    ///
    /// # Errors
    /// [`TextError`] names the file, the key and what is wrong with it.
    pub fn from_gguf(path: &Path) -> Result<Self, TextError> {
        let bytes = ModelFiles::gguf_metadata_bytes(path)?;
        let metadata = Gguf::parse_metadata(&bytes).map_err(TokenizerError::from)?;
        let tokenizer = Tokenizer::from_gguf(&metadata)?;
        let text_of = |key: &str| {
            let id = metadata.optional_u32(key).map_err(TokenizerError::from)?;
            Ok::<_, TextError>(id.map(|id| tokenizer.token_text(id)).unwrap_or_default())
        };
        let tokens = TemplateTokens {
            bos: text_of("tokenizer.ggml.bos_token_id")?,
            eos: text_of("tokenizer.ggml.eos_token_id")?,
            control: tokenizer.control_tokens(),
        };
        let template =
            metadata.optional_str("tokenizer.chat_template").map_err(TokenizerError::from)?;
        let template = template.map(|text| ChatTemplate::new(text, "gguf metadata", tokens));
        let fingerprint = ModelFiles::Gguf(path.to_owned()).tokenizer_fingerprint()?;
        Ok(Self::new(tokenizer, template.transpose()?, fingerprint))
    }

    /// Reads a Hugging Face directory: `tokenizer.json`, and if they are there
    /// `tokenizer_config.json`, `generation_config.json` and `chat_template.jinja`.
    ///
    /// # Errors
    /// [`TextError`] names the file and what is wrong with it.
    pub fn from_hugging_face(dir: &Path) -> Result<Self, TextError> {
        let tokenizer = Tokenizer::from_hugging_face(dir)?;
        let config = tokenizer::optional_json(&dir.join("tokenizer_config.json"))?;
        let text_of = |key| tokenizer::special_text(&config, key).unwrap_or_default().to_owned();
        let tokens = TemplateTokens {
            bos: text_of("bos_token"),
            eos: text_of("eos_token"),
            control: tokenizer.control_tokens(),
        };
        let template = hugging_face_template(dir, &config)?
            .map(|(template, source)| ChatTemplate::new(&template, source, tokens));
        let fingerprint = ModelFiles::HuggingFace(dir.to_owned()).tokenizer_fingerprint()?;
        Ok(Self::new(tokenizer, template.transpose()?, fingerprint))
    }

    /// The ids of a conversation about these tools, ready for the assistant's
    /// turn if `add_generation_prompt`. Control tokens come from the format alone.
    ///
    /// # Errors
    /// [`TextError::NoTemplate`], [`TextError::NoPlaceForTools`], or what the
    /// format says of the messages.
    pub fn encode_chat(
        &self,
        messages: &[ChatMessage],
        tools: &[Tool],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>, TextError> {
        let template = match self.chat_format.as_ref().ok_or(TextError::NoTemplate)? {
            ChatFormat::Template(template) => template,
            ChatFormat::Meta(_) if !tools.is_empty() => return Err(TextError::NoPlaceForTools),
            ChatFormat::Meta(format) => {
                return format.encode(&self.tokenizer, messages, add_generation_prompt);
            }
        };
        let rendered = template.render(messages, tools, add_generation_prompt)?;
        Ok(self.tokenizer.encode_prompt(&rendered.text, &rendered.content)?)
    }

    /// The ids of a text to complete: what was written, after the token that
    /// starts a text if the model was trained with one.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_text`].
    pub fn encode_completion(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let bos = self.tokenizer.bos().filter(|_| self.tokenizer.adds_bos());
        let mut ids: Vec<u32> = bos.into_iter().collect();
        ids.extend(self.tokenizer.encode_text(text)?);
        Ok(ids)
    }
}

/// The template of a directory and where in it: a file of its own, or one in
/// `tokenizer_config.json`, there alone or as "default" among several.
fn hugging_face_template(
    dir: &Path,
    config: &Value,
) -> Result<Option<(String, &'static str)>, TextError> {
    let path = dir.join("chat_template.jinja");
    match tokenizer::read_bounded(&path, 1 << 20) {
        Ok(bytes) => {
            let template = String::from_utf8_lossy(&bytes).into_owned();
            return Ok(Some((template, "chat_template.jinja")));
        }
        Err(TokenizerError::Read { source, .. })
            if source.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let template = match &config["chat_template"] {
        Value::Array(named) => {
            let default = named.iter().find(|template| template["name"] == "default");
            default.and_then(|template| template["template"].as_str())
        }
        template => template.as_str(),
    };
    Ok(template.map(|template| (template.to_owned(), "tokenizer_config.json")))
}
