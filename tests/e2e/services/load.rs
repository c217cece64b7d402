//! Many streams at once: none lost, none mixed, everything free at the end.

use std::collections::HashMap;

use integration_tests::http::{Client, Reply};
use integration_tests::sandbox::Sandbox;
use serde_json::{Value, json};

const STREAMS: usize = 64;
const TOKENS: usize = 24;

fn request(model: &str, index: usize) -> Value {
    json!({
        "model": model,
        "messages": [{ "role": "user", "content": format!("Tell me about the number {index}.") }],
        "stream": true,
        "stream_options": { "include_usage": true },
        "seed": index,
        "temperature": 0.8,
        "max_tokens": TOKENS,
        "ignore_eos": true,
    })
}

/// Text and token count of a stream that must be complete.
fn answer(reply: &Reply) -> (String, u64) {
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    let events = reply.events();
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    let (mut text, mut tokens, mut finishes) = (String::new(), 0, 0);
    for event in &events[..events.len() - 1] {
        let event: Value = serde_json::from_str(event).expect("events are JSON");
        if let Some(more) = event.pointer("/choices/0/delta/content").and_then(Value::as_str) {
            text.push_str(more);
        }
        finishes +=
            usize::from(event.pointer("/choices/0/finish_reason").is_some_and(Value::is_string));
        if let Some(count) = event.pointer("/usage/completion_tokens").and_then(Value::as_u64) {
            tokens = count;
        }
    }
    assert_eq!(finishes, 1, "exactly one end");
    (text, tokens)
}

async fn model(client: &Client) -> String {
    let models = client.get("/v1/models").await.expect("answers").json();
    models.pointer("/data/0/id").and_then(Value::as_str).expect("one model").to_owned()
}

#[test]
fn sixty_four_streams_are_each_answered_as_if_alone() {
    let sandbox = Sandbox::start();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let client = sandbox.client();
        let model = model(&client).await;
        // A few alone, as the measure for the many.
        let mut alone = HashMap::new();
        for index in [0, 21, 42, 63] {
            let reply = client.post("/v1/chat/completions", &request(&model, index)).await;
            alone.insert(index, answer(&reply.expect("answers")).0);
        }
        let streams = (0..STREAMS).map(|index| {
            let request = request(&model, index);
            async move { client.post("/v1/chat/completions", &request).await }
        });
        let mut texts = Vec::new();
        for reply in futures_join(streams).await {
            let (text, tokens) = answer(&reply.expect("not lost"));
            assert_eq!(tokens, TOKENS as u64);
            texts.push(text);
        }
        for (index, text) in alone {
            assert_eq!(texts[index], text, "stream {index} differs from the same request alone");
        }
    });
    sandbox.wait_for_metric("llama_mesh_num_requests_running", 0.0);
    sandbox.wait_for_metric("llama_mesh_num_requests_waiting", 0.0);
    sandbox.wait_for_metric("llama_mesh_kv_cache_usage_perc", 0.0);
}

async fn futures_join<F>(futures: impl Iterator<Item = F>) -> Vec<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let mut set = tokio::task::JoinSet::new();
    let mut count = 0;
    for (index, future) in futures.enumerate() {
        set.spawn(async move { (index, future.await) });
        count += 1;
    }
    let mut results: Vec<Option<F::Output>> = (0..count).map(|_| None).collect();
    while let Some(joined) = set.join_next().await {
        let (index, output) = joined.expect("no stream panics");
        results[index] = Some(output);
    }
    results.into_iter().flatten().collect()
}

#[test]
fn a_client_that_leaves_frees_its_slot() {
    let sandbox = Sandbox::start();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (client, model) = runtime.block_on(async {
        let client = sandbox.client();
        (client, model(&client).await)
    });
    for stream in [true, false] {
        let mut body = request(&model, 1);
        body["max_tokens"] = json!(4000);
        body["stream"] = json!(stream);
        if !stream {
            body.as_object_mut().expect("an object").remove("stream_options");
        }
        runtime.block_on(async {
            let send =
                client.send(client.request("POST", "/v1/chat/completions", body.to_string()));
            tokio::select! {
                reply = send => drop(reply.expect("accepted")),
                () = running(&sandbox) => {}
            }
        });
        sandbox.wait_for_metric("llama_mesh_num_requests_running", 0.0);
        sandbox.wait_for_metric("llama_mesh_kv_cache_usage_perc", 0.0);
    }
}

/// Resolves when a request is running.
async fn running(sandbox: &Sandbox) {
    let client = sandbox.client();
    loop {
        let metrics = client.get("/metrics").await.expect("answers");
        let text = String::from_utf8_lossy(&metrics.body).into_owned();
        let is_running = text.lines().any(|line| {
            line.starts_with("llama_mesh_num_requests_running") && !line.ends_with(" 0")
        });
        if is_running {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
