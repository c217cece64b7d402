//! From the spine's deltas to the pieces of replies.

use serde_json::{Map, Value};

use super::options::ReplyOptions;
use super::reply::{
    ChatLogprobs, ChatTokenLogprob, ChatTopLogprob, CompletionLogprobs, PromptTokensDetails,
    TimingsBody, UsageBody,
};
use crate::text_stream::{StopReason, TokenLogprob, TopLogprob, Usage};

/// JSON has no infinities; this stands for the logarithm of nothing.
const LEAST_LOGPROB: f32 = -9999.0;

/// The counts of a reply.
pub(crate) fn usage_body(usage: &Usage) -> UsageBody {
    let timings = &usage.timings;
    UsageBody {
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        total_tokens: usage.prompt_tokens.saturating_add(usage.completion_tokens),
        prompt_tokens_details: PromptTokensDetails { cached_tokens: usage.cached_tokens },
        timings: TimingsBody {
            tokenize_ms: rounded(timings.tokenize_ms),
            queue_ms: rounded(timings.queue_ms),
            ttft_ms: rounded(timings.ttft_ms),
            prefill_ms: rounded(timings.prefill_ms),
            decode_ms: rounded(timings.decode_ms),
            total_ms: rounded(timings.total_ms),
        },
    }
}

/// The `Server-Timing` header of a reply.
pub(crate) fn server_timing(usage: &Usage) -> String {
    let t = &usage.timings;
    let parts = [
        ("tokenize", t.tokenize_ms),
        ("queue", t.queue_ms),
        ("ttft", t.ttft_ms),
        ("prefill", t.prefill_ms),
        ("decode", t.decode_ms),
        ("total", t.total_ms),
    ];
    let parts: Vec<String> =
        parts.iter().map(|(name, ms)| format!("{name};dur={}", rounded(*ms))).collect();
    parts.join(", ")
}

/// vLLM's `stop_reason`: the string or id that ended the answer.
pub(crate) fn stop_reason(reason: &StopReason) -> Value {
    match reason {
        StopReason::Text(text) => text.as_str().into(),
        StopReason::TokenId(id) => (*id).into(),
    }
}

/// The chat shape.
pub(crate) fn chat_logprobs(tokens: &[TokenLogprob], options: &ReplyOptions) -> ChatLogprobs {
    let top = |top: &TopLogprob| ChatTopLogprob {
        token: token_text(&top.token, top.token_id, options),
        logprob: finite(top.logprob),
        bytes: top.bytes.clone(),
    };
    let content = tokens.iter().map(|token| ChatTokenLogprob {
        token: token_text(&token.token, token.token_id, options),
        logprob: finite(token.logprob.unwrap_or(0.0)),
        bytes: token.bytes.clone(),
        top_logprobs: token.top.iter().map(top).collect(),
    });
    ChatLogprobs { content: content.collect(), refusal: None }
}

/// The completion shape, added to what is there.
pub(crate) fn add_completion_logprobs(
    columns: &mut CompletionLogprobs,
    tokens: &[TokenLogprob],
    options: &ReplyOptions,
) {
    for token in tokens {
        let text = token_text(&token.token, token.token_id, options);
        let top = token.logprob.map(|logprob| {
            let mut map = Map::new();
            // Likeliest first, and the chosen one in any case; where two tokens
            // look the same the likelier one is kept.
            for top in &token.top {
                let name = token_text(&top.token, top.token_id, options);
                map.entry(name).or_insert_with(|| finite(top.logprob).into());
            }
            map.entry(text.clone()).or_insert_with(|| finite(logprob).into());
            map
        });
        columns.tokens.push(text);
        columns.token_logprobs.push(token.logprob.map(finite));
        columns.top_logprobs.push(top);
        columns.text_offset.push(token.text_offset);
    }
}

fn token_text(text: &str, id: u32, options: &ReplyOptions) -> String {
    if options.tokens_as_ids { format!("token_id:{id}") } else { text.to_owned() }
}

fn finite(logprob: f32) -> f32 {
    // Also maps NaN, which `max` would not keep.
    logprob.max(LEAST_LOGPROB)
}

/// To a microsecond.
fn rounded(ms: f64) -> f64 {
    (ms * 1000.0).round() / 1000.0
}
