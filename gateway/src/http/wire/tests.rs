//! One row per body: what is refused is refused by name, what is accepted is
//! read as meant.

use serde_json::{Value, json};

use super::chat::parse_chat;
use super::completions::parse_completion;
use super::options::ReplyOptions;
use super::tokens::{parse_detokenize, parse_tokenize};
use crate::error::GatewayError;
use crate::request::{GenerateRequest, PromptInput};

type Parsed = Result<(GenerateRequest, ReplyOptions), GatewayError>;

/// The body of a minimal request with `more` over it.
fn with(base: Value, more: &Value) -> Vec<u8> {
    let mut body = base;
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body.to_string().into_bytes()
}

fn chat(more: &Value) -> Parsed {
    let messages = json!([{"role": "user", "content": "hi"}]);
    parse_chat(&with(json!({"model": "tiny", "messages": messages}), more))
}

fn completion(more: &Value) -> Parsed {
    parse_completion(&with(json!({"model": "tiny", "prompt": "hi"}), more))
}

/// Each body is refused, and the refusal names the field.
fn refused(parse: fn(&Value) -> Parsed, rows: &[(Value, &str)]) {
    for (more, param) in rows {
        let error = parse(more).map(|_| ()).expect_err(&more.to_string());
        assert_eq!(error.param(), Some(*param), "{more}: {error}");
        assert_eq!((error.http_status().as_u16(), error.code()), (400, "invalid_value"));
        assert!(error.to_string().contains(param), "{error} does not name {param}");
    }
}

fn shared_refusals() -> Vec<(Value, &'static str)> {
    vec![
        (json!({"model": null}), "model"),
        (json!({"model": 7}), "model"),
        (json!({"temperature": "0.5"}), "temperature"),
        (json!({"top_p": true}), "top_p"),
        (json!({"n": "5"}), "n"),
        (json!({"n": 5.0}), "n"),
        (json!({"n": [5]}), "n"),
        (json!({"seed": 1.5}), "seed"),
        (json!({"seed": u64::MAX}), "seed"),
        (json!({"max_tokens": "all"}), "max_tokens"),
        (json!({"max_tokens": 1e3}), "max_tokens"),
        (json!({"top_k": 0.5}), "top_k"),
        (json!({"stop": 7}), "stop"),
        (json!({"stop": ["a", 7]}), "stop[1]"),
        (json!({"stop_token_ids": ["7"]}), "stop_token_ids[0]"),
        (json!({"stop_token_ids": 7}), "stop_token_ids"),
        (json!({"logit_bias": [1]}), "logit_bias"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias"),
        (json!({"logit_bias": {"7": "1"}}), "logit_bias[7]"),
        (json!({"stream": "true"}), "stream"),
        (json!({"stream": 1}), "stream"),
        (json!({"stream_options": {}}), "stream_options"),
        (
            json!({"stream": true, "stream_options": {"include_usage": 1}}),
            "stream_options.include_usage",
        ),
        (json!({"stream": true, "stream_options": {"x": 1}}), "stream_options.x"),
        (
            json!({"stream": true, "stream_options": {"continuous_usage_stats": true}}),
            "stream_options.continuous_usage_stats",
        ),
        (json!({"ignore_eos": "yes"}), "ignore_eos"),
        (json!({"priority": "high"}), "priority"),
        (json!({"user": 7}), "user"),
        (json!({"metadata": {"k": 7}}), "metadata.k"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"service_tier": "flex"}), "service_tier"),
        (json!({"skip_special_tokens": false}), "skip_special_tokens"),
        (json!({"prompt_logprobs": 1}), "prompt_logprobs"),
        (json!({"guided_json": {"type": "object"}}), "guided_json"),
        (json!({"temprature": 0.5}), "temprature"),
    ]
}

#[test]
fn both_endpoints_refuse_by_name() {
    refused(chat, &shared_refusals());
    refused(completion, &shared_refusals());
}

#[test]
fn chat_refuses_by_name() {
    let message = |message: Value| json!({"messages": [message]});
    let user = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    let calls = |calls: Value| json!({"messages": [{"role": "assistant", "tool_calls": calls}]});
    let tool = json!({"type": "function", "function": {"name": "f"}});
    refused(
        chat,
        &[
            (json!({"messages": null}), "messages"),
            (json!({"messages": "hi"}), "messages"),
            (json!({"messages": ["hi"]}), "messages[0]"),
            (message(json!({"content": "hi"})), "messages[0].role"),
            (message(json!({"role": 1, "content": "hi"})), "messages[0].role"),
            (message(json!({"role": "user"})), "messages[0].content"),
            (message(json!({"role": "user", "content": "x", "mood": 1})), "messages[0].mood"),
            (calls(json!({})), "messages[0].tool_calls"),
            (calls(json!([1])), "messages[0].tool_calls[0]"),
            (calls(json!([{"id": "1"}])), "messages[0].tool_calls[0].function"),
            (calls(json!([{"type": "x"}])), "messages[0].tool_calls[0].type"),
            (calls(json!([tool])), "messages[0].tool_calls[0].function.arguments"),
            (
                calls(json!([{"function": {"name": "f", "arguments": {}}}])),
                "messages[0].tool_calls[0].function.arguments",
            ),
            (
                message(json!({"role": "user", "content": "x", "tool_call_id": "1"})),
                "messages[0].tool_call_id",
            ),
            (user(json!(7)), "messages[0].content"),
            (user(json!([])), "messages[0].content"),
            (user(json!(["x"])), "messages[0].content[0]"),
            (user(json!([{"type": "text"}])), "messages[0].content[0].text"),
            (user(json!([{"type": "text", "text": "x", "y": 1}])), "messages[0].content[0].y"),
            (
                user(json!([
                    {"type": "text", "text": "x"},
                    {"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}
                ])),
                "messages[0].content[1].type",
            ),
            (json!({"max_tokens": 5, "max_completion_tokens": 6}), "max_completion_tokens"),
            (json!({"logprobs": 5}), "logprobs"),
            (json!({"top_logprobs": 5}), "top_logprobs"),
            (json!({"logprobs": false, "top_logprobs": 5}), "top_logprobs"),
            (json!({"tools": [tool]}), "tools"),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"functions": [{"name": "f"}]}), "functions"),
            (json!({"modalities": ["text", "audio"]}), "modalities"),
            (json!({"audio": {"voice": "x"}}), "audio"),
            (json!({"store": true}), "store"),
            (json!({"prediction": {"type": "content"}}), "prediction"),
            (json!({"web_search_options": {"x": 1}}), "web_search_options"),
            (json!({"reasoning_effort": "high"}), "reasoning_effort"),
            (json!({"echo": true}), "echo"),
            (json!({"chat_template": "{{ x }}"}), "chat_template"),
            (json!({"chat_template_kwargs": {"tokenize": true}}), "chat_template_kwargs"),
            (json!({"prompt": "hi"}), "prompt"),
            (json!({"best_of": 1}), "best_of"),
        ],
    );
}

#[test]
fn completions_refuse_by_name() {
    refused(
        completion,
        &[
            (json!({"prompt": null}), "prompt"),
            (json!({"prompt": 7}), "prompt"),
            (json!({"prompt": []}), "prompt"),
            (json!({"prompt": [1, "x"]}), "prompt[1]"),
            (json!({"prompt": ["x", 1]}), "prompt[1]"),
            (json!({"prompt": [[1], [0.5]]}), "prompt[1][0]"),
            (json!({"prompt": [{}]}), "prompt[0]"),
            (json!({"suffix": "x"}), "suffix"),
            (json!({"echo": 1}), "echo"),
            (json!({"logprobs": true}), "logprobs"),
            (json!({"best_of": "2"}), "best_of"),
            (json!({"top_logprobs": 1}), "top_logprobs"),
            (json!({"messages": []}), "messages"),
            (json!({"tools": []}), "tools"),
        ],
    );
}

#[test]
fn every_number_is_passed_on_as_it_came() {
    let (request, reply) = chat(&json!({
        "max_completion_tokens": -7, "min_tokens": 3, "temperature": 1e300, "top_p": -0.5,
        "top_k": -1, "min_p": 0.1, "presence_penalty": 1, "frequency_penalty": -1,
        "repetition_penalty": 1.1, "seed": -1, "stop": "x", "stop_token_ids": [1, -2],
        "logit_bias": {"5": -100}, "n": 1000000, "logprobs": true, "top_logprobs": 99,
        "ignore_eos": true, "priority": -3, "return_token_ids": true, "user": "u",
    }))
    .unwrap();
    assert!(request.chat && request.ignore_eos && request.return_prompt_token_ids);
    assert_eq!((request.max_tokens, request.min_tokens), (Some(-7), Some(3)));
    assert_eq!((request.temperature, request.top_p), (Some(1e300), Some(-0.5)));
    assert_eq!((request.top_k, request.min_p), (Some(-1), Some(0.1)));
    assert_eq!((request.presence_penalty, request.frequency_penalty), (Some(1.0), Some(-1.0)));
    assert_eq!((request.repetition_penalty, request.seed), (Some(1.1), Some(-1)));
    assert_eq!((request.stop.len(), request.stop_token_ids.as_slice()), (1, &[1, -2][..]));
    assert_eq!(request.logit_bias, [(5, -100.0)]);
    assert_eq!((request.n, request.logprobs), (Some(1_000_000), Some(99)));
    assert_eq!(request.priority, Some(-3));
    assert_eq!(reply, ReplyOptions { return_token_ids: true, ..Default::default() });
    assert_eq!(request.user_key, None, "a client's `user` is nobody's identity");
}

#[test]
fn absent_null_and_neutral_values_are_the_same() {
    let plain = format!("{:?}", chat(&json!({})).unwrap());
    let neutral = json!({
        "temperature": null, "tools": null, "tool_choice": "none", "functions": [],
        "response_format": {"type": "text"}, "modalities": ["text"], "store": false,
        "service_tier": "auto", "parallel_tool_calls": true, "metadata": {"k": "v"},
        "safety_identifier": "x", "prompt_cache_key": "y", "logit_bias": null,
        "skip_special_tokens": true, "stream": false, "stream_options": null, "stop": [],
        "logprobs": false, "top_logprobs": 0, "chat_template_kwargs": {},
    });
    assert_eq!(format!("{:?}", chat(&neutral).unwrap()), plain);
}

#[test]
fn messages_are_read_as_text() {
    let (request, _) = chat(&json!({"messages": [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "n"},
        {"role": "assistant", "content": "c", "refusal": null, "tool_calls": [], "annotations": []},
        {"role": "tool", "content": "t", "tool_call_id": "1"},
    ]}))
    .unwrap();
    let [PromptInput::Messages(messages)] = request.prompts.as_slice() else { panic!() };
    let read: Vec<(&str, &str)> =
        messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
    let wanted = [("system", "d"), ("user", "a\nb"), ("assistant", "c"), ("tool", "t")];
    assert_eq!(read, wanted);
    assert_eq!(messages[1].name.as_deref(), Some("n"));
}

#[test]
fn tool_calls_are_read_with_and_without_content() {
    let function = json!({"name": "f", "arguments": "{\"a\": 1}"});
    let call = json!({"id": "1", "type": "function", "function": function});
    let (request, _) = chat(&json!({"messages": [
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "assistant", "content": "c", "tool_calls": [{"function": function}]},
    ]}))
    .unwrap();
    let [PromptInput::Messages(messages)] = request.prompts.as_slice() else { panic!() };
    assert_eq!((messages[0].content.as_str(), messages[1].content.as_str()), ("", "c"));
    for (message, id) in messages.iter().zip([Some("1"), None]) {
        let [call] = &message.tool_calls[..] else { panic!() };
        assert_eq!((call.id.as_deref(), call.name.as_str()), (id, "f"));
        assert_eq!(call.arguments, "{\"a\": 1}");
    }
}

#[test]
fn prompts_come_in_four_forms() {
    let text = |text: &str| PromptInput::Text(text.into());
    let ids = |ids: &[i64]| PromptInput::TokenIds(ids.to_vec());
    for (prompt, wanted) in [
        (json!(""), vec![text("")]),
        (json!(["a", ""]), vec![text("a"), text("")]),
        (json!([1, -2]), vec![ids(&[1, -2])]),
        (json!([[1], [], [2, 3]]), vec![ids(&[1]), ids(&[]), ids(&[2, 3])]),
    ] {
        assert!(completion(&json!({"prompt": prompt})).unwrap().0.prompts == wanted, "{prompt}");
    }
}

#[test]
fn tokenize_takes_one_input() {
    let error = |body: &str| parse_tokenize(body.as_bytes()).unwrap_err();
    assert_eq!(error("{}").param(), Some("prompt"));
    assert_eq!(error(r#"{"prompt":"x","messages":[]}"#).param(), Some("prompt"));
    assert_eq!(error(r#"{"prompt":7}"#).param(), Some("prompt"));
    assert_eq!(
        error(r#"{"prompt":"x","return_token_strs":true}"#).param(),
        Some("return_token_strs")
    );
    let body = parse_tokenize(br#"{"prompt":"x","add_special_tokens":false}"#).unwrap();
    assert!(body.input == PromptInput::Text("x".into()));
    assert_eq!(body.add_special_tokens, Some(false));
    let error = |body: &str| parse_detokenize(body.as_bytes()).unwrap_err();
    assert_eq!(error("{}").param(), Some("tokens"));
    assert_eq!(error(r#"{"tokens":[1,"x"]}"#).param(), Some("tokens[1]"));
    assert_eq!(parse_detokenize(br#"{"tokens":[1]}"#).unwrap().tokens, [1]);
}
