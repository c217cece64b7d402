//! The engine as the rest of the worker sees it.

use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh::{MeshError, StepBatch, StepOutput, StepRules};
use tracing::Span;

use super::fake::{FakeModel, VOCAB_SIZE, answer};
use super::*;
use crate::generation::{Event, FinishReason, Generation, Sampling, SequenceId};
use crate::load_stage::LoadStage;
use crate::owner_thread::{OwnerThread, StepBounds};

pub(super) fn options() -> EngineOptions {
    EngineOptions {
        config: EngineConfig {
            max_num_seqs: 4,
            max_num_batched_tokens: 16,
            max_model_len: 4096,
            num_kv_blocks: 4096,
            kv_block_size: 4,
            max_logit_rows: 16,
            prefix_cache: true,
            rules: StepRules::FREE,
        },
        max_waiting_seqs: 8,
        client_limits: ClientLimits {
            channel_capacity: 4,
            outbox_tokens: 8,
            patience: Duration::from_secs(3600),
        },
        cache_key: [9; 32],
    }
}

fn model() -> FakeModel {
    FakeModel::new(4096, 4)
}

fn request(first: u32, max_new_tokens: u32) -> Generation {
    Generation {
        prompt_token_ids: vec![first, 1, 2],
        resume_token_ids: vec![],
        max_new_tokens,
        min_new_tokens: 0,
        stop_token_ids: vec![],
        sampling: Sampling { temperature: 1.0, seed: 3, ..Sampling::default() },
        logprobs: None,
        prompt_logprobs: None,
        priority: 0,
        deadline: None,
        cache_salt: vec![],
    }
}

/// Reads on until `sequence` has ended.
async fn finish(client: &mut Client, sequence: SequenceId) -> (Vec<u32>, FinishReason) {
    let mut tokens = Vec::new();
    while let Some(step) = client.events.recv().await {
        for event in step.events {
            match event {
                Event::Token { sequence: of, token_id, .. } if of == sequence => {
                    tokens.push(token_id);
                }
                Event::Finished { sequence: of, reason, .. } if of == sequence => {
                    return (tokens, reason);
                }
                _ => {}
            }
        }
    }
    panic!("the channel ended before {sequence:?}");
}

/// Waits until the engine has nothing left.
async fn until(handle: &EngineHandle, reached: impl FnMut(&EngineStatus) -> bool) {
    handle.watch_status().wait_for(reached).await.unwrap();
}

#[tokio::test]
async fn requests_are_answered_and_the_thread_ends_with_its_handles() {
    let (handle, thread) = Engine::start(model(), options()).unwrap();
    let mut client = handle.attach().await.unwrap();
    let ids: Vec<_> = (0..6)
        .map(|i| handle.submit(client.id, request(i, 20 + i), Span::none()).unwrap())
        .collect();
    let last = *ids.last().unwrap();
    let (tokens, reason) = finish(&mut client, last).await;
    assert_eq!((tokens, reason), answer(&request(5, 25), 4096));
    until(&handle, |status| status.totals.finished == 6).await;
    let status = handle.status();
    assert_eq!((status.load.running, status.load.waiting), (0, 0));
    assert!(!handle.has_work());
    // What comes after the last step does not hide it.
    handle.cancel(last).await.unwrap();
    assert_eq!(handle.cancel_all().await, Ok(0));
    assert_eq!(handle.status().timing.decode_tokens, 1);
    drop(handle);
    tokio::task::spawn_blocking(|| thread.join()).await.unwrap();
    while client.events.recv().await.is_some() {}
}

#[tokio::test]
async fn dropping_the_handles_cancels_what_runs() {
    let (handle, thread) = Engine::start(model(), options()).unwrap();
    let mut client = handle.attach().await.unwrap();
    handle.submit(client.id, request(0, 4000), Span::none()).unwrap();
    client.events.recv().await.unwrap();
    drop(handle);
    let mut num_tokens = 0;
    while let Some(step) = client.events.recv().await {
        num_tokens += step.events.len();
    }
    assert!(num_tokens < 4000);
    tokio::task::spawn_blocking(|| thread.join()).await.unwrap();
}

#[tokio::test]
async fn a_client_that_leaves_is_cancelled() {
    let (handle, _thread) = Engine::start(model(), options()).unwrap();
    let mut client = handle.attach().await.unwrap();
    handle.submit(client.id, request(0, 4000), Span::none()).unwrap();
    client.events.recv().await.unwrap();
    drop(client);
    until(&handle, |status| status.totals.finished == 1).await;
    assert_eq!(handle.load().kv_blocks_used, 0);
    assert!(!handle.has_work());
}

#[tokio::test]
async fn a_cancelled_sequence_says_so() {
    let (handle, _thread) = Engine::start(model(), options()).unwrap();
    let mut client = handle.attach().await.unwrap();
    let id = handle.submit(client.id, request(0, 4000), Span::none()).unwrap();
    handle.cancel(id).await.unwrap();
    assert_eq!(finish(&mut client, id).await.1, FinishReason::Cancelled);
}

#[tokio::test]
async fn a_client_that_does_not_read_pauses_and_stops_nobody_else() {
    let (handle, _thread) = Engine::start(model(), options()).unwrap();
    let mut slow = handle.attach().await.unwrap();
    let mut quick = handle.attach().await.unwrap();
    let paused = handle.submit(slow.id, request(0, 1000), Span::none()).unwrap();
    // Four messages (the admission and three steps) and eight tokens later it
    // is paused: idle with work undone.
    let mut status = handle.watch_status();
    status.wait_for(|status| status.step >= 11).await.unwrap();
    let other = handle.submit(quick.id, request(1, 200), Span::none()).unwrap();
    assert_eq!(finish(&mut quick, other).await, answer(&request(1, 200), 4096));
    // It was given no more than its channel and its outbox hold.
    let computed = handle.status().totals.decode_tokens;
    assert!(computed < 199 + 40, "{computed}");
    // And misses nothing once it reads.
    assert_eq!(finish(&mut slow, paused).await, answer(&request(0, 1000), 4096));
}

#[tokio::test]
async fn a_client_that_never_reads_is_given_up() {
    let mut options = options();
    options.client_limits.patience = Duration::from_millis(1);
    let (handle, _thread) = Engine::start(model(), options).unwrap();
    let mut slow = handle.attach().await.unwrap();
    handle.submit(slow.id, request(0, 1000), Span::none()).unwrap();
    until(&handle, |status| status.totals.finished == 1).await;
    assert_eq!(handle.load().kv_blocks_used, 0);
    let mut num_tokens = 0;
    while let Some(step) = slow.events.recv().await {
        num_tokens += step.events.len();
    }
    assert!(num_tokens < 100);
}

/// Stands still until told to step.
struct Gated {
    model: FakeModel,
    gate: std_mpsc::Receiver<()>,
}

impl Forward for Gated {
    fn forward(&mut self, batch: &StepBatch, out: &mut StepOutput) -> Result<(), MeshError> {
        // Once the other end is gone, the gate is open.
        let _ = self.gate.recv();
        self.model.forward(batch, out)
    }

    fn vocab_size(&self) -> usize {
        VOCAB_SIZE
    }
}

#[tokio::test]
async fn an_admission_is_told_before_its_step() {
    let (open, gate) = std_mpsc::channel();
    let (handle, _thread) = Engine::start(Gated { model: model(), gate }, options()).unwrap();
    let mut client = handle.attach().await.unwrap();
    let sequence = handle.submit(client.id, request(0, 1), Span::none()).unwrap();
    // The step stands still, so this can only have been sent before it.
    let first = client.events.recv().await.unwrap();
    assert_eq!(first.events, [Event::Admitted { sequence, cached_tokens: 0 }]);
    drop(open);
    assert_eq!(finish(&mut client, sequence).await.1, FinishReason::Length);
}

#[tokio::test]
async fn the_queue_is_bounded_and_sizes_are_checked() {
    let (open, gate) = std_mpsc::channel();
    let (handle, _thread) = Engine::start(Gated { model: model(), gate }, options()).unwrap();
    let mut client = handle.attach().await.unwrap();
    let submit = |generation| handle.submit(client.id, generation, Span::none());
    let mut too_long = request(0, 1);
    too_long.prompt_token_ids = vec![0; 4097];
    let error = submit(too_long).unwrap_err();
    assert_eq!(error.to_string(), "number of tokens is 4097, the limit is 4096");
    // Whether or not the engine has picked the first up already, it can't be
    // through with a step.
    let taken: Vec<_> = (0..20).map_while(|i| submit(request(i, 3)).ok()).collect();
    assert!((8..=12).contains(&taken.len()), "{}", taken.len());
    let refused = loop {
        if let Err(error) = submit(request(1, 3)) {
            break error;
        }
    };
    assert_eq!(refused, SubmitError::QueueFull { max_waiting_seqs: 8 });
    drop(open);
    finish(&mut client, *taken.last().unwrap()).await;
}

#[tokio::test]
async fn draining_takes_nothing_new_and_waits_for_the_rest() {
    let (open, gate) = std_mpsc::channel();
    let (handle, _thread) = Engine::start(Gated { model: model(), gate }, options()).unwrap();
    let mut client = handle.attach().await.unwrap();
    let id = handle.submit(client.id, request(0, 5), Span::none()).unwrap();
    let drained = handle.drain();
    tokio::pin!(drained);
    assert!(futures::poll!(drained.as_mut()).is_pending());
    let refused = handle.submit(client.id, request(0, 5), Span::none());
    assert_eq!(refused, Err(SubmitError::Draining));
    drop(open);
    let (_, (tokens, _)) = tokio::join!(drained, finish(&mut client, id));
    assert_eq!(tokens.len(), 5);
    assert_eq!(handle.cancel_all().await, Ok(0));
}

#[tokio::test]
async fn a_failed_device_ends_everything_and_is_reported() {
    let mut model = model();
    model.fails_at = Some(3);
    let (handle, _thread) = Engine::start(model, options()).unwrap();
    let mut client = handle.attach().await.unwrap();
    let id = handle.submit(client.id, request(0, 50), Span::none()).unwrap();
    let (tokens, reason) = finish(&mut client, id).await;
    assert_eq!(tokens.len(), 2);
    assert_eq!(reason, FinishReason::DeviceFailed("device failed: hang up".to_owned()));
    until(&handle, |status| status.failure.is_some()).await;
    let refused = handle.submit(client.id, request(0, 5), Span::none());
    assert_eq!(refused, Err(SubmitError::DeviceFailed("device failed: hang up".into())));
}

#[tokio::test]
async fn cache_events_are_published() {
    let (handle, _thread) = Engine::start(model(), options()).unwrap();
    let mut events = handle.subscribe_cache_events();
    let mut client = handle.attach().await.unwrap();
    let id = handle.submit(client.id, request(0, 2), Span::none()).unwrap();
    finish(&mut client, id).await;
    let stored = events.recv().await.unwrap();
    assert_eq!((stored.stored.len(), stored.evicted.len()), (1, 0));
}

/// Name of a span, and of its parent.
type NameAndParent = (&'static str, Option<&'static str>);

/// Spans in the order in which they are closed.
#[derive(Clone, Default)]
struct Closed(Arc<Mutex<Vec<NameAndParent>>>);

impl<S> tracing_subscriber::Layer<S> for Closed
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    fn on_close(&self, id: tracing::span::Id, context: tracing_subscriber::layer::Context<'_, S>) {
        let span = context.span(&id).unwrap();
        let parent = span.parent().map(|parent| parent.name());
        self.0.lock().unwrap().push((span.name(), parent));
    }
}

#[test]
fn each_phase_is_a_child_of_the_requests_span() {
    use tracing_subscriber::layer::SubscriberExt;
    let closed = Closed::default();
    let subscriber = tracing_subscriber::registry().with(closed.clone());
    tracing::subscriber::with_default(subscriber, || {
        let mut spans = spans::Spans::default();
        let id = SequenceId(1);
        let request = tracing::info_span!("request");
        spans.submitted(id, request.clone(), 3);
        assert!(spans.observe(&Event::Admitted { sequence: id, cached_tokens: 0 }));
        let token = Event::Token { sequence: id, token_id: 1, logprobs: None };
        assert!(!spans.observe(&token));
        assert!(!spans.observe(&token));
        let (reason, timing) = (FinishReason::Length, Default::default());
        assert!(!spans.observe(&Event::Finished { sequence: id, reason, timing }));
        let parent = Some("request");
        let expected = [("queue", parent), ("prefill", parent), ("decode", parent)];
        assert_eq!(*closed.0.lock().unwrap(), expected);
        drop(request);
        assert_eq!(closed.0.lock().unwrap().last(), Some(&("request", None)));
    });
}

/// Answers one step, and then never again while `never` lives.
struct Hangs {
    model: FakeModel,
    never: std_mpsc::Receiver<()>,
}

impl Forward for Hangs {
    fn forward(&mut self, batch: &StepBatch, out: &mut StepOutput) -> Result<(), MeshError> {
        if self.model.num_steps > 0 {
            let _ = self.never.recv();
        }
        self.model.forward(batch, out)
    }

    fn vocab_size(&self) -> usize {
        VOCAB_SIZE
    }
}

#[tokio::test]
async fn a_device_that_hangs_ends_everything_and_takes_no_more_work() {
    let (held, never) = std_mpsc::channel();
    let bound = Duration::from_millis(100);
    let bounds = StepBounds { known: bound, first: bound };
    let load = move |_: &mut dyn FnMut(LoadStage)| {
        Ok::<_, std::io::Error>((Hangs { model: model(), never }, ()))
    };
    let (owner, ()) = OwnerThread::spawn(bounds, load, &mut |_| {}).unwrap();
    let (handle, thread) = Engine::start(owner, options()).unwrap();
    let mut client = handle.attach().await.unwrap();
    let ids = [0, 1].map(|first| handle.submit(client.id, request(first, 50), Span::none()));
    let mut reasons = Vec::new();
    for id in ids {
        // Both end in one message.
        let id = id.unwrap();
        while !reasons.iter().any(|(ended, _)| *ended == id) {
            let step = client.events.recv().await.expect("the engine goes on");
            for event in step.events {
                if let Event::Finished { sequence, reason, .. } = event {
                    reasons.push((sequence, reason));
                }
            }
        }
    }
    for (_, reason) in reasons {
        let hung = "the device has not answered for 100ms".to_owned();
        assert_eq!(reason, FinishReason::DeviceFailed(hung));
    }
    until(&handle, |status| status.failure.is_some()).await;
    let refused = handle.submit(client.id, request(0, 5), Span::none());
    assert!(matches!(refused, Err(SubmitError::DeviceFailed(_))), "{refused:?}");
    // The engine ends, although the device's thread cannot, and a handle is left.
    handle.stop().await;
    tokio::task::spawn_blocking(|| thread.join()).await.unwrap();
    drop(held);
}
