//! The checks behind `ValidRequest::new`: one function per group of fields,
//! every refusal naming its field, its value and its limit.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::{
    ChatMessage, GenerateRequest, PromptInput, RequestLimits, Sampling, ValidPrompt, ValidRequest,
    sampling,
};
use crate::error::GatewayError;

type Checked<T> = Result<T, GatewayError>;

/// Answers of a completion that does not say how long (OpenAI's default).
const DEFAULT_COMPLETION_TOKENS: u32 = 16;
/// Roles that a message may have.
const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "ipython"];
/// What a tool call counts for beside its own text: the least that it takes in
/// a prompt and in memory.
const CALL_BYTES: usize = 64;
/// Most bytes of all tool calls of a conversation: as values they take many
/// times the memory of their text.
const MAX_TOOL_CALL_BYTES: usize = 1 << 20;
/// Priorities that a request may have.
const PRIORITIES: RangeInclusive<i64> = -100..=100;
/// Longest part of a client's string that an error repeats.
const MAX_QUOTED_CHARS: usize = 64;

pub(super) fn validate(request: GenerateRequest, limits: &RequestLimits) -> Checked<ValidRequest> {
    check_model(&request.model, limits)?;
    let logprobs = check_logprobs(&request, limits)?;
    let (max_tokens, min_tokens) = check_lengths(&request)?;
    let n = check_n(&request, limits)?;
    let sampling = check_sampling(&request, limits)?;
    let stop_token_ids = check_stop(&request, limits)?;
    let priority = int_in("priority", request.priority.unwrap_or(0), PRIORITIES)?;
    if request.echo && request.chat {
        return Err(GatewayError::invalid("echo", "echo is for completions, not for chat"));
    }
    let prompts = check_prompts(request.prompts, request.chat, limits)?;
    if prompts.len() as u64 * u64::from(n) > u64::from(limits.max_sequences) {
        let message = format!(
            "{} prompts times n = {n} is over {} answers",
            prompts.len(),
            limits.max_sequences
        );
        return Err(GatewayError::invalid("n", message));
    }
    Ok(ValidRequest {
        model: request.model,
        prompts,
        max_tokens,
        min_tokens,
        sampling: Arc::new(sampling),
        any_draw: request.seed.is_none(),
        seed: request.seed.map_or_else(sampling::random_seed, |seed| seed as u64),
        stop: request.stop,
        stop_token_ids,
        n,
        logprobs,
        echo: request.echo,
        ignore_eos: request.ignore_eos,
        return_prompt_token_ids: request.return_prompt_token_ids,
        priority: priority as i32,
        deadline: request.deadline,
        user_key: request.user_key,
    })
}

fn check_model(model: &str, limits: &RequestLimits) -> Checked<()> {
    if model.is_empty() {
        return Err(GatewayError::invalid("model", "model is empty"));
    }
    if limits.models.iter().any(|name| name == model) {
        return Ok(());
    }
    Err(GatewayError::ModelNotFound { model: quote(model) })
}

fn check_logprobs(request: &GenerateRequest, limits: &RequestLimits) -> Checked<Option<u32>> {
    let name = if request.chat { "top_logprobs" } else { "logprobs" };
    request
        .logprobs
        .map(|count| int_in(name, count, 0..=i64::from(limits.max_logprobs)).map(|c| c as u32))
        .transpose()
}

/// `max_tokens` (with its default) and `min_tokens`.
fn check_lengths(request: &GenerateRequest) -> Checked<(Option<u32>, u32)> {
    let scores_only = !request.chat && request.echo && request.logprobs.is_some();
    let least = if scores_only { 0 } else { 1 };
    let max_tokens = match request.max_tokens {
        Some(max) => Some(int_in("max_tokens", max, least..=i64::from(u32::MAX))? as u32),
        None if request.chat => None,
        None => Some(DEFAULT_COMPLETION_TOKENS),
    };
    let min_tokens =
        int_in("min_tokens", request.min_tokens.unwrap_or(0), 0..=i64::from(u32::MAX))?;
    let min_tokens = min_tokens as u32;
    if let Some(max) = max_tokens.filter(|&max| min_tokens > max) {
        let message = format!("min_tokens is {min_tokens}, max_tokens is {max}");
        return Err(GatewayError::invalid("min_tokens", message));
    }
    Ok((max_tokens, min_tokens))
}

fn check_n(request: &GenerateRequest, limits: &RequestLimits) -> Checked<u32> {
    let n = int_in("n", request.n.unwrap_or(1), 1..=i64::from(limits.max_n))?;
    if let Some(best_of) = request.best_of.filter(|&best_of| best_of != n) {
        let message = format!("best_of is {best_of}, only best_of = n is supported, n is {n}");
        return Err(GatewayError::invalid("best_of", message));
    }
    Ok(n as u32)
}

fn check_sampling(request: &GenerateRequest, limits: &RequestLimits) -> Checked<Sampling> {
    let temperature = request.temperature.unwrap_or(1.0);
    if temperature.is_sign_negative() {
        let message = format!("temperature is {temperature}, must be 0 to 2");
        return Err(GatewayError::invalid("temperature", message));
    }
    let temperature = float_in("temperature", temperature, 0.0..=2.0)?;
    let top_p = positive("top_p", request.top_p.unwrap_or(1.0), 1.0)?;
    let min_p = float_in("min_p", request.min_p.unwrap_or(0.0), 0.0..=1.0)?;
    let top_k = int_in("top_k", request.top_k.unwrap_or(-1), -1..=i64::from(u32::MAX))?;
    let presence = request.presence_penalty.unwrap_or(0.0);
    let presence = float_in("presence_penalty", presence, -2.0..=2.0)?;
    let frequency = request.frequency_penalty.unwrap_or(0.0);
    let frequency = float_in("frequency_penalty", frequency, -2.0..=2.0)?;
    let repetition =
        positive("repetition_penalty", request.repetition_penalty.unwrap_or(1.0), 2.0)?;
    Ok(Sampling {
        temperature,
        top_k: (top_k > 0).then_some(top_k as u32),
        top_p: (top_p < 1.0).then_some(top_p),
        min_p: (min_p > 0.0).then_some(min_p),
        presence_penalty: (presence != 0.0).then_some(presence),
        frequency_penalty: (frequency != 0.0).then_some(frequency),
        repetition_penalty: (repetition != 1.0).then_some(repetition),
        logit_bias: check_logit_bias(&request.logit_bias, limits)?,
    })
}

fn check_logit_bias(biases: &[(i64, f64)], limits: &RequestLimits) -> Checked<Vec<(u32, f32)>> {
    let name = "logit_bias";
    at_most(name, "entries", biases.len(), limits.max_logit_bias)?;
    let mut checked = Vec::with_capacity(biases.len());
    for &(id, bias) in biases {
        let id = token_id(name, id, limits)?;
        if !(-100.0..=100.0).contains(&bias) {
            let message = format!("logit_bias of token {id} is {bias}, must be -100 to 100");
            return Err(GatewayError::invalid(name, message));
        }
        checked.push((id, bias as f32));
    }
    checked.sort_by_key(|&(id, _)| id);
    if let Some(pair) = checked.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        let message = format!("logit_bias has token {} twice", pair[0].0);
        return Err(GatewayError::invalid(name, message));
    }
    Ok(checked)
}

fn check_stop(request: &GenerateRequest, limits: &RequestLimits) -> Checked<Vec<u32>> {
    at_most("stop", "strings", request.stop.len(), limits.max_stop)?;
    for (i, stop) in request.stop.iter().enumerate() {
        let name = format!("stop[{i}]");
        if stop.is_empty() {
            return Err(GatewayError::invalid(&name, format!("{name} is empty")));
        }
        at_most(&name, "bytes", stop.len(), limits.max_stop_bytes)?;
    }
    let ids = &request.stop_token_ids;
    at_most("stop_token_ids", "ids", ids.len(), limits.max_stop)?;
    ids.iter().map(|&id| token_id("stop_token_ids", id, limits)).collect()
}

fn check_prompts(
    prompts: Vec<PromptInput>,
    chat: bool,
    limits: &RequestLimits,
) -> Checked<Vec<ValidPrompt>> {
    let name = if chat { "messages" } else { "prompt" };
    if prompts.is_empty() {
        return Err(GatewayError::invalid(name, format!("{name} is missing")));
    }
    let most = if chat { 1 } else { limits.max_prompts };
    at_most(name, "prompts", prompts.len(), most)?;
    prompts.into_iter().map(|prompt| check_prompt(prompt, limits)).collect()
}

/// One prompt; also the check of `/tokenize`.
pub(crate) fn check_prompt(prompt: PromptInput, limits: &RequestLimits) -> Checked<ValidPrompt> {
    match prompt {
        PromptInput::Messages(messages) => {
            check_messages(&messages, limits)?;
            Ok(ValidPrompt::Messages(messages))
        }
        PromptInput::Text(text) => {
            if text.is_empty() && !limits.has_bos {
                return Err(GatewayError::invalid("prompt", "prompt is empty"));
            }
            check_prompt_bytes("prompt", text.len() as u64, limits)?;
            Ok(ValidPrompt::Text(text))
        }
        PromptInput::TokenIds(ids) => {
            if ids.is_empty() {
                return Err(GatewayError::invalid("prompt", "prompt is empty"));
            }
            Ok(ValidPrompt::TokenIds(check_prompt_ids("prompt", ids, limits)?))
        }
    }
}

/// Ids inside the vocabulary.
pub(crate) fn check_prompt_ids(
    name: &str,
    ids: Vec<i64>,
    limits: &RequestLimits,
) -> Checked<Vec<u32>> {
    ids.into_iter().map(|id| token_id(name, id, limits)).collect()
}

fn check_messages(messages: &[ChatMessage], limits: &RequestLimits) -> Checked<()> {
    if messages.is_empty() {
        return Err(GatewayError::invalid("messages", "messages is empty"));
    }
    at_most("messages", "messages", messages.len(), limits.max_messages)?;
    for (i, message) in messages.iter().enumerate() {
        if !ROLES.contains(&message.role.as_str()) {
            let name = format!("messages[{i}].role");
            let text = format!(
                "{name} is `{}`, must be system, developer, user, assistant or tool",
                quote(&message.role)
            );
            return Err(GatewayError::invalid(name, text));
        }
        if message.name.is_some() {
            let name = format!("messages[{i}].name");
            let text = format!("{name} is not supported: the template has no place for it");
            return Err(GatewayError::invalid(name, text));
        }
        if !message.tool_calls.is_empty() && message.role != "assistant" {
            let name = format!("messages[{i}].tool_calls");
            let text = format!("{name} is not empty, only messages of the assistant call tools");
            return Err(GatewayError::invalid(name, text));
        }
    }
    let calls = messages.iter().flat_map(|message| &message.tool_calls);
    let call_bytes: usize = calls
        .map(|call| {
            call.id.as_ref().map_or(0, String::len)
                + call.name.len()
                + call.arguments.len()
                + CALL_BYTES
        })
        .sum();
    at_most("messages", "bytes of tool calls", call_bytes, MAX_TOOL_CALL_BYTES)?;
    let bytes: u64 = messages.iter().map(|message| message.content.len() as u64).sum();
    check_prompt_bytes("messages", bytes + call_bytes as u64, limits)
}

/// Text that cannot fit is refused before anybody tokenizes it.
fn check_prompt_bytes(name: &str, bytes: u64, limits: &RequestLimits) -> Checked<()> {
    let most = limits.max_prompt_bytes();
    if bytes <= most {
        return Ok(());
    }
    let message = format!(
        "{name} has {bytes} bytes, at most {most} can fit max_model_len = {}",
        limits.max_model_len
    );
    Err(GatewayError::invalid(name, message))
}

fn token_id(name: &str, id: i64, limits: &RequestLimits) -> Checked<u32> {
    match u32::try_from(id) {
        Ok(id) if id < limits.vocab_size => Ok(id),
        _ => {
            let message = format!("{name} has token {id}, vocab_size is {}", limits.vocab_size);
            Err(GatewayError::invalid(name, message))
        }
    }
}

fn at_most(name: &str, what: &str, count: usize, most: usize) -> Checked<()> {
    if count <= most {
        return Ok(());
    }
    Err(GatewayError::invalid(name, format!("{name} has {count} {what}, at most {most} allowed")))
}

fn int_in(name: &str, value: i64, range: RangeInclusive<i64>) -> Checked<i64> {
    if range.contains(&value) { Ok(value) } else { Err(out_of_range(name, value, range)) }
}

fn float_in(name: &str, value: f64, range: RangeInclusive<f64>) -> Checked<f32> {
    // NaN is in no range; infinities are outside these.
    if range.contains(&value) { Ok(value as f32) } else { Err(out_of_range(name, value, range)) }
}

/// A number over 0 that stays over 0 as an `f32`, and at most `most`.
fn positive(name: &str, value: f64, most: f64) -> Checked<f32> {
    if value as f32 > 0.0 && value <= most {
        return Ok(value as f32);
    }
    let message = format!("{name} is {value}, must be over 0 and at most {most}");
    Err(GatewayError::invalid(name, message))
}

fn out_of_range<T: Display>(name: &str, value: T, range: RangeInclusive<T>) -> GatewayError {
    let message = format!("{name} is {value}, must be {} to {}", range.start(), range.end());
    GatewayError::invalid(name, message)
}

/// The beginning of a client's string, fit for a message.
fn quote(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_QUOTED_CHARS).collect()
}
