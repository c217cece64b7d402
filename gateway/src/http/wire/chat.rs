//! The body of `POST /v1/chat/completions`.

use serde_json::{Value, json};

use super::fields::{Fields, parse_object, quote, string_at, wrong_type};
use super::options::{ReplyOptions, read_shared, same_setting};
use crate::error::GatewayError;
use crate::request::{ChatMessage, GenerateRequest, PromptInput, ToolCall};

/// What stands between the text parts of one message.
const PART_SEPARATOR: &str = "\n";

/// Reads a chat request.
///
/// # Errors
/// The first field that is wrong, unsupported or unknown, by name.
pub(crate) fn parse_chat(body: &[u8]) -> Result<(GenerateRequest, ReplyOptions), GatewayError> {
    let mut fields = parse_object(body)?;
    let mut request = GenerateRequest { chat: true, ..Default::default() };
    let reply = read_shared(&mut fields, &mut request)?;
    let Some(messages) = fields.array("messages")? else { return Err(fields.missing("messages")) };
    request.prompts = vec![PromptInput::Messages(parse_messages("messages", messages)?)];
    request.max_tokens = same_setting(&mut fields, ("max_tokens", "max_completion_tokens"))?;
    request.logprobs = read_logprobs(&mut fields)?;
    refuse_chat(&mut fields)?;
    fields.finish()?;
    Ok((request, reply))
}

/// The messages of the array at `path`.
///
/// # Errors
/// As [`parse_chat`].
pub(crate) fn parse_messages(
    path: &str,
    messages: Vec<Value>,
) -> Result<Vec<ChatMessage>, GatewayError> {
    let parse = |(i, message)| parse_message(format!("{path}[{i}]"), message);
    messages.into_iter().enumerate().map(parse).collect()
}

/// The role that the template knows: `developer` is the newer name of `system`.
pub(crate) fn canonical_role(role: String) -> String {
    if role == "developer" { "system".to_owned() } else { role }
}

fn parse_message(path: String, message: Value) -> Result<ChatMessage, GatewayError> {
    let mut fields = Fields::from_value(path, message)?;
    let role = fields.required_string("role")?;
    let name = fields.string("name")?;
    let tool_calls = parse_tool_calls(&mut fields)?;
    let content_path = fields.path("content");
    let content = match fields.take("content") {
        Some(content) => parse_content(content_path, content)?,
        // A call may be all that there is.
        None if !tool_calls.is_empty() => String::new(),
        None => return Err(fields.missing("content")),
    };
    if role == "tool" {
        // Says which call this answers; the order of the messages does as well,
        // and is all that Llama's template has.
        fields.string("tool_call_id")?;
    }
    // What OpenAI's own replies carry, so that they can be sent back as they are.
    for empty in ["function_call", "refusal", "audio", "annotations"] {
        fields.unsupported(empty, &[])?;
    }
    fields.finish()?;
    Ok(ChatMessage { role: canonical_role(role), content, name, tool_calls })
}

/// The calls in a message, as this API replied with them or another would have.
fn parse_tool_calls(message: &mut Fields) -> Result<Vec<ToolCall>, GatewayError> {
    let path = message.path("tool_calls");
    let calls = message.array("tool_calls")?.unwrap_or_default();
    let parse = |(i, call)| {
        let mut fields = Fields::from_value(format!("{path}[{i}]"), call)?;
        let id = fields.string("id")?;
        let kind = fields.string("type")?;
        if let Some(kind) = kind.filter(|kind| kind != "function") {
            let path = fields.path("type");
            let message = format!("{path} is {:?}, only function is supported", quote(&kind));
            return Err(GatewayError::invalid(path, message));
        }
        let function = fields.object("function")?;
        let mut function = function.ok_or_else(|| fields.missing("function"))?;
        fields.finish()?;
        let name = function.required_string("name")?;
        let arguments = function.required_string("arguments")?;
        function.finish()?;
        Ok(ToolCall { id, name, arguments })
    };
    calls.into_iter().enumerate().map(parse).collect()
}

/// Text, or an array of text parts.
fn parse_content(path: String, content: Value) -> Result<String, GatewayError> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => {
            return Err(wrong_type(path, "a string or an array of text parts", &other));
        }
    };
    if parts.is_empty() {
        let message = format!("{path} is empty");
        return Err(GatewayError::invalid(path, message));
    }
    let mut texts = Vec::with_capacity(parts.len());
    for (i, part) in parts.into_iter().enumerate() {
        let part_path = format!("{path}[{i}]");
        let mut fields = Fields::from_value(part_path, part)?;
        let kind = fields.required_string("type")?;
        if kind != "text" {
            let message =
                format!("{} is {:?}, only text is supported", fields.path("type"), quote(&kind));
            return Err(GatewayError::invalid(fields.path("type"), message));
        }
        let Some(text) = fields.take("text") else { return Err(fields.missing("text")) };
        texts.push(string_at(fields.path("text"), text)?);
        fields.finish()?;
    }
    Ok(texts.join(PART_SEPARATOR))
}

/// `logprobs` switches them on, `top_logprobs` adds alternatives.
fn read_logprobs(fields: &mut Fields) -> Result<Option<i64>, GatewayError> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let alternatives = super::options::count(fields, "top_logprobs")?;
    match (wanted, alternatives) {
        (true, count) => Ok(Some(count.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(count)) => {
            let message = format!("top_logprobs is {count}, it needs logprobs = true");
            Err(GatewayError::invalid("top_logprobs", message))
        }
    }
}

fn refuse_chat(fields: &mut Fields) -> Result<(), GatewayError> {
    let neutral: [(&str, Vec<Value>); 17] = [
        ("tools", vec![]),
        ("tool_choice", vec![json!("none"), json!("auto")]),
        ("functions", vec![]),
        ("function_call", vec![json!("none"), json!("auto")]),
        ("audio", vec![]),
        ("modalities", vec![json!(["text"])]),
        ("prediction", vec![]),
        ("store", vec![json!(false)]),
        ("web_search_options", vec![]),
        ("reasoning_effort", vec![]),
        ("verbosity", vec![]),
        ("echo", vec![json!(false)]),
        ("add_generation_prompt", vec![json!(true)]),
        ("continue_final_message", vec![json!(false)]),
        ("add_special_tokens", vec![json!(false)]),
        ("chat_template", vec![]),
        ("chat_template_kwargs", vec![]),
    ];
    for (name, values) in neutral {
        fields.unsupported(name, &values)?;
    }
    Ok(())
}
