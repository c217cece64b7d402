//! Bad requests: each refused with its exact status, code and parameter, over
//! HTTP; the same over gRPC; and nothing is lost by any of them.

use integration_tests::http::Client;
use integration_tests::sandbox::Sandbox;
use serde_json::{Value, json};

/// Endpoint, a change to a good body, then what the refusal must say.
struct Case {
    path: &'static str,
    change: Value,
    status: u16,
    code: &'static str,
    param: Option<&'static str>,
}

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn bad(path: &'static str, change: Value, param: &'static str) -> Case {
    Case { path, change, status: 400, code: "invalid_value", param: Some(param) }
}

fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case {
            path: CHAT,
            change: json!({ "model": "nope" }),
            status: 404,
            code: "not_found",
            param: Some("model"),
        },
        Case {
            path: CHAT,
            change: json!({ "max_tokens": 1_000_000 }),
            status: 400,
            code: "context_length_exceeded",
            param: None,
        },
        Case {
            path: COMPLETIONS,
            change: json!({ "prompt": "word ".repeat(20_000) }),
            status: 400,
            code: "context_length_exceeded",
            param: None,
        },
        bad(CHAT, json!({ "messages": [] }), "messages"),
        bad(CHAT, json!({ "messages": "hi" }), "messages"),
        bad(CHAT, json!({ "messages": [{ "role": "wizard", "content": "hi" }] }), "messages"),
        bad(COMPLETIONS, json!({ "prompt": [49_152] }), "prompt"),
        bad(COMPLETIONS, json!({ "prompt": [-1] }), "prompt"),
        bad(COMPLETIONS, json!({ "prompt": [] }), "prompt"),
        bad(COMPLETIONS, json!({ "max_tokens": 0 }), "max_tokens"),
        bad(COMPLETIONS, json!({ "logprobs": 1000 }), "logprobs"),
        bad(COMPLETIONS, json!({ "best_of": 3 }), "best_of"),
        bad(CHAT, json!({ "top_logprobs": 3 }), "top_logprobs"),
        bad(CHAT, json!({ "min_tokens": 9, "max_tokens": 3 }), "min_tokens"),
        bad(CHAT, json!({ "logit_bias": { "49152": 1 } }), "logit_bias"),
        bad(CHAT, json!({ "logit_bias": { "1": 1000 } }), "logit_bias"),
        bad(CHAT, json!({ "stop": [""] }), "stop"),
        bad(CHAT, json!({ "stop_token_ids": [49_152] }), "stop_token_ids"),
    ];
    let numbers = [
        (
            "n",
            vec![
                json!(0),
                json!(-1),
                json!(9),
                json!(1_000_000),
                json!(2_147_483_648_i64),
                json!(1e308),
                json!("5"),
            ],
        ),
        ("temperature", vec![json!(-0.1), json!(2.1), json!(1e308), json!("hot")]),
        ("top_p", vec![json!(0), json!(1.1), json!(-1)]),
        ("min_p", vec![json!(-0.1), json!(1.1)]),
        ("top_k", vec![json!(-2), json!(1.5)]),
        ("presence_penalty", vec![json!(-2.1), json!(2.1)]),
        ("frequency_penalty", vec![json!(-2.1), json!(2.1)]),
        ("repetition_penalty", vec![json!(0), json!(-1)]),
        ("max_tokens", vec![json!(-1), json!(1.5), json!("many")]),
        ("min_tokens", vec![json!(-1)]),
        ("seed", vec![json!(1.5), json!("x")]),
        ("no_such_field", vec![json!(1)]),
    ];
    for (name, values) in numbers {
        cases.extend(values.into_iter().map(|value| bad(CHAT, json!({ name: value }), name)));
    }
    cases
}

fn good(path: &str, model: &str) -> Value {
    let mut body = json!({ "model": model, "max_tokens": 2 });
    if path == CHAT {
        body["messages"] = json!([{ "role": "user", "content": "hi" }]);
    } else {
        body["prompt"] = json!("hi");
    }
    body
}

async fn check(client: &Client, model: &str, case: &Case) {
    let mut body = good(case.path, model);
    for (key, value) in case.change.as_object().expect("changes are objects") {
        body[key] = value.clone();
    }
    let reply = client.post(case.path, &body).await.expect("answers");
    let shown =
        format!("{} {}", case.path, case.change.to_string().chars().take(80).collect::<String>());
    let error = reply.json();
    let error = &error["error"];
    assert_eq!(reply.status, case.status, "{shown}: {error}");
    assert_eq!(error["code"], case.code, "{shown}: {error}");
    assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{shown}: {error}");
    if let Some(param) = case.param {
        let found = error["param"].as_str().unwrap_or_default();
        assert!(found.starts_with(param), "{shown}: {error}");
    }
}

#[test]
fn every_bad_request_is_refused_and_the_next_good_one_served() {
    let sandbox = Sandbox::start();
    let client = sandbox.client();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let models = client.get("/v1/models").await.expect("answers").json();
        let model = models["data"][0]["id"].as_str().expect("one model").to_owned();
        for case in cases() {
            check(&client, &model, &case).await;
        }
        raw_bodies(&client).await;
        for path in [CHAT, COMPLETIONS] {
            let reply = client.post(path, &good(path, &model)).await.expect("answers");
            assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
        }
        grpc(&sandbox, &model).await;
    });
    sandbox.wait_for_metric("llama_mesh_kv_cache_usage_perc", 0.0);
}

/// Bodies that are not even the right JSON, and wrong places.
async fn raw_bodies(client: &Client) {
    let deep = format!("{{\"messages\":{}", "[".repeat(100_000));
    let duplicate = r#"{"model":"x","model":"y","messages":[]}"#;
    let huge = format!("{{\"messages\":\"{}\"}}", "x".repeat(9 << 20));
    let cases = [
        ("POST", CHAT, "", 400),
        ("POST", CHAT, "{", 400),
        ("POST", CHAT, "[1]", 400),
        ("POST", CHAT, "\u{0}", 400),
        ("POST", CHAT, &deep, 400),
        ("POST", CHAT, duplicate, 400),
        ("POST", CHAT, &huge, 413),
        ("GET", CHAT, "", 405),
        ("POST", "/v1/nowhere", "{}", 404),
    ];
    for (method, path, body, status) in cases {
        let shown = format!("{method} {path} {}", body.chars().take(40).collect::<String>());
        let request = client.request(method, path, body.to_owned());
        let reply = client.send(request).await.expect("answers");
        let reply = integration_tests::http::whole(reply).await.expect("complete");
        assert_eq!(reply.status, status, "{shown}");
        assert!(reply.json()["error"]["message"].is_string(), "{shown}: OpenAI's error shape");
    }
}

async fn grpc(sandbox: &Sandbox, model: &str) {
    use proto::v1::inference_client::InferenceClient;
    use proto::v1::{ChatMessage, ChatRequest, CompleteRequest, Options, complete_request::Prompt};
    use tonic::Code;

    let mut client = InferenceClient::connect(sandbox.url()).await.expect("gRPC beside HTTP");
    let message = ChatMessage {
        role: "user".to_owned(),
        content: "hi".to_owned(),
        name: None,
        tool_calls: Vec::new(),
    };
    let chat = |model: &str, messages: &[ChatMessage], options: Options| ChatRequest {
        model: model.to_owned(),
        messages: messages.to_vec(),
        options: Some(options),
    };
    let hi = std::slice::from_ref(&message);
    let cases = [
        (chat("nope", hi, Options::default()), Code::NotFound),
        (chat(model, &[], Options::default()), Code::InvalidArgument),
        (chat(model, hi, Options { n: Some(9), ..Options::default() }), Code::InvalidArgument),
        (chat(model, hi, Options { n: Some(0), ..Options::default() }), Code::InvalidArgument),
        (
            chat(model, hi, Options { temperature: Some(f64::NAN), ..Options::default() }),
            Code::InvalidArgument,
        ),
        (
            chat(model, hi, Options { max_tokens: Some(1_000_000), ..Options::default() }),
            Code::InvalidArgument,
        ),
    ];
    for (request, code) in cases {
        let shown = format!("{request:?}");
        let status = client.chat(request).await.expect_err(&shown);
        assert_eq!(status.code(), code, "{shown}: {status}");
    }
    let empty = CompleteRequest { model: model.to_owned(), ..CompleteRequest::default() };
    let status = client.complete(empty).await.expect_err("no prompt");
    assert_eq!(status.code(), Code::InvalidArgument);
    let good = CompleteRequest {
        model: model.to_owned(),
        prompt: Some(Prompt::Text("The sky is".to_owned())),
        options: Some(Options { max_tokens: Some(4), ..Options::default() }),
        echo: None,
    };
    let mut stream = client.complete(good).await.expect("served").into_inner();
    let mut usage = None;
    while let Some(message) = stream.message().await.expect("no error") {
        usage = message.usage.or(usage);
    }
    assert_eq!(usage.expect("usage comes last").completion_tokens, 4);
}
