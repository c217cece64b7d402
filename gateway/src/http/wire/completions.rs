//! The body of `POST /v1/completions`.

use serde_json::{Value, json};

use super::fields::{Fields, integers_at, parse_object, string_at, wrong_type};
use super::options::{ReplyOptions, count, read_shared};
use crate::error::GatewayError;
use crate::request::{GenerateRequest, PromptInput};

const PROMPT_TYPES: &str =
    "a string, an array of strings, an array of token ids, or an array of such arrays";

/// Reads a completion request.
///
/// # Errors
/// The first field that is wrong, unsupported or unknown, by name.
pub(crate) fn parse_completion(
    body: &[u8],
) -> Result<(GenerateRequest, ReplyOptions), GatewayError> {
    let mut fields = parse_object(body)?;
    let mut request = GenerateRequest::default();
    let reply = read_shared(&mut fields, &mut request)?;
    request.prompts = read_prompts(&mut fields)?;
    request.max_tokens = fields.integer("max_tokens")?;
    request.logprobs = count(&mut fields, "logprobs")?;
    request.best_of = fields.integer("best_of")?;
    request.echo = fields.boolean("echo")?.unwrap_or(false);
    fields.unsupported("suffix", &[json!("")])?;
    fields.unsupported("add_special_tokens", &[json!(true)])?;
    fields.finish()?;
    Ok((request, reply))
}

fn read_prompts(fields: &mut Fields) -> Result<Vec<PromptInput>, GatewayError> {
    match fields.take("prompt") {
        None => Err(fields.missing("prompt")),
        Some(Value::String(text)) => Ok(vec![PromptInput::Text(text)]),
        Some(Value::Array(items)) => match items.first() {
            None => Err(GatewayError::invalid("prompt", "prompt is empty")),
            Some(Value::Number(_)) => {
                Ok(vec![PromptInput::TokenIds(integers_at("prompt", items)?)])
            }
            Some(_) => items.into_iter().enumerate().map(read_prompt).collect(),
        },
        Some(other) => Err(wrong_type("prompt".into(), PROMPT_TYPES, &other)),
    }
}

/// One prompt of several.
fn read_prompt((i, prompt): (usize, Value)) -> Result<PromptInput, GatewayError> {
    let path = format!("prompt[{i}]");
    match prompt {
        Value::Array(ids) => Ok(PromptInput::TokenIds(integers_at(&path, ids)?)),
        Value::String(_) => Ok(PromptInput::Text(string_at(path, prompt)?)),
        other => Err(wrong_type(path, "a string or an array of token ids", &other)),
    }
}
