//! SIGTERM: not ready, drain, exit 0; a stuck client cannot delay it.

use std::time::Duration;

use integration_tests::sandbox::{Layout, PATIENCE, Sandbox};
use serde_json::{Value, json};

async fn model(sandbox: &Sandbox) -> Value {
    let models = sandbox.client().get("/v1/models").await.expect("answers").json();
    models.pointer("/data/0/id").expect("one model").clone()
}

#[test]
fn a_running_answer_is_finished_before_the_exit() {
    let mut sandbox = Sandbox::start();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let client = sandbox.client();
    let reply = runtime.block_on(async {
        let body = json!({
            "model": model(&sandbox).await,
            "messages": [{ "role": "user", "content": "Count." }],
            "stream": true, "max_tokens": 60, "ignore_eos": true,
        });
        let reply = client
            .send(client.request("POST", "/v1/chat/completions", body.to_string()))
            .await
            .expect("accepted");
        sandbox.gateway.signal("TERM");
        integration_tests::http::whole(reply).await.expect("complete")
    });
    assert_eq!(reply.events().last().map(String::as_str), Some("[DONE]"));
    assert_eq!(sandbox.gateway.wait(PATIENCE).code(), Some(0));
    sandbox.workers[0].signal("TERM");
    assert_eq!(sandbox.workers[0].wait(PATIENCE).code(), Some(0));
    assert!(!sandbox.sockets[0].exists(), "the socket is removed");
}

#[test]
fn a_stuck_client_cannot_delay_the_exit_past_the_grace() {
    let mut sandbox = Layout::default().gateway(&["--grace-seconds", "2"]).start();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let client = sandbox.client();
    let _unread = runtime.block_on(async {
        let body = json!({
            "model": model(&sandbox).await,
            "messages": [{ "role": "user", "content": "Count." }],
            "stream": true, "max_tokens": 7000, "ignore_eos": true,
        });
        let request = client.request("POST", "/v1/chat/completions", body.to_string());
        client.send(request).await.expect("accepted")
    });
    sandbox.gateway.signal("TERM");
    assert_eq!(sandbox.gateway.wait(Duration::from_secs(10)).code(), Some(0));
}

#[test]
fn a_draining_gateway_is_not_ready_and_takes_nothing_new() {
    let sandbox = Layout::default().gateway(&["--grace-seconds", "5"]).start();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let client = sandbox.client();
    runtime.block_on(async {
        let body = json!({
            "model": model(&sandbox).await,
            "messages": [{ "role": "user", "content": "Count." }],
            "stream": true, "max_tokens": 2000, "ignore_eos": true,
        });
        let held = client
            .send(client.request("POST", "/v1/chat/completions", body.to_string()))
            .await
            .expect("accepted");
        sandbox.gateway.signal("TERM");
        // Either the listener is closed already or it says that it drains.
        loop {
            match client.get("/ready").await {
                Ok(reply) if reply.status == 200 => tokio::task::yield_now().await,
                Ok(reply) => break assert_eq!(reply.status, 503),
                Err(_) => break,
            }
        }
        if let Ok(reply) = client.post("/v1/chat/completions", &body).await {
            assert_eq!(reply.status, 503);
            assert!(reply.headers.contains_key("retry-after"));
        }
        drop(held);
    });
}
