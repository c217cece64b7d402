//! Describe, the plain form, and draining.

use super::*;
use crate::load_stage::LoadStage;

use tonic::Code;

fn request(generation: wire::Generation) -> wire::GenerateRequest {
    wire::GenerateRequest { request_id: "r".into(), generation: Some(generation) }
}

async fn collect(
    mut stream: Streaming<wire::GenerateResponse>,
) -> Result<Vec<wire::GenerateResponse>, Status> {
    let mut responses = Vec::new();
    while let Some(response) = stream.message().await? {
        responses.push(response);
    }
    Ok(responses)
}

#[tokio::test]
async fn nothing_is_taken_before_the_model_is_loaded() {
    let worker = Worker::start().await;
    let mut client = worker.client.clone();
    let loading = client.describe(wire::DescribeRequest {}).await.unwrap_err();
    assert_eq!(loading.message(), "the model is loading");
    let compiling = LoadStage::Compiling { done: 3, total: 7, programs: 120 };
    worker.service.set_load_stage(compiling);
    let describe = client.describe(wire::DescribeRequest {}).await.unwrap_err();
    assert!(describe.message().contains("compiling, step 3 of 7, 120 programs"), "{describe}");
    let weights = llama::LoadProgress { done_bytes: 2, total_bytes: 5 };
    worker.service.set_load_stage(LoadStage::Weights(weights));
    let describe = client.describe(wire::DescribeRequest {}).await.unwrap_err();
    assert_eq!(describe.code(), Code::Unavailable);
    assert!(describe.message().contains("40 %"), "{describe}");
    let generate = client.generate(request(counting_from(11, 1))).await.unwrap_err();
    assert_eq!(generate.code(), Code::Unavailable);
    worker.make_ready();
    let described = client.describe(wire::DescribeRequest {}).await.unwrap().into_inner();
    assert_eq!(described.model.unwrap().name, "tiny");
}

#[tokio::test]
async fn generate_streams_tokens_and_one_finish() {
    let worker = Worker::ready().await;
    let mut client = worker.client.clone();
    let generation =
        wire::Generation { logprobs: Some(0), prompt_logprobs: Some(1), ..counting_from(11, 3) };
    let stream = client.generate(request(generation)).await.unwrap().into_inner();
    let responses = collect(stream).await.unwrap();
    let tokens: Vec<u32> = responses.iter().flat_map(|r| r.token_ids.clone()).collect();
    assert_eq!(tokens, [12, 13, 14]);
    let finishes: Vec<_> = responses.iter().filter_map(|r| r.finish.clone()).collect();
    assert_eq!(finishes.len(), 1);
    assert!(responses.last().unwrap().finish.is_some());
    assert_eq!(responses.iter().map(|r| r.logprobs.len()).sum::<usize>(), 3);
    let of_prompt = responses.iter().filter_map(|r| r.prompt_logprobs.as_ref());
    assert_eq!(of_prompt.map(|p| p.tokens.len()).sum::<usize>(), 1);
}

#[tokio::test]
async fn generate_refuses_what_the_stream_rejects() {
    let worker = Worker::ready().await;
    let mut client = worker.client.clone();
    let none = client.generate(wire::GenerateRequest::default()).await.unwrap_err();
    assert_eq!(none.code(), Code::InvalidArgument);
    let beyond = client.generate(request(counting_from(256, 1))).await.unwrap_err();
    assert_eq!(beyond.code(), Code::InvalidArgument);
    worker.gate.allow(0);
    let mut held = Vec::new();
    for _ in 0..SLOTS {
        held.push(client.generate(request(counting_from(11, 1))).await.unwrap());
    }
    let full = client.generate(request(counting_from(11, 1))).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn dropping_the_stream_cancels_the_request() {
    let worker = Worker::ready().await;
    let mut client = worker.client.clone();
    let generation = wire::Generation { ignore_eos: true, ..counting_from(11, 500) };
    let mut stream = client.generate(request(generation)).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    drop(stream);
    worker.idle().await;
    let mut gateway = worker.connect("g", 1).await;
    gateway.credit(SLOTS).await;
}

#[tokio::test]
async fn the_callers_deadline_ends_the_request() {
    let worker = Worker::ready().await;
    let mut client = worker.client.clone();
    worker.gate.allow(0);
    let mut call = tonic::Request::new(request(counting_from(11, 100)));
    let timeout = Duration::from_millis(200);
    call.set_timeout(timeout);
    let begun = tokio::time::Instant::now();
    let stream = client.generate(call).await.unwrap().into_inner();
    // The engine is held inside its first step until the deadline is over.
    tokio::time::sleep_until(begun + timeout * 2).await;
    worker.gate.allow(u64::MAX);
    let ended = collect(stream).await.unwrap_err();
    assert_eq!(ended.code(), Code::DeadlineExceeded, "{ended}");
    worker.idle().await;
}

#[tokio::test]
async fn draining_tells_gateways_refuses_the_new_and_cuts_the_slow() {
    let worker = Worker::ready().await;
    let mut client = worker.client.clone();
    let mut gateway = worker.connect("g", 1).await;
    gateway.credit(SLOTS).await;
    worker.gate.allow(1);
    gateway.admit(1, counting_from(11, 200)).await;
    gateway.step().await;
    let mut drainer = client.clone();
    let drained = drainer.drain(wire::DrainRequest { grace_ms: Some(0) });
    let told = async {
        gateway.until(|body| matches!(body, Body::Draining(_)).then_some(())).await;
        gateway.credit(0).await;
        gateway.admit(2, counting_from(11, 1)).await;
        assert_eq!(gateway.rejected().await.code, i32::from(Code::Unavailable));
        let refused = client.generate(request(counting_from(11, 1))).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
        // One step for each that is heard of, so that 200 take much longer than
        // the grace of none.
        loop {
            worker.gate.allow(1);
            if let Some(finish) = gateway.step().await.finishes.first() {
                break finish.reason();
            }
        }
    };
    let (drained, reason) = tokio::join!(drained, told);
    assert_eq!(drained.unwrap().into_inner().cancelled, 1);
    assert_eq!(reason, wire::FinishReason::Cancelled);
}

#[tokio::test]
async fn a_drain_with_nothing_left_returns_at_once() {
    let worker = Worker::ready().await;
    let mut client = worker.client.clone();
    let answer = client.drain(wire::DrainRequest { grace_ms: None });
    let answer = tokio::time::timeout(LONG / 2, answer).await.expect("it waits for nothing");
    assert_eq!(answer.unwrap().into_inner().cancelled, 0);
}

#[tokio::test]
async fn a_stopping_process_ends_idle_streams_well() {
    let worker = Worker::ready().await;
    let mut gateway = worker.connect("g", 1).await;
    gateway.credit(SLOTS).await;
    worker.shutdown.begin();
    gateway.end().await.expect("an end, not an error");
}
