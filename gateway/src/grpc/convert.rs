//! Between the wire's messages and the gateway's own types.

use proto::v1;

use crate::generate::ModelInfo;
use crate::http::wire::chat::canonical_role;
use crate::request::{ChatMessage, GenerateRequest, PromptInput, ToolCall};
use crate::text_stream::{Delta, TokenLogprob, Usage};

/// Whether deltas carry token ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WithIds(bool);

pub(super) fn chat(request: v1::ChatRequest) -> (GenerateRequest, WithIds) {
    let (mut generate, with_ids) = options(request.options);
    generate.model = request.model;
    generate.chat = true;
    generate.prompts = vec![messages(request.messages)];
    (generate, with_ids)
}

pub(super) fn complete(request: v1::CompleteRequest) -> (GenerateRequest, WithIds) {
    use v1::complete_request::Prompt;
    let (mut generate, with_ids) = options(request.options);
    generate.model = request.model;
    generate.echo = request.echo.unwrap_or(false);
    let prompt = request.prompt.map(|prompt| match prompt {
        Prompt::Text(text) => PromptInput::Text(text),
        Prompt::TokenIds(ids) => {
            PromptInput::TokenIds(ids.ids.into_iter().map(i64::from).collect())
        }
    });
    generate.prompts = prompt.into_iter().collect();
    (generate, with_ids)
}

pub(super) fn messages(messages: Vec<v1::ChatMessage>) -> PromptInput {
    let message = |message: v1::ChatMessage| ChatMessage {
        role: canonical_role(message.role),
        content: message.content,
        name: message.name,
        tool_calls: message.tool_calls.into_iter().map(tool_call).collect(),
    };
    PromptInput::Messages(messages.into_iter().map(message).collect())
}

fn tool_call(call: v1::ToolCall) -> ToolCall {
    ToolCall { id: call.id, name: call.name, arguments: call.arguments }
}

pub(super) fn model(model: ModelInfo) -> v1::ModelInfo {
    v1::ModelInfo {
        id: model.id,
        max_model_len: model.max_model_len,
        workers: model.num_workers,
        chat_template: model.chat_template,
    }
}

pub(super) fn delta(delta: Delta, with_ids: WithIds) -> v1::Delta {
    v1::Delta {
        index: delta.choice,
        text: delta.text,
        // The echoed prompt's ids are not the answer's.
        token_ids: if with_ids.0 && !delta.prompt { delta.token_ids } else { Vec::new() },
        logprobs: delta.logprobs.into_iter().map(logprob).collect(),
        finish_reason: delta.finish.map(|finish| finish.reason.as_str().to_owned()),
    }
}

pub(super) fn usage(usage: &Usage) -> v1::Usage {
    v1::Usage {
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        cached_tokens: usage.cached_tokens,
        time_to_first_token_ms: usage.timings.ttft_ms,
        total_ms: usage.timings.total_ms,
    }
}

fn options(options: Option<v1::Options>) -> (GenerateRequest, WithIds) {
    let options = options.unwrap_or_default();
    let with_ids = WithIds(options.return_token_ids.unwrap_or(false));
    let mut logit_bias: Vec<(i64, f64)> =
        options.logit_bias.into_iter().map(|(id, bias)| (i64::from(id), bias)).collect();
    // The wire's map has no order; the same request should look the same.
    logit_bias.sort_unstable_by_key(|(id, _)| *id);
    let generate = GenerateRequest {
        max_tokens: options.max_tokens,
        min_tokens: options.min_tokens,
        temperature: options.temperature,
        top_p: options.top_p,
        top_k: options.top_k,
        min_p: options.min_p,
        presence_penalty: options.presence_penalty,
        frequency_penalty: options.frequency_penalty,
        repetition_penalty: options.repetition_penalty,
        seed: options.seed,
        stop: options.stop,
        stop_token_ids: options.stop_token_ids.into_iter().map(i64::from).collect(),
        logit_bias,
        n: options.n,
        logprobs: options.logprobs,
        ignore_eos: options.ignore_eos.unwrap_or(false),
        ..GenerateRequest::default()
    };
    (generate, with_ids)
}

fn logprob(token: TokenLogprob) -> v1::TokenLogprob {
    let top = token.top.into_iter().map(|top| v1::TopLogprob {
        token: top.token,
        token_id: top.token_id,
        logprob: top.logprob,
        bytes: top.bytes,
    });
    v1::TokenLogprob {
        token: token.token,
        token_id: token.token_id,
        logprob: token.logprob,
        bytes: token.bytes,
        top: top.collect(),
    }
}
