//! From a chat request to the chips and back, and how that ends.

use std::time::Duration;

use integration_tests::http::Client;
use integration_tests::sandbox::{Layout, PATIENCE, Process, Sandbox};
use serde_json::{Value, json};

use crate::place::{ON_T3K, environment, model};

/// The worker's own ends, in the gateway's words.
const RUNNING: &str = "llama_mesh_num_requests_running";

fn start(scratch: &tempfile::TempDir) -> Sandbox {
    let model = model(scratch.path()).display().to_string();
    let mut layout = Layout::default().model(&model).worker(&ON_T3K);
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
        let started = std::time::Instant::now();
        loop {
            let reply = client.post("/v1/chat/completions", &body).await.expect("answers");
            if reply.status == 200 {
                assert_eq!(tokens(&reply.json()).len(), 4);
                break;
            }
            assert!(started.elapsed() < PATIENCE, "the gateway does not find it again");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}
