//! From a chat request to the chips and back, and how that ends.

use std::time::Instant;

use integration_tests::http::Client;
use integration_tests::sandbox::{Layout, PATIENCE, Process, Sandbox, pause};
use proto::v1::worker_client::WorkerClient;
use proto::v1::{DescribeRequest, DescribeResponse};
use serde_json::{Value, json};
use tonic::transport::Endpoint;

use crate::place::{ON_T3K, environment, model};

/// The worker's own ends, in the gateway's words.
const RUNNING: &str = "llama_mesh_num_requests_running";

fn start(scratch: &tempfile::TempDir) -> Sandbox {
    let model = model(scratch.path()).display().to_string();
    let metrics = ["--metrics-listen", "127.0.0.1:0"];
    let mut layout = Layout::default().model(&model).worker(&ON_T3K).worker(&metrics);
    for (name, value) in environment("t3k.yaml", scratch.path()) {
        layout = layout.env(&name, &value);
    }
    layout.start()
}

fn request(max_tokens: usize, further: &Value) -> Value {
    let mut body = json!({
        "model": "Tiny-Instruct",
        "messages": [{ "role": "user", "content": "How many chips are you?" }],
        "max_tokens": max_tokens, "ignore_eos": true, "return_token_ids": true,
    });
    for (key, value) in further.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body
}

async fn answer(client: &Client, body: &Value) -> Value {
    let reply = client.post("/v1/chat/completions", body).await.expect("answers");
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    reply.json()
}

fn tokens(reply: &Value) -> &Vec<Value> {
    reply["choices"][0]["token_ids"].as_array().expect("token ids were asked for")
}

/// What the worker's own endpoint shows, once `wanted` is in it.
async fn metrics_with(worker: &mut Process, wanted: &str) -> String {
    let line = worker.line_starting_with("listening ");
    let address = line.rsplit_once("metrics=").expect("it says where").1;
    let client = Client::new(address.parse().expect("an address"));
    let started = Instant::now();
    loop {
        let reply = client.get("/metrics").await.expect("answers");
        let metrics = String::from_utf8_lossy(&reply.body).into_owned();
        if metrics.contains(wanted) {
            return metrics;
        }
        assert!(started.elapsed() < PATIENCE, "{wanted} is not in {metrics}");
        pause();
    }
}

/// The first sample of a metric.
fn sample(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find(|line| line.starts_with(name)).expect(name);
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
}

async fn describe(socket: &std::path::Path) -> DescribeResponse {
    let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()));
    let channel = endpoint.expect("an address").connect().await.expect("it listens");
    let described = WorkerClient::new(channel).describe(DescribeRequest {}).await;
    described.expect("it is ready").into_inner()
}

#[test]
fn a_worker_says_what_it_runs_on_and_where_its_steps_go() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let mut sandbox = start(&scratch);
    let client = sandbox.client();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let described = describe(&sandbox.sockets[0]).await;
        let device = described.device.expect("a device");
        assert_eq!((device.name.as_str(), device.mesh_shape.as_slice()), ("T3K", &[1, 8][..]));
        assert_eq!(device.simulates, "");
        let rules = described.step_rules.expect("a card has rules");
        assert!(!rules.mixes_prefill_with_decode && rules.chooses);
        assert_eq!((rules.max_prefill_seqs, rules.decode_rows), (Some(1), Some(32)));

        answer(&client, &request(30, &json!({ "temperature": 0 }))).await;
        let metrics = metrics_with(&mut sandbox.workers[0], "phase=\"decode\"").await;
        assert!(sample(&metrics, "llama_mesh_worker_device_programs ") > 10.0, "{metrics}");
        assert!(sample(&metrics, "llama_mesh_worker_device_kernels ") > 10.0, "{metrics}");
        for part in ["inputs", "dispatch", "read"] {
            let labels = format!("phase=\"decode\",part=\"{part}\"");
            assert!(metrics.contains(&labels), "{labels} is not in {metrics}");
        }
    });
}

#[test]
fn a_chat_is_served_cancelled_and_drained() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let mut sandbox = start(&scratch);
    let client = sandbox.client();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        // Chosen on the chips, drawn on the chips, and drawn by the host.
        for how in [
            json!({ "temperature": 0 }),
            json!({ "temperature": 0.8, "top_k": 20 }),
            json!({ "temperature": 0.8, "seed": 7 }),
        ] {
            let reply = answer(&client, &request(12, &how)).await;
            assert_eq!(tokens(&reply).len(), 12, "{how}: {reply}");
            assert_eq!(reply["choices"][0]["finish_reason"], "length", "{reply}");
        }
        let explained = json!({ "temperature": 0, "logprobs": true, "top_logprobs": 2 });
        let reply = answer(&client, &request(3, &explained)).await;
        let content = &reply["choices"][0]["logprobs"]["content"];
        assert_eq!(content.as_array().map(Vec::len), Some(3), "{reply}");
        // A prompt of several chunks, and many answers at once.
        let long = "chips ".repeat(100);
        let messages = json!([{ "role": "user", "content": long }]);
        let many = json!({ "messages": messages, "n": 8, "temperature": 0 });
        let reply = answer(&client, &request(6, &many)).await;
        assert_eq!(reply["choices"].as_array().map(Vec::len), Some(8), "{reply}");

        // A client that leaves is forgotten.
        let body = request(900, &json!({ "stream": true, "temperature": 0 })).to_string();
        let held = client.send(client.request("POST", "/v1/chat/completions", body));
        drop(held.await.expect("accepted"));
    });
    sandbox.wait_for_metric(RUNNING, 0.0);
    sandbox.workers[0].signal("TERM");
    let status = sandbox.workers[0].wait(PATIENCE);
    assert_eq!(status.code(), Some(0), "a drained worker closes its device and ends well");
}

#[test]
fn a_killed_worker_is_replaced_on_the_same_board() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let mut sandbox = start(&scratch);
    let client = sandbox.client();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(answer(&client, &request(4, &json!({ "temperature": 0 }))));
    sandbox.workers[0].signal("KILL");
    assert!(!sandbox.workers[0].wait(PATIENCE).success());

    let model = scratch.path().join("Tiny-Instruct").display().to_string();
    let endpoint = format!("unix:{}", sandbox.sockets[0].display());
    let mut args = vec!["worker", "--model", &model, "--listen", &endpoint];
    args.extend(ON_T3K);
    let environment = environment("t3k.yaml", scratch.path());
    let environment: Vec<_> = environment.iter().map(|(k, v)| (&**k, &**v)).collect();
    // The lock of the killed one is nobody's, and its weights are cached.
    let mut worker = Process::start(&args, &environment);
    worker.line_starting_with("ready ");
    runtime.block_on(async {
        let body = request(4, &json!({ "temperature": 0 }));
        let started = Instant::now();
        loop {
            let reply = client.post("/v1/chat/completions", &body).await.expect("answers");
            if reply.status == 200 {
                assert_eq!(tokens(&reply.json()).len(), 4);
                break;
            }
            assert!(started.elapsed() < PATIENCE, "the gateway does not find it again");
            pause();
        }
    });
}
