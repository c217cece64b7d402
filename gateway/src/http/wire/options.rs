//! The fields that chat and completions share, and the ones that both refuse.
//!
//! Three kinds of fields take no part in the answer:
//! - *metadata* (`user`, `metadata`, `safety_identifier`, `prompt_cache_key`,
//!   `parallel_tool_calls`): accepted, type-checked, and without effect, because
//!   that is what they ask for (there are no tools to call in parallel);
//! - *unsupported*: accepted only with a value that asks for nothing;
//! - everything else: refused as unknown.

use serde_json::{Value, json};

use super::fields::{Fields, integer_at, number_at, string_at, wrong_type};
use crate::error::GatewayError;
use crate::request::GenerateRequest;

/// How an answer is written, as opposed to what it says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReplyOptions {
    /// As server-sent events.
    pub(crate) stream: bool,
    /// A last event with the token counts.
    pub(crate) include_usage: bool,
    /// The ids of prompt and answer beside the text (vLLM).
    pub(crate) return_token_ids: bool,
    /// In log-probabilities, `token_id:ID` instead of the token's text (vLLM).
    pub(crate) tokens_as_ids: bool,
}

/// Reads what chat and completions share into `request`.
pub(super) fn read_shared(
    fields: &mut Fields,
    request: &mut GenerateRequest,
) -> Result<ReplyOptions, GatewayError> {
    request.model = fields.required_string("model")?;
    request.temperature = fields.number("temperature")?;
    request.top_p = fields.number("top_p")?;
    request.top_k = fields.integer("top_k")?;
    request.min_p = fields.number("min_p")?;
    request.presence_penalty = fields.number("presence_penalty")?;
    request.frequency_penalty = fields.number("frequency_penalty")?;
    request.repetition_penalty = fields.number("repetition_penalty")?;
    request.seed = fields.integer("seed")?;
    request.n = fields.integer("n")?;
    request.min_tokens = fields.integer("min_tokens")?;
    request.ignore_eos = fields.boolean("ignore_eos")?.unwrap_or(false);
    request.priority = fields.integer("priority")?;
    request.stop = read_stop(fields)?;
    request.stop_token_ids = fields.integers("stop_token_ids")?;
    request.logit_bias = read_logit_bias(fields)?;
    let reply = read_reply(fields)?;
    request.return_prompt_token_ids = reply.return_token_ids;
    read_metadata(fields)?;
    refuse_shared(fields)?;
    Ok(reply)
}

fn read_reply(fields: &mut Fields) -> Result<ReplyOptions, GatewayError> {
    let stream = fields.boolean("stream")?.unwrap_or(false);
    let mut include_usage = false;
    if let Some(mut options) = fields.object("stream_options")? {
        if !stream {
            let message = "stream_options is only allowed when stream is true";
            return Err(GatewayError::invalid("stream_options", message));
        }
        include_usage = options.boolean("include_usage")?.unwrap_or(false);
        options.unsupported("continuous_usage_stats", &[json!(false)])?;
        options.unsupported("include_obfuscation", &[json!(false)])?;
        options.finish()?;
    }
    Ok(ReplyOptions {
        stream,
        include_usage,
        return_token_ids: fields.boolean("return_token_ids")?.unwrap_or(false),
        tokens_as_ids: fields.boolean("return_tokens_as_token_ids")?.unwrap_or(false),
    })
}

/// One string or an array of them.
fn read_stop(fields: &mut Fields) -> Result<Vec<String>, GatewayError> {
    match fields.take("stop") {
        None => Ok(Vec::new()),
        Some(Value::String(stop)) => Ok(vec![stop]),
        Some(Value::Array(stops)) => stops
            .into_iter()
            .enumerate()
            .map(|(i, stop)| string_at(format!("stop[{i}]"), stop))
            .collect(),
        Some(other) => Err(wrong_type("stop".into(), "a string or an array of strings", &other)),
    }
}

/// An object whose keys are token ids in decimal.
fn read_logit_bias(fields: &mut Fields) -> Result<Vec<(i64, f64)>, GatewayError> {
    let Some(biases) = fields.object("logit_bias")? else { return Ok(Vec::new()) };
    let mut read = Vec::new();
    for (key, bias) in biases.into_entries() {
        let Ok(token_id) = key.parse::<i64>() else {
            let key = super::fields::quote(&key);
            let message = format!("logit_bias has the key {key:?}, keys must be token ids");
            return Err(GatewayError::invalid("logit_bias", message));
        };
        read.push((token_id, number_at(format!("logit_bias[{token_id}]"), &bias)?));
    }
    Ok(read)
}

fn read_metadata(fields: &mut Fields) -> Result<(), GatewayError> {
    for name in ["user", "safety_identifier", "prompt_cache_key"] {
        fields.string(name)?;
    }
    if let Some(metadata) = fields.object("metadata")? {
        for (key, value) in metadata.into_entries() {
            string_at(format!("metadata.{}", super::fields::quote(&key)), value)?;
        }
    }
    fields.boolean("parallel_tool_calls")?;
    Ok(())
}

fn refuse_shared(fields: &mut Fields) -> Result<(), GatewayError> {
    let neutral: [(&str, Vec<Value>); 14] = [
        ("response_format", vec![json!({"type": "text"})]),
        ("service_tier", vec![json!("auto"), json!("default")]),
        ("skip_special_tokens", vec![json!(true)]),
        ("spaces_between_special_tokens", vec![json!(true)]),
        ("include_stop_str_in_output", vec![json!(false)]),
        ("use_beam_search", vec![json!(false)]),
        ("length_penalty", vec![json!(1.0), json!(1)]),
        ("early_stopping", vec![json!(false)]),
        ("truncate_prompt_tokens", vec![]),
        ("prompt_logprobs", vec![]),
        ("guided_json", vec![]),
        ("guided_regex", vec![]),
        ("guided_choice", vec![]),
        ("guided_grammar", vec![]),
    ];
    for (name, values) in neutral {
        fields.unsupported(name, &values)?;
    }
    Ok(())
}

/// `a` and `b`, two names of one setting.
pub(super) fn same_setting(
    fields: &mut Fields,
    (old, new): (&str, &str),
) -> Result<Option<i64>, GatewayError> {
    let (older, newer) = (fields.integer(old)?, fields.integer(new)?);
    if let (Some(older), Some(newer)) = (older, newer)
        && older != newer
    {
        let message = format!("{new} is {newer} and {old} is {older}, give one of them");
        return Err(GatewayError::invalid(new, message));
    }
    Ok(newer.or(older))
}

/// A count of alternatives; `true` and `false` are the other endpoint's.
pub(super) fn count(fields: &mut Fields, name: &str) -> Result<Option<i64>, GatewayError> {
    fields.take(name).map(|value| integer_at(fields.path(name), &value)).transpose()
}
