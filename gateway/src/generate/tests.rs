//! The whole way, from a request to a worker on a socket and back to text.

use std::time::Duration;

use futures::StreamExt as _;

use super::*;
use crate::request::GenerateRequest;
use crate::text::tokenizer::fixture;
use crate::text_stream::{Delta, FinishReason, StopReason, TextEvent, Usage};
use crate::worker_pool::fake_worker::{FakeWorker, Script, token_at};

struct Harness {
    spine: Spine,
    workers: Vec<FakeWorker>,
    shutdown: Shutdown,
}

fn text_model() -> Arc<TextModel> {
    Arc::new(TextModel {
        tokenizer: Arc::new(fixture::tokenizer()),
        chat_format: None,
        fingerprint: "same".into(),
    })
}

impl Harness {
    async fn start(scripts: Vec<Script>) -> Self {
        let harness = Self::unready(scripts);
        let ready = async {
            while !harness.spine.readiness().ready {
                tokio::task::yield_now().await;
            }
            // The stream is open; its first credit may still be under way.
        };
        tokio::time::timeout(Duration::from_secs(20), ready).await.expect("a worker gets ready");
        harness
    }

    fn unready(scripts: Vec<Script>) -> Self {
        let shutdown = Shutdown::new(Duration::from_secs(5));
        let workers: Vec<_> =
            scripts.into_iter().map(|script| FakeWorker::start(script, &shutdown)).collect();
        let endpoints = workers.iter().map(|worker| worker.endpoint.clone()).collect();
        let text = text_model();
        let config = SpineConfig {
            limits: RequestLimits::for_model("tiny", &text, 8192),
            pool: PoolConfig {
                min_backoff: Duration::from_millis(1),
                max_backoff: Duration::from_millis(5),
                ..PoolConfig::new(endpoints, "test")
            },
            scheduler: SchedulerConfig {
                worker_wait: Duration::from_millis(500),
                ..SchedulerConfig::default()
            },
            tokenizer_fingerprint: Some("same".into()),
            max_tokenizing: 2,
        };
        let spine = Spine::start(config, text, Arc::new(Metrics::new("tiny")), &shutdown);
        Self { spine, workers, shutdown }
    }

    async fn generate(&self, request: GenerateRequest) -> Result<TextStream, GatewayError> {
        let request = ValidRequest::new(request, self.spine.limits())?;
        let ctx = RequestContext {
            request_id: "test".into(),
            span: tracing::Span::none(),
            received: Instant::now(),
        };
        self.spine.generate(request, ctx).await
    }

    async fn answer(&self, request: GenerateRequest) -> Result<Answered, GatewayError> {
        collect(self.generate(request).await?).await
    }

    /// Ends everything, and finds that nothing panicked.
    async fn finish(self) {
        self.shutdown.cancel();
        self.shutdown.drain(Duration::from_secs(5)).await;
        assert_eq!(self.shutdown.num_panics(), 0);
    }
}

#[derive(Debug, Default)]
struct Answered {
    /// Deltas of each answer, merged; prompts apart.
    answers: Vec<Delta>,
    prompts: Vec<Delta>,
    usage: Usage,
}

async fn collect(mut stream: TextStream) -> Result<Answered, GatewayError> {
    let mut answered = Answered::default();
    let mut is_done = false;
    loop {
        let next = tokio::time::timeout(Duration::from_secs(20), stream.next()).await;
        let Some(event) = next.expect("in time") else { break };
        assert!(!is_done, "an event after the last one");
        match event? {
            TextEvent::Done(usage) => {
                answered.usage = usage;
                is_done = true;
            }
            TextEvent::Delta(delta) if delta.prompt => answered.prompts.push(delta),
            TextEvent::Delta(delta) => {
                let index = delta.choice as usize;
                if answered.answers.len() <= index {
                    answered.answers.resize_with(index + 1, Delta::default);
                }
                let answer = &mut answered.answers[index];
                assert!(answer.finish.is_none(), "a delta after the finish");
                answer.choice = delta.choice;
                answer.text.push_str(&delta.text);
                answer.token_ids.extend(delta.token_ids);
                answer.logprobs.extend(delta.logprobs);
                answer.finish = delta.finish;
            }
        }
    }
    assert!(is_done, "ended without Done");
    Ok(answered)
}

fn request(max_tokens: i64) -> GenerateRequest {
    GenerateRequest {
        model: "tiny".into(),
        prompts: vec![PromptInput::TokenIds(vec![1, 2, 3])],
        max_tokens: Some(max_tokens),
        seed: Some(7),
        ..Default::default()
    }
}

fn expected(seed: u64, num_tokens: u64) -> String {
    let tokens: Vec<u32> = (0..num_tokens).map(|i| token_at(&[1, 2, 3], seed, i)).collect();
    fixture::tokenizer().decode(&tokens, SpecialTokens::Skip)
}

#[tokio::test]
async fn an_answer_is_the_workers_tokens_as_text() {
    let harness = Harness::start(vec![Script::default()]).await;
    let answered = harness.answer(request(10)).await.unwrap();
    assert_eq!(answered.answers[0].text, expected(7, 10));
    assert_eq!(answered.answers[0].token_ids.len(), 10);
    let finish = answered.answers[0].finish.as_ref().unwrap();
    assert_eq!((finish.reason, &finish.stop_reason), (FinishReason::Length, &None));
    let usage = answered.usage;
    assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens), (3, 10, 1));
    let metrics = harness.spine.metrics().render();
    assert!(metrics.contains("llama_mesh_generation_tokens_total{model_name=\"tiny\"} 10"));
    harness.finish().await;
}

#[tokio::test]
async fn a_stream_that_breaks_anywhere_is_resumed_without_gap_or_repeat() {
    for at in 1..8 {
        let script = Script { drop_after: vec![at], ..Script::default() };
        let harness = Harness::start(vec![script]).await;
        let asked = GenerateRequest { logprobs: Some(1), ..request(8) };
        let answered = harness.answer(asked).await.unwrap();
        assert_eq!(answered.answers[0].text, expected(7, 8), "broken after {at}");
        assert_eq!(answered.answers[0].logprobs.len(), 8);
        assert_eq!(answered.usage.completion_tokens, 8);
        let resumed = harness.workers[0]
            .wait_for(|log| log.admits.len() == 2, |log| log.admits[1].generation.clone())
            .await;
        assert_eq!(resumed.unwrap().resume_token_ids.len(), at as usize);
        harness.finish().await;
    }
}

#[tokio::test]
async fn a_request_that_loses_two_workers_is_given_up() {
    let script = Script { drop_after: vec![1, 1], ..Script::default() };
    let harness = Harness::start(vec![script]).await;
    let error = harness.answer(request(8)).await.unwrap_err();
    assert_eq!(error, GatewayError::WorkerLost);
    assert_eq!(harness.answer(request(8)).await.unwrap().answers[0].text, expected(7, 8));
    harness.finish().await;
}

#[tokio::test]
async fn a_worker_that_talks_nonsense_is_left_for_another() {
    let spoilers: [fn(&mut v1::StepOutput); 6] = [
        |step| step.token_ids.iter_mut().for_each(|id| *id = u32::MAX),
        |step| step.token_ids.clear(),
        |step| step.token_counts.push(u32::MAX),
        |step| step.epochs.extend([1; 9]),
        |step| step.request_keys.extend_from_within(..),
        |step| step.logprobs.iter_mut().for_each(|entry| entry.logprob = f32::NAN),
    ];
    use proto::v1;
    for spoil in spoilers {
        // The lower id is preferred among equals: the bad one comes first.
        let bad = Script { spoil, ..Script::default() };
        let harness = Harness::start(vec![bad, Script::default()]).await;
        let mut asked = request(8);
        asked.logprobs = Some(1);
        let answered = harness.answer(asked).await.unwrap();
        assert_eq!(answered.answers[0].text, expected(7, 8));
        harness.finish().await;
    }
}

#[tokio::test]
async fn keys_that_nobody_knows_are_dropped() {
    let spoil: fn(&mut proto::v1::StepOutput) = |step| {
        step.request_keys.push(4_000_000);
        step.token_counts.push(1);
        step.token_ids.push(1);
    };
    let harness = Harness::start(vec![Script { spoil, ..Script::default() }]).await;
    assert_eq!(harness.answer(request(8)).await.unwrap().answers[0].text, expected(7, 8));
    harness.finish().await;
}

#[tokio::test]
async fn dropping_the_stream_frees_its_slots() {
    let script = Script { pause_after: 2, ..Script::default() };
    let harness = Harness::start(vec![script]).await;
    let mut stream = harness.generate(GenerateRequest { n: Some(4), ..request(8) }).await.unwrap();
    assert!(matches!(stream.next().await, Some(Ok(TextEvent::Delta(_)))));
    harness.workers[0].wait_for(|log| log.num_resident == 4, |_| ()).await;
    drop(stream);
    let cancels = harness.workers[0]
        .wait_for(|log| log.num_cancels == 4 && log.num_resident == 0, |log| log.num_cancels)
        .await;
    assert_eq!(cancels, 4);
    harness.finish().await;
}

#[tokio::test]
async fn a_stop_string_cuts_the_text_and_ends_the_sequence() {
    let script = Script { pause_after: 6, ..Script::default() };
    let harness = Harness::start(vec![script]).await;
    let whole = expected(7, 6);
    let stop = whole[3..5].to_owned();
    let asked = GenerateRequest { stop: vec![stop.clone()], logprobs: Some(0), ..request(100) };
    let answered = harness.answer(asked).await.unwrap();
    let answer = &answered.answers[0];
    assert_eq!(answer.text, whole[..3]);
    assert_eq!((answer.token_ids.len(), answer.logprobs.len()), (3, 3));
    assert_eq!(answer.finish.as_ref().unwrap().stop_reason, Some(StopReason::Text(stop)));
    assert_eq!(answered.usage.completion_tokens, 5);
    harness.workers[0].wait_for(|log| log.num_cancels == 1, |_| ()).await;
    harness.finish().await;
}

#[tokio::test]
async fn the_token_that_ends_an_answer_has_no_text() {
    let eos = fixture::tokenizer().eos_ids()[0];
    let letter = fixture::id_of_byte(b'!');
    for (end, stop_ids, reason) in
        [(eos, vec![], None), (letter, vec![i64::from(letter)], Some(StopReason::TokenId(letter)))]
    {
        let harness =
            Harness::start(vec![Script { end_at: Some((end, 3)), ..Script::default() }]).await;
        let asked = GenerateRequest { stop_token_ids: stop_ids, logprobs: Some(0), ..request(100) };
        let answered = harness.answer(asked).await.unwrap();
        let answer = &answered.answers[0];
        assert_eq!(answer.text, expected(7, 3));
        assert_eq!(answer.token_ids.last(), Some(&end));
        assert_eq!((answer.token_ids.len(), answer.logprobs.len()), (4, 3));
        assert_eq!(answer.finish.as_ref().unwrap().stop_reason, reason);
        assert_eq!(answered.usage.completion_tokens, 4);
        harness.finish().await;
    }
}

#[tokio::test]
async fn answers_have_their_own_seeds_and_the_first_has_the_requests() {
    let harness = Harness::start(vec![Script { slots: 2, ..Script::default() }]).await;
    let mut asked = GenerateRequest { n: Some(3), ..request(8) };
    asked.prompts.push(PromptInput::TokenIds(vec![9]));
    let answered = harness.answer(asked).await.unwrap();
    assert_eq!(answered.answers.len(), 6);
    assert_eq!(answered.answers[0].text, expected(7, 8));
    assert_ne!(answered.answers[1].text, answered.answers[2].text);
    assert_eq!((answered.usage.prompt_tokens, answered.usage.completion_tokens), (4, 48));
    harness.finish().await;
}

#[tokio::test]
async fn an_echoed_prompt_comes_first_with_its_log_probabilities() {
    let harness = Harness::start(vec![Script::default()]).await;
    let prompts = vec![PromptInput::Text("hello".into())];
    let asked = GenerateRequest { echo: true, logprobs: Some(2), prompts, ..request(0) };
    let answered = harness.answer(asked.clone()).await.unwrap();
    let prompt = &answered.prompts[0];
    assert_eq!((prompt.text.as_str(), prompt.logprobs[0].logprob), ("hello", None));
    assert!(prompt.logprobs[1..].iter().all(|entry| entry.logprob == Some(-0.5)));
    assert_eq!(answered.usage.completion_tokens, 0);
    assert_eq!(answered.answers[0].finish.as_ref().unwrap().reason, FinishReason::Length);
    let asked = GenerateRequest { max_tokens: Some(2), ..asked };
    let answered = harness.answer(asked).await.unwrap();
    assert_eq!(answered.prompts[0].text, "hello");
    assert_eq!(answered.answers[0].logprobs[1].text_offset, 6);
    harness.finish().await;
}

#[tokio::test]
async fn a_prompt_that_does_not_fit_is_refused_with_both_numbers() {
    let harness = Harness::start(vec![Script::default()]).await;
    let error = harness.answer(request(510)).await.unwrap_err();
    let numbers = GatewayError::ContextLengthExceeded {
        prompt_tokens: 3,
        max_tokens: 510,
        max_model_len: 512,
    };
    assert_eq!(error, numbers);
    harness.finish().await;
}

#[tokio::test]
async fn a_worker_of_another_model_is_refused_and_named() {
    let other = Script { fingerprint: "other", ..Script::default() };
    let old = Script { protocol_version: 99, ..Script::default() };
    for (script, word) in [(other, "tokenizer"), (old, "protocol")] {
        let harness = Harness::unready(vec![script]);
        let reason = async {
            while !harness.spine.readiness().reason.contains(word) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), reason).await.expect("the reason is shown");
        assert_eq!(harness.answer(request(8)).await.unwrap_err().code(), "no_worker");
        harness.finish().await;
    }
}

#[tokio::test]
async fn a_slow_reader_is_taken_off_its_worker_and_loses_nothing() {
    let script = Script { max_model_len: 8192, ..Script::default() };
    let harness = Harness::start(vec![script]).await;
    let stream = harness.generate(request(6000)).await.unwrap();
    harness.workers[0].wait_for(|log| log.num_cancels == 1, |_| ()).await;
    let answered = collect(stream).await.unwrap();
    assert_eq!(answered.answers[0].text, expected(7, 6000));
    assert_eq!(answered.usage.completion_tokens, 6000);
    harness.finish().await;
}

#[tokio::test]
async fn a_drain_finishes_what_runs_and_takes_nothing_new() {
    let harness = Harness::start(vec![Script::default()]).await;
    let stream = harness.generate(request(500)).await.unwrap();
    harness.shutdown.begin();
    assert_eq!(harness.answer(request(8)).await.unwrap_err().code(), "draining");
    assert!(!harness.spine.readiness().ready);
    assert_eq!(collect(stream).await.unwrap().usage.completion_tokens, 500);
    harness.finish().await;
}

#[tokio::test]
async fn workers_learn_whether_draws_must_be_reproducible() {
    let harness = Harness::start(vec![Script::default()]).await;
    harness.answer(request(2)).await.unwrap();
    harness.answer(GenerateRequest { seed: None, ..request(2) }).await.unwrap();
    let any_draw = harness.workers[0]
        .wait_for(
            |log| log.admits.len() == 2,
            |log| {
                let sampling = |admit: &proto::v1::Admit| {
                    admit.generation.as_ref().unwrap().sampling.clone().unwrap().any_draw
                };
                log.admits.iter().map(sampling).collect::<Vec<_>>()
            },
        )
        .await;
    assert_eq!(any_draw, [false, true]);
    harness.finish().await;
}
