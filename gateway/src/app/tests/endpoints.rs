//! What evaluation harnesses and vLLM's clients rely on, over HTTP: the fields
//! reach the worker, and the answer has the shape that they read.

use super::*;

/// The fixture's beginning-of-text id.
fn bos() -> u32 {
    fixture::tokenizer().bos().unwrap()
}

#[tokio::test]
async fn conversations_are_tokenized_with_and_without_a_beginning() {
    let site = Site::start().await;
    let mut body = json!({"messages": [{"role": "user", "content": "hello"}]});
    let bare = site.post("/tokenize", &body).await.body;
    assert_eq!(bare["max_model_len"], MAX_MODEL_LEN);
    assert_eq!(bare["count"], bare["tokens"].as_array().unwrap().len());
    body["add_special_tokens"] = false.into();
    assert_eq!(site.post("/tokenize", &body).await.body, bare, "the template has its own");
    body["add_special_tokens"] = true.into();
    let begun = site.post("/tokenize", &body).await.body;
    let tokens = begun["tokens"].as_array().unwrap();
    assert_eq!(tokens[0], bos());
    assert_eq!(tokens[1..], bare["tokens"].as_array().unwrap()[..]);
    let request = v1::TokenizeRequest {
        messages: chat_message().messages,
        add_special_tokens: Some(true),
        ..Default::default()
    };
    let grpc = site.grpc.clone().tokenize(request).await.unwrap().into_inner();
    assert_eq!((json!(grpc.token_ids), grpc.max_model_len), (json!(tokens), MAX_MODEL_LEN));
}

#[tokio::test]
async fn a_prompt_is_scored_without_an_answer() {
    let site = Site::start_ready().await;
    let body = json!({
        "model": "tiny", "prompt": [104, 105, 106], "echo": true, "logprobs": 1, "max_tokens": 0,
        "return_tokens_as_token_ids": true,
    });
    let reply = site.post("/v1/completions", &body).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let choice = &reply.body["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("hij"), &json!("length")));
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["token_id:104", "token_id:105", "token_id:106"]));
    assert_eq!(logprobs["token_logprobs"], json!([null, -0.5, -0.5]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2]));
    assert_eq!(reply.body["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn usage_is_the_last_event_if_it_is_asked_for() {
    let site = Site::start_ready().await;
    let mut body = json!({"model": "tiny", "prompt": "hello", "max_tokens": 2, "stream": true});
    let plain = site.post("/v1/completions", &body).await.body;
    assert!(!plain.as_str().unwrap().contains("\"usage\":{"), "{plain}");
    body["stream_options"] = json!({"include_usage": true});
    let events = site.post("/v1/completions", &body).await.body;
    let events: Vec<&str> = events.as_str().unwrap().trim_end().split("\n\n").collect();
    let [.., last, "data: [DONE]"] = events.as_slice() else { panic!("{events:?}") };
    let last: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 2);
}

#[tokio::test]
async fn what_a_client_asks_of_the_sampler_reaches_the_worker() {
    let site = Site::start_ready().await;
    let mut body = chat_body();
    for (name, value) in [
        ("min_p", json!(0.25)),
        ("top_k", json!(7)),
        ("top_p", json!(0.5)),
        ("logit_bias", json!({"104": -1.5, "105": 2})),
        ("seed", json!(9)),
    ] {
        body[name] = value;
    }
    let reply = site.post("/v1/chat/completions", &body).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let seen = |log: &crate::worker_pool::fake_worker::Log| {
        let generation = log.admits[0].generation.clone().unwrap();
        generation.sampling.unwrap()
    };
    let sampling = site.workers[0].wait_for(|log| !log.admits.is_empty(), seen).await;
    assert_eq!((sampling.min_p, sampling.top_p), (Some(0.25), Some(0.5)));
    assert_eq!((sampling.top_k, sampling.seed), (Some(7), 9));
    let bias: Vec<(u32, f32)> =
        sampling.logit_bias.iter().map(|bias| (bias.token_id, bias.bias)).collect();
    assert_eq!(bias, [(104, -1.5), (105, 2.0)]);
}
