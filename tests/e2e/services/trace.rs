//! One request is one trace, over both processes.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use integration_tests::otlp::{Received, Receiver};
use integration_tests::sandbox::Layout;
use serde_json::json;

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT_ID: &str = "00f067aa0ba902b7";
const SPANS: [&str; 4] = ["tokenize", "queue", "prefill", "decode"];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn one_request_is_one_tree_over_both_processes() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (receiver, address) = runtime.block_on(Receiver::start());
    let endpoint = format!("http://{address}");
    let sandbox = Layout::default().env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint).start();
    let client = sandbox.client();
    runtime.block_on(async {
        let model = client.get("/v1/models").await.expect("answers").json();
        let model = model.pointer("/data/0/id").expect("one model").clone();
        let body = json!({
            "model": model,
            "messages": [{ "role": "user", "content": "Say hello." }],
            "max_tokens": 8,
        });
        let mut request = client.request("POST", "/v1/chat/completions", body.to_string());
        let traceparent = format!("00-{TRACE_ID}-{PARENT_ID}-01");
        request.headers_mut().insert("traceparent", traceparent.parse().expect("a header"));
        let reply = client.send(request).await.expect("answers");
        assert_eq!(reply.status(), 200);
        integration_tests::http::whole(reply).await.expect("complete");
    });
    let spans = wait_for_trace(&receiver);
    assert_tree(&spans);
    let services: HashSet<&str> = spans.iter().map(|received| &*received.service).collect();
    assert_eq!(services.len(), 2, "both services: {services:?}");
    assert_attributes(&spans);
}

fn wait_for_trace(receiver: &Receiver) -> Vec<Received> {
    let start = Instant::now();
    loop {
        let mut spans = receiver.spans();
        spans.retain(|received| hex(&received.span.trace_id) == TRACE_ID);
        let complete =
            SPANS.iter().all(|name| {
                spans.iter().any(|received| received.span.name.to_lowercase().contains(name))
            }) && spans.iter().any(|received| hex(&received.span.parent_span_id) == PARENT_ID);
        if complete {
            return spans;
        }
        let names: Vec<&str> = spans.iter().map(|received| &*received.span.name).collect();
        assert!(start.elapsed() < Duration::from_secs(20), "only {names:?} arrived");
        integration_tests::sandbox::pause();
    }
}

fn assert_tree(spans: &[Received]) {
    let names: HashMap<String, &str> =
        spans.iter().map(|received| (hex(&received.span.span_id), &*received.span.name)).collect();
    assert_eq!(names.len(), spans.len(), "span ids are unique");
    let mut roots = 0;
    for received in spans {
        let parent = hex(&received.span.parent_span_id);
        if parent == PARENT_ID {
            roots += 1;
        } else {
            assert!(
                names.contains_key(&parent),
                "{} has no parent in the trace",
                received.span.name
            );
        }
    }
    assert_eq!(roots, 1, "one tree below the caller's span: {names:?}");
}

fn assert_attributes(spans: &[Received]) {
    let keys: HashSet<&str> = spans
        .iter()
        .flat_map(|received| &received.span.attributes)
        .map(|attribute| &*attribute.key)
        .collect();
    for key in [
        "gen_ai.request.model",
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.output_tokens",
        "gen_ai.response.finish_reasons",
    ] {
        assert!(keys.contains(key), "{key} is missing among {keys:?}");
    }
}
