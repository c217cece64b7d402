//! One row per bad field: it is refused, and named.

use super::*;

fn limits() -> RequestLimits {
    RequestLimits { has_bos: true, longest_token_bytes: 4, ..RequestLimits::new("tiny", 100, 64) }
}

fn chat() -> GenerateRequest {
    let message = ChatMessage { role: "user".into(), content: "hi".into(), ..Default::default() };
    GenerateRequest {
        model: "tiny".into(),
        chat: true,
        prompts: vec![PromptInput::Messages(vec![message])],
        ..Default::default()
    }
}

fn completion() -> GenerateRequest {
    GenerateRequest {
        model: "tiny".into(),
        prompts: vec![PromptInput::Text("hi".into())],
        ..Default::default()
    }
}

/// `change` makes the request invalid in the field `param`, and says so.
fn refused(base: fn() -> GenerateRequest, param: &str, change: impl Fn(&mut GenerateRequest)) {
    let mut request = base();
    change(&mut request);
    let error = ValidRequest::new(request, &limits()).expect_err(param);
    assert_eq!(error.param(), Some(param), "{error:?}");
    assert_eq!(error.http_status().as_u16(), 400, "{error:?}");
    assert_eq!(error.grpc_code(), tonic::Code::InvalidArgument);
}

fn accepted(base: fn() -> GenerateRequest, change: impl Fn(&mut GenerateRequest)) -> ValidRequest {
    let mut request = base();
    change(&mut request);
    ValidRequest::new(request, &limits()).expect("in range")
}

#[test]
fn floats_out_of_range_are_refused_by_name() {
    let bad = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1e308, 1e308];
    for value in bad.into_iter().chain([-0.0, -0.1, 2.1]) {
        refused(chat, "temperature", |r| r.temperature = Some(value));
    }
    for value in bad.into_iter().chain([0.0, -0.1, 1.1, 1e-300]) {
        refused(chat, "top_p", |r| r.top_p = Some(value));
    }
    for value in bad.into_iter().chain([-0.1, 1.1]) {
        refused(chat, "min_p", |r| r.min_p = Some(value));
    }
    for value in bad.into_iter().chain([-2.1, 2.1]) {
        refused(chat, "presence_penalty", |r| r.presence_penalty = Some(value));
        refused(chat, "frequency_penalty", |r| r.frequency_penalty = Some(value));
    }
    for value in bad.into_iter().chain([0.0, 2.1]) {
        refused(chat, "repetition_penalty", |r| r.repetition_penalty = Some(value));
    }
}

#[test]
fn counts_out_of_range_are_refused_by_name() {
    for value in [0, -1, 9, 1_000_000, i64::MAX, i64::MIN] {
        refused(chat, "n", |r| r.n = Some(value));
    }
    for value in [0, -1, i64::MIN, i64::MAX] {
        refused(chat, "max_tokens", |r| r.max_tokens = Some(value));
    }
    for value in [-1, 33, i64::MAX] {
        refused(chat, "min_tokens", |r| {
            r.max_tokens = Some(32);
            r.min_tokens = Some(value);
        });
    }
    for value in [-2, i64::MIN, i64::MAX] {
        refused(chat, "top_k", |r| r.top_k = Some(value));
    }
    for value in [-1, 21, i64::MAX] {
        refused(chat, "top_logprobs", |r| r.logprobs = Some(value));
        refused(completion, "logprobs", |r| r.logprobs = Some(value));
    }
    for value in [-101, 101, i64::MAX] {
        refused(chat, "priority", |r| r.priority = Some(value));
    }
    refused(completion, "best_of", |r| r.best_of = Some(2));
}

#[test]
fn token_ids_outside_the_vocabulary_are_refused_by_name() {
    for id in [100, -1, i64::from(u32::MAX), 1 << 32, i64::MAX] {
        refused(completion, "prompt", |r| r.prompts = vec![PromptInput::TokenIds(vec![1, id])]);
        refused(chat, "stop_token_ids", |r| r.stop_token_ids = vec![id]);
        refused(chat, "logit_bias", |r| r.logit_bias = vec![(id, 1.0)]);
    }
    for bias in [f64::NAN, f64::INFINITY, 100.1, -100.1] {
        refused(chat, "logit_bias", |r| r.logit_bias = vec![(1, bias)]);
    }
    refused(chat, "logit_bias", |r| r.logit_bias = vec![(1, 1.0), (1, 2.0)]);
    refused(chat, "logit_bias", |r| r.logit_bias = vec![(1, 1.0); 1025]);
    accepted(chat, |r| r.logit_bias = vec![(99, -100.0)]);
}

#[test]
fn bad_prompts_and_stops_are_refused_by_name() {
    refused(chat, "messages", |r| r.prompts = vec![]);
    refused(chat, "messages", |r| r.prompts = vec![PromptInput::Messages(vec![])]);
    refused(chat, "messages[0].role", |r| {
        let message =
            ChatMessage { role: "root".into(), content: "x".into(), ..Default::default() };
        r.prompts = vec![PromptInput::Messages(vec![message])];
    });
    let calls = |role: &str, arguments: String| {
        let call = ToolCall { id: None, name: "f".into(), arguments };
        let role = role.to_owned();
        let message = ChatMessage { role, tool_calls: vec![call], ..Default::default() };
        vec![PromptInput::Messages(vec![message])]
    };
    refused(chat, "messages[0].tool_calls", |r| r.prompts = calls("user", "{}".into()));
    refused(chat, "messages", |r| r.prompts = calls("assistant", " ".repeat(1 << 20)));
    refused(chat, "messages", |r| r.prompts = calls("assistant", " ".repeat(257)));
    accepted(chat, |r| r.prompts = calls("assistant", "{}".into()));
    refused(completion, "prompt", |r| r.prompts = vec![PromptInput::TokenIds(vec![])]);
    refused(completion, "prompt", |r| r.prompts = vec![PromptInput::Text("x".into()); 65]);
    // 64 tokens of at most 4 bytes: 257 bytes cannot fit.
    refused(completion, "prompt", |r| r.prompts = vec![PromptInput::Text("x".repeat(257))]);
    refused(chat, "stop", |r| r.stop = vec!["x".into(); 17]);
    refused(chat, "stop[1]", |r| r.stop = vec!["x".into(), String::new()]);
    refused(chat, "stop[0]", |r| r.stop = vec!["x".repeat(257)]);
    refused(chat, "echo", |r| r.echo = true);
    refused(completion, "n", |r| {
        r.n = Some(8);
        r.prompts = vec![PromptInput::Text("x".into()); 33];
    });
}

#[test]
fn an_empty_text_needs_a_beginning_of_text_id() {
    accepted(completion, |r| r.prompts = vec![PromptInput::Text(String::new())]);
    let request =
        GenerateRequest { prompts: vec![PromptInput::Text(String::new())], ..completion() };
    let error =
        ValidRequest::new(request, &RequestLimits { has_bos: false, ..limits() }).unwrap_err();
    assert_eq!(error.param(), Some("prompt"));
}

#[test]
fn unknown_models_are_not_found() {
    let request = GenerateRequest { model: "other".into(), ..chat() };
    let error = ValidRequest::new(request, &limits()).unwrap_err();
    assert_eq!((error.code(), error.http_status().as_u16()), ("not_found", 404));
    refused(chat, "model", |r| r.model = String::new());
}

#[test]
fn defaults_are_openais() {
    let request = accepted(chat, |_| ());
    assert_eq!(request.max_tokens(), None);
    assert_eq!(request.n(), 1);
    assert_eq!(*request.sampling().as_ref(), Sampling { temperature: 1.0, ..Default::default() });
    assert_eq!(accepted(completion, |_| ()).max_tokens(), Some(16));
}

#[test]
fn off_values_are_the_same_as_absent() {
    let request = accepted(chat, |r| {
        r.top_k = Some(0);
        r.top_p = Some(1.0);
        r.min_p = Some(0.0);
        r.repetition_penalty = Some(1.0);
        r.presence_penalty = Some(-0.0);
    });
    assert_eq!(request.sampling(), accepted(chat, |_| ()).sampling());
}

#[test]
fn zero_tokens_only_to_score_a_prompt() {
    refused(completion, "max_tokens", |r| r.max_tokens = Some(0));
    refused(completion, "max_tokens", |r| {
        r.max_tokens = Some(0);
        r.echo = true;
    });
    let request = accepted(completion, |r| {
        r.max_tokens = Some(0);
        r.echo = true;
        r.logprobs = Some(0);
    });
    assert_eq!(request.max_tokens(), Some(0));
}

#[test]
fn seeds_are_kept_and_derived() {
    let request = accepted(chat, |r| {
        r.seed = Some(-1);
        r.n = Some(8);
    });
    assert_eq!(request.seed_of(0), u64::MAX);
    let mut seeds: Vec<u64> = (0..8).map(|i| request.seed_of(i)).collect();
    seeds.sort_unstable();
    seeds.dedup();
    assert_eq!(seeds.len(), 8);
    assert_ne!(accepted(chat, |_| ()).seed_of(0), accepted(chat, |_| ()).seed_of(0));
}

#[test]
fn debug_shows_no_prompt() {
    let canary = "canary-4711";
    let request = accepted(completion, |r| r.prompts = vec![PromptInput::Text(canary.into())]);
    let shown = format!("{:?} {:?}", PromptInput::Text(canary.into()), completion());
    assert!(!shown.contains(canary));
    assert!(!format!("{request:?}").contains(canary), "ValidPrompt leaks the prompt");
}
