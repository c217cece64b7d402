//! A whole gateway on loopback with a tiny tokenizer: whatever is refused is
//! refused before anybody would run it, and both protocols say the same.

mod endpoints;
mod overload;

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use proto::v1;
use proto::v1::inference_client::InferenceClient;
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::*;
use crate::config::{ListenConfig, QueueConfig};
use crate::text::tokenizer::fixture;
use crate::worker_pool::fake_worker::{FakeWorker, Script};

const PATIENCE: Duration = Duration::from_secs(20);
/// More than is parsed in line.
const MAX_BODY: usize = 128 * 1024;
const MAX_MODEL_LEN: u32 = 64;

struct Site {
    http: SocketAddr,
    shutdown: Shutdown,
    client: Client<HttpConnector, Full<Bytes>>,
    grpc: InferenceClient<Channel>,
    workers: Vec<FakeWorker>,
    _model: tempfile::TempPath,
}

struct Reply {
    status: u16,
    headers: http::HeaderMap,
    body: Value,
}

impl Site {
    /// Without a worker.
    async fn start() -> Self {
        Self::start_with(QueueConfig::default(), |_, _| Vec::new()).await
    }

    /// With a worker that can serve.
    async fn start_ready() -> Self {
        Self::start_served(Script::default(), QueueConfig::default()).await
    }

    /// With a worker that does as it is told, and when it is ready.
    async fn start_served(script: Script, queue: QueueConfig) -> Self {
        let site = Self::start_with(queue, |model, shutdown| {
            let files = common::model::ModelFiles::locate(model).unwrap();
            let fingerprint = files.tokenizer_fingerprint().unwrap().leak();
            vec![FakeWorker::start(Script { fingerprint, ..script }, shutdown)]
        })
        .await;
        let ready = async { while site.get("/ready").await.status != 200 {} };
        tokio::time::timeout(PATIENCE, ready).await.expect("ready in time");
        site
    }

    async fn start_with(
        queue: QueueConfig,
        workers: impl FnOnce(&Path, &Shutdown) -> Vec<FakeWorker>,
    ) -> Self {
        let shutdown = Shutdown::new(PATIENCE);
        let mut model = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
        model.write_all(&fixture::gguf_file(&fixture::gguf_entries())).unwrap();
        let workers = workers(model.path(), &shutdown);
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = GatewayConfig {
            model: Some(model.path().to_owned()),
            served_model_name: Some("tiny".into()),
            workers: workers.iter().map(|worker| worker.endpoint.clone()).collect(),
            listen: ListenConfig {
                http: free,
                grpc: Some(free),
                max_body_bytes: MAX_BODY,
                ..Default::default()
            },
            limits: crate::config::LimitsConfig {
                max_model_len: Some(MAX_MODEL_LEN),
                ..Default::default()
            },
            queue: QueueConfig { worker_wait_ms: 50, ..queue },
            ..Default::default()
        };
        let app = App::build(config, &shutdown).await.unwrap();
        let http = app.http_addr();
        // gRPC on the HTTP port: the port of its own is the same code with less.
        let channel = Channel::from_shared(format!("http://{http}")).unwrap().connect_lazy();
        let running = shutdown.clone();
        #[expect(clippy::disallowed_methods, reason = "waits for the tasks of `shutdown` itself")]
        tokio::spawn(app.run(running));
        Self {
            http,
            shutdown,
            client: Client::builder(TokioExecutor::new()).build_http(),
            grpc: InferenceClient::new(channel),
            workers,
            _model: model.into_temp_path(),
        }
    }

    async fn send(&self, request: http::request::Builder, body: impl Into<Bytes>) -> Reply {
        let request = request.body(Full::new(body.into())).unwrap();
        let sent = tokio::time::timeout(PATIENCE, self.client.request(request));
        let response = sent.await.expect("answers in time").unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&body)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned()));
        Reply { status: head.status.as_u16(), headers: head.headers, body }
    }

    fn request(&self, method: &str, path: &str) -> http::request::Builder {
        let uri = format!("http://{}{path}", self.http);
        http::Request::builder().method(method).uri(uri)
    }

    async fn post(&self, path: &str, body: &Value) -> Reply {
        let request = self.request("POST", path).header("content-type", "application/json");
        self.send(request, body.to_string()).await
    }

    async fn get(&self, path: &str) -> Reply {
        self.send(self.request("GET", path), "").await
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn chat_body() -> Value {
    json!({"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4})
}

fn chat_message() -> v1::ChatRequest {
    let message = v1::ChatMessage {
        role: "user".into(),
        content: "hello".into(),
        name: None,
        tool_calls: Vec::new(),
    };
    let options = v1::Options { max_tokens: Some(4), ..Default::default() };
    v1::ChatRequest { model: "tiny".into(), messages: vec![message], options: Some(options) }
}

/// The same change to both forms of a good chat, and what both must answer.
struct Row {
    json: Value,
    change: fn(&mut v1::ChatRequest),
    wanted: (u16, &'static str, Code),
}

const INVALID: (u16, &str, Code) = (400, "invalid_value", Code::InvalidArgument);

fn option(request: &mut v1::ChatRequest) -> &mut v1::Options {
    request.options.as_mut().unwrap()
}

fn invalid(json: Value, change: fn(&mut v1::ChatRequest)) -> Row {
    Row { json, change, wanted: INVALID }
}

fn numbers() -> Vec<Row> {
    vec![
        invalid(json!({"temperature": -0.1}), |r| option(r).temperature = Some(-0.1)),
        invalid(json!({"temperature": 2.1}), |r| option(r).temperature = Some(2.1)),
        invalid(json!({"top_p": 0.0}), |r| option(r).top_p = Some(0.0)),
        invalid(json!({"top_p": 1.1}), |r| option(r).top_p = Some(1.1)),
        invalid(json!({"top_k": -2}), |r| option(r).top_k = Some(-2)),
        invalid(json!({"min_p": 1.5}), |r| option(r).min_p = Some(1.5)),
        invalid(json!({"presence_penalty": 3}), |r| option(r).presence_penalty = Some(3.0)),
        invalid(json!({"frequency_penalty": -3}), |r| option(r).frequency_penalty = Some(-3.0)),
        invalid(json!({"repetition_penalty": 0}), |r| option(r).repetition_penalty = Some(0.0)),
        invalid(json!({"n": 0}), |r| option(r).n = Some(0)),
        invalid(json!({"n": 9}), |r| option(r).n = Some(9)),
        invalid(json!({"n": 1_000_000}), |r| option(r).n = Some(1_000_000)),
        invalid(json!({"n": i64::MIN}), |r| option(r).n = Some(i64::MIN)),
        invalid(json!({"max_tokens": 0}), |r| option(r).max_tokens = Some(0)),
        invalid(json!({"max_tokens": -1}), |r| option(r).max_tokens = Some(-1)),
        invalid(json!({"max_tokens": i64::MAX}), |r| option(r).max_tokens = Some(i64::MAX)),
        invalid(json!({"min_tokens": 5}), |r| option(r).min_tokens = Some(5)),
        invalid(json!({"logprobs": true, "top_logprobs": 21}), |r| option(r).logprobs = Some(21)),
        invalid(json!({"logprobs": true, "top_logprobs": -1}), |r| option(r).logprobs = Some(-1)),
        invalid(json!({"stop_token_ids": [1 << 20]}), |r| option(r).stop_token_ids = vec![1 << 20]),
        invalid(json!({"logit_bias": {"4294967295": 1}}), |r| {
            option(r).logit_bias = [(u32::MAX, 1.0)].into();
        }),
        invalid(json!({"logit_bias": {"1": 101}}), |r| option(r).logit_bias = [(1, 101.0)].into()),
        invalid(json!({"stop": [""]}), |r| option(r).stop = vec![String::new()]),
        invalid(json!({"stop": vec!["x"; 17]}), |r| option(r).stop = vec!["x".into(); 17]),
    ]
}

fn contents() -> Vec<Row> {
    let not_found = (404, "not_found", Code::NotFound);
    let too_long = (400, "context_length_exceeded", Code::InvalidArgument);
    let no_worker = (503, "no_worker", Code::Unavailable);
    let content = |content: String| json!({"messages": [{"role": "user", "content": content}]});
    vec![
        invalid(json!({"model": ""}), |r| r.model = String::new()),
        Row { json: json!({"model": "x"}), change: |r| r.model = "x".into(), wanted: not_found },
        invalid(json!({"messages": []}), |r| r.messages.clear()),
        invalid(json!({"messages": [{"role": "", "content": "x"}]}), |r| {
            r.messages[0].role = String::new();
        }),
        invalid(json!({"messages": [{"role": "root", "content": "x"}]}), |r| {
            r.messages[0].role = "root".into();
        }),
        invalid(content("x".repeat(100_000)), |r| r.messages[0].content = "x".repeat(100_000)),
        Row {
            json: content("x".repeat(MAX_MODEL_LEN as usize)),
            change: |r| r.messages[0].content = "x".repeat(MAX_MODEL_LEN as usize),
            wanted: too_long,
        },
        Row { json: json!({}), change: |_| (), wanted: no_worker },
        Row {
            json: json!({"messages": [{"role": "developer", "content": "x"}]}),
            change: |r| r.messages[0].role = "developer".into(),
            wanted: no_worker,
        },
    ]
}

async fn chat_status(site: &Site, request: v1::ChatRequest) -> Status {
    let mut events = match site.grpc.clone().chat(request).await {
        Ok(response) => response.into_inner(),
        Err(status) => return status,
    };
    loop {
        match events.message().await {
            Ok(Some(_)) => {}
            Ok(None) => return Status::ok("complete"),
            Err(status) => return status,
        }
    }
}

#[tokio::test]
async fn both_protocols_refuse_alike() {
    let site = Site::start().await;
    for row in numbers().into_iter().chain(contents()) {
        let (status, code, grpc_code) = row.wanted;
        let mut body = chat_body();
        for (name, value) in row.json.as_object().unwrap() {
            body[name] = value.clone();
        }
        for stream in [false, true] {
            body["stream"] = stream.into();
            let reply = site.post("/v1/chat/completions", &body).await;
            let shown: String = row.json.to_string().chars().take(80).collect();
            assert_eq!(reply.status, status, "{shown}: {}", reply.body);
            assert_eq!(reply.body["error"]["code"], code, "{shown}: {}", reply.body);
            assert_eq!(reply.headers.contains_key("retry-after"), status == 503, "{shown}");
        }
        let mut request = chat_message();
        (row.change)(&mut request);
        let refused = chat_status(&site, request).await;
        assert_eq!(refused.code(), grpc_code, "{}: {refused:?}", row.json);
        let details = refused.get_error_details();
        assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some(code));
        assert_eq!(details.retry_info().is_some(), status == 503, "{}", row.json);
    }
}

#[tokio::test]
async fn completions_refuse_alike() {
    use v1::complete_request::Prompt;
    let site = Site::start().await;
    let ids = |ids: Vec<u32>| Some(Prompt::TokenIds(v1::TokenIds { ids }));
    for (json, prompt, code) in [
        (json!(null), None, "invalid_value"),
        (json!([]), ids(vec![]), "invalid_value"),
        (json!([1, 1 << 20]), ids(vec![1, 1 << 20]), "invalid_value"),
        (json!("x".repeat(100_000)), Some(Prompt::Text("x".repeat(100_000))), "invalid_value"),
        (json!(vec![1; 64]), ids(vec![1; 64]), "context_length_exceeded"),
    ] {
        let body = json!({"model": "tiny", "prompt": json});
        let reply = site.post("/v1/completions", &body).await;
        assert_eq!((reply.status, &reply.body["error"]["code"]), (400, &json!(code)));
        let request = v1::CompleteRequest { model: "tiny".into(), prompt, ..Default::default() };
        let refused = match site.grpc.clone().complete(request).await {
            Ok(response) => response.into_inner().message().await.unwrap_err(),
            Err(status) => status,
        };
        assert_eq!(refused.code(), Code::InvalidArgument, "{body:.80}");
        let details = refused.get_error_details();
        assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some(code));
    }
}

#[tokio::test]
async fn requests_that_no_endpoint_takes_get_openais_errors() {
    let site = Site::start().await;
    let check = |reply: Reply, status: u16, code: &str| {
        assert_eq!(reply.status, status, "{}", reply.body);
        assert_eq!(reply.body["error"]["code"], code, "{}", reply.body);
        assert!(reply.body["error"]["message"].is_string());
        assert_eq!(reply.headers["content-type"], "application/json");
        assert!(reply.headers.contains_key("x-request-id"));
    };
    check(site.get("/v2/chat").await, 404, "not_found");
    check(site.get("/v1/models/other").await, 404, "not_found");
    check(site.get("/v1/chat/completions").await, 405, "method_not_allowed");
    check(site.post("/v1/models", &json!({})).await, 405, "method_not_allowed");
    let typed = |kind| site.request("POST", "/v1/completions").header("content-type", kind);
    check(site.send(typed("text/plain"), "{}").await, 415, "unsupported_media_type");
    let zipped = typed("application/json").header("content-encoding", "gzip");
    check(site.send(zipped, "{}").await, 415, "unsupported_media_type");
    let json = || typed("application/json; charset=utf-8");
    check(site.send(json(), "{").await, 400, "invalid_value");
    check(site.send(json(), "[".repeat(MAX_BODY)).await, 400, "invalid_value");
    check(site.send(json(), " ".repeat(MAX_BODY + 1)).await, 413, "request_too_large");
    let rebound = site.request("GET", "/v1/models").header("host", "evil.com");
    check(site.send(rebound, "").await, 403, "forbidden");
}

#[tokio::test]
async fn a_grpc_message_over_the_limit_is_out_of_range() {
    let site = Site::start().await;
    let mut request = chat_message();
    request.messages[0].content = "x".repeat(MAX_BODY);
    assert_eq!(chat_status(&site, request).await.code(), Code::OutOfRange);
}

#[tokio::test]
async fn what_needs_no_worker_is_answered_without_one() {
    let site = Site::start().await;
    let models = site.get("/v1/models").await.body;
    assert_eq!(models["data"][0]["id"], "tiny");
    assert_eq!(models["data"][0]["chat_template"], "gguf metadata");
    assert_eq!(site.get("/v1/models/tiny").await.body, models["data"][0]);
    let reply = site.post("/tokenize", &json!({"prompt": "hello"})).await;
    assert_eq!(reply.body["count"], 1, "{}", reply.body);
    assert_eq!(reply.body["max_model_len"], MAX_MODEL_LEN);
    let tokens = reply.body["tokens"].clone();
    let reply = site.post("/detokenize", &json!({"tokens": tokens})).await;
    assert_eq!(reply.body, json!({"prompt": "hello"}));
    let reply = site.post("/detokenize", &json!({"tokens": [1 << 20]})).await;
    assert_eq!((reply.status, &reply.body["error"]["code"]), (400, &json!("invalid_value")));
    let mut grpc = site.grpc.clone();
    let request = v1::TokenizeRequest { text: Some("hello".into()), ..Default::default() };
    let response = grpc.tokenize(request).await.unwrap().into_inner();
    assert_eq!(json!(response.token_ids), tokens);
    let empty = grpc.tokenize(v1::TokenizeRequest::default()).await.unwrap_err();
    assert_eq!(empty.code(), Code::InvalidArgument);
    let models = grpc.list_models(v1::ListModelsRequest {}).await.unwrap().into_inner();
    assert_eq!(models.models[0].id, "tiny");
    assert_eq!(site.get("/live").await.status, 200);
    assert!(site.get("/version").await.body["version"].is_string());
    let metrics = site.get("/metrics").await;
    let text = metrics.body.as_str().unwrap();
    assert!(text.contains("llama_mesh_num_requests_running"), "{text}");
    assert!(!text.contains("hello"), "no prompt in metrics");
    let bad = json!({"model": "tiny", "prompt": "x", "n": 0});
    assert_eq!(site.post("/v1/completions", &bad).await.status, 400);
    let counted = "llama_mesh_request_errors_total{model_name=\"tiny\",code=\"invalid_value\"} 1";
    let metrics = site.get("/metrics").await;
    assert!(metrics.body.as_str().unwrap().contains(counted), "{}", metrics.body);
}

#[tokio::test]
async fn without_a_worker_nothing_is_ready() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    let site = Site::start().await;
    for path in ["/health", "/ready"] {
        let reply = site.get(path).await;
        assert_eq!((reply.status, &reply.body["ready"]), (503, &json!(false)), "{path}");
        assert!(!reply.body["reason"].as_str().unwrap().is_empty());
        assert!(reply.headers.contains_key("retry-after"));
    }
    let channel = Channel::from_shared(format!("http://{}", site.http)).unwrap().connect_lazy();
    let mut health = HealthClient::new(channel);
    let check = |service: &str| HealthCheckRequest { service: service.into() };
    let status = health.check(check("llama_mesh.v1.Inference")).await.unwrap().into_inner();
    assert_eq!(status.status(), tonic_health::ServingStatus::NotServing.into());
    assert_eq!(health.check(check("other")).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn the_same_answer_comes_whole_in_events_and_over_grpc() {
    let site = Site::start_ready().await;
    let mut body = chat_body();
    body["seed"] = 7.into();
    let whole = site.post("/v1/chat/completions", &body).await;
    assert_eq!(whole.status, 200, "{}", whole.body);
    assert!(whole.headers["server-timing"].to_str().unwrap().contains("ttft;dur="));
    let choice = &whole.body["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(whole.body["usage"]["completion_tokens"], 4);
    let text = choice["message"]["content"].as_str().unwrap();

    body["stream"] = true.into();
    let streamed = site.post("/v1/chat/completions", &body).await;
    assert_eq!(streamed.headers["content-type"], "text/event-stream");
    let events = streamed.body.as_str().unwrap();
    assert!(events.ends_with("data: [DONE]\n\n"), "{events}");
    let contents = events
        .split("\n\n")
        .filter_map(|event| event.strip_prefix("data: {"))
        .map(|event| serde_json::from_str::<Value>(&format!("{{{event}")).unwrap())
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned));
    assert_eq!(contents.collect::<String>(), text);

    let mut request = chat_message();
    option(&mut request).seed = Some(7);
    let mut events = site.grpc.clone().chat(request).await.unwrap().into_inner();
    let (mut said, mut reason, mut usage) = (String::new(), None, None);
    while let Some(event) = events.message().await.unwrap() {
        assert!(usage.is_none(), "usage is on the last message");
        let delta = event.delta.unwrap_or_default();
        said.push_str(&delta.text);
        reason = delta.finish_reason.or(reason);
        usage = event.usage;
    }
    assert_eq!((said.as_str(), reason.as_deref()), (text, Some("length")));
    assert_eq!(usage.unwrap().completion_tokens, 4);
}

#[tokio::test]
async fn a_drain_refuses_new_requests_and_closes_the_port() {
    let site = Site::start_ready().await;
    assert_eq!(site.get("/health").await.status, 200);
    site.shutdown.begin();
    // Either the port is closed already, or the gateway says that it drains.
    let request = site.request("GET", "/ready").body(Full::default()).unwrap();
    if let Ok(response) = site.client.request(request).await {
        assert_eq!(response.status(), 503);
    }
    let closed = async { while tokio::net::TcpStream::connect(site.http).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, closed).await.expect("closes in time");
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let config = GatewayConfig {
        listen: ListenConfig { http: address, ..Default::default() },
        ..Default::default()
    };
    let error = App::build(config, &Shutdown::new(PATIENCE)).await.unwrap_err();
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}
