//! The bodies of `POST /tokenize` and `POST /detokenize`, as vLLM has them.

use serde_json::json;

use super::chat::parse_messages;
use super::fields::parse_object;
use crate::error::GatewayError;
use crate::request::PromptInput;

/// What to turn into ids.
#[derive(Debug)]
pub(crate) struct TokenizeBody {
    /// The model, if named; there is one.
    pub(crate) model: Option<String>,
    pub(crate) input: PromptInput,
    /// Default: true for text, false for messages.
    pub(crate) add_special_tokens: Option<bool>,
}

/// What to turn into text.
#[derive(Debug)]
pub(crate) struct DetokenizeBody {
    /// The model, if named; there is one.
    pub(crate) model: Option<String>,
    pub(crate) tokens: Vec<i64>,
}

/// Reads a tokenize request.
///
/// # Errors
/// The first field that is wrong or unknown, by name.
pub(crate) fn parse_tokenize(body: &[u8]) -> Result<TokenizeBody, GatewayError> {
    let mut fields = parse_object(body)?;
    let model = fields.string("model")?;
    let prompt = fields.string("prompt")?;
    let messages = fields.array("messages")?;
    let input = match (prompt, messages) {
        (Some(prompt), None) => PromptInput::Text(prompt),
        (None, Some(messages)) => PromptInput::Messages(parse_messages("messages", messages)?),
        (None, None) => return Err(fields.missing("prompt")),
        (Some(_), Some(_)) => {
            return Err(GatewayError::invalid("prompt", "give prompt or messages, not both"));
        }
    };
    let add_special_tokens = fields.boolean("add_special_tokens")?;
    fields.unsupported("return_token_strs", &[json!(false)])?;
    fields.unsupported("add_generation_prompt", &[json!(true)])?;
    fields.unsupported("continue_final_message", &[json!(false)])?;
    fields.unsupported("chat_template", &[])?;
    fields.unsupported("chat_template_kwargs", &[])?;
    fields.unsupported("tools", &[])?;
    fields.finish()?;
    Ok(TokenizeBody { model, input, add_special_tokens })
}

/// Reads a detokenize request.
///
/// # Errors
/// The first field that is wrong or unknown, by name.
pub(crate) fn parse_detokenize(body: &[u8]) -> Result<DetokenizeBody, GatewayError> {
    let mut fields = parse_object(body)?;
    let model = fields.string("model")?;
    let Some(tokens) = fields.array("tokens")? else { return Err(fields.missing("tokens")) };
    let tokens = super::fields::integers_at("tokens", tokens)?;
    fields.finish()?;
    Ok(DetokenizeBody { model, tokens })
}
