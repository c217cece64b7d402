//! The gateways' stream.

use super::*;

use tonic::Code;

#[tokio::test]
async fn a_request_is_admitted_answered_and_its_credit_given_back() {
    let worker = Worker::ready().await;
    let mut gateway = worker.connect("g", 1).await;
    let credit = gateway.credit(SLOTS).await;
    assert_eq!((credit.kv_blocks, credit.admits_seen), (64, 0));
    assert_eq!(gateway.last_frame, 1, "the first frame is the credit");
    gateway.admit(7, counting_from(11, 3)).await;
    let admitted = gateway
        .until(|body| match body {
            Body::Admitted(admitted) => Some(admitted),
            Body::Step(_) => panic!("tokens before the admission"),
            _ => None,
        })
        .await;
    assert_eq!((admitted.request_key, admitted.epoch, admitted.cached_tokens), (7, 1, 0));
    let (tokens, finish) = gateway.answer(7).await;
    assert_eq!(tokens, [12, 13, 14]);
    assert_eq!(finish.reason(), wire::FinishReason::Length);
    let timing = finish.timing.unwrap();
    assert_eq!((timing.prompt_tokens, timing.generated_tokens), (2, 3));
    assert_eq!(gateway.credit(SLOTS).await.admits_seen, 1);
}

#[tokio::test]
async fn a_step_is_one_columnar_frame() {
    let worker = Worker::ready().await;
    let mut gateway = worker.connect("g", 1).await;
    worker.gate.allow(0);
    gateway.admit(1, counting_from(10, 40)).await;
    for key in 2..=4 {
        gateway.admit(key, counting_from(10 * key, 40)).await;
    }
    gateway.credit(SLOTS - 4).await;
    worker.gate.allow(u64::MAX);
    // Once all four are decoded together.
    let step = gateway
        .until(|body| match body {
            Body::Step(step) if step.request_keys.len() == 4 && step.finishes.is_empty() => {
                (step.kind() == wire::StepKind::Decode).then_some(step)
            }
            _ => None,
        })
        .await;
    assert!(step.token_counts.is_empty() && step.epochs.is_empty());
    assert_eq!(step.token_ids.len(), 4);
    assert_eq!(step.timing.unwrap().decode_tokens, 4);
    assert_eq!(step.load.unwrap().running, 4);
}

#[tokio::test]
async fn stop_ids_end_an_answer_and_resumed_tokens_are_not_said_again() {
    let worker = Worker::ready().await;
    let mut gateway = worker.connect("g", 1).await;
    let resumed = wire::Generation { resume_token_ids: vec![247, 248], ..counting_from(246, 9) };
    gateway.admit(1, resumed).await;
    let (tokens, finish) = gateway.answer(1).await;
    assert_eq!(tokens, [249, 250]);
    assert_eq!((finish.reason(), finish.stop_token_id), (wire::FinishReason::Stop, Some(250)));
}

#[tokio::test]
async fn logprobs_lie_beside_their_tokens() {
    let worker = Worker::ready().await;
    let mut gateway = worker.connect("g", 1).await;
    let request =
        wire::Generation { logprobs: Some(2), prompt_logprobs: Some(0), ..counting_from(11, 1) };
    gateway.admit(1, request).await;
    let step = gateway.step().await;
    let logprobs = &step.logprobs[0];
    assert_eq!((logprobs.token_index, logprobs.top_token_ids[0]), (0, 12));
    assert!(logprobs.logprob < 0.0 && logprobs.top_token_ids.len() == 2);
    assert_eq!(step.prompt_logprobs[0].request_key, 1);
    assert_eq!(step.prompt_logprobs[0].tokens.len(), 1, "all but the first");
}

#[tokio::test]
async fn bad_requests_are_rejected_by_code_and_disturb_nobody() {
    let worker = Worker::ready().await;
    let mut gateway = worker.connect("g", 1).await;
    let cases = [
        (wire::Generation::default(), Code::InvalidArgument, "prompt_token_ids"),
        (counting_from(256, 1), Code::InvalidArgument, "vocabulary"),
        (counting_from(9, 600), Code::InvalidArgument, "max_model_len is 512"),
        (
            wire::Generation { grammar: Some("x".into()), ..counting_from(9, 1) },
            Code::Unimplemented,
            "grammar",
        ),
        (
            wire::Generation { deadline_unix_ns: Some(1), ..counting_from(9, 1) },
            Code::DeadlineExceeded,
            "deadline",
        ),
    ];
    for (key, (request, code, names)) in (1..).zip(cases) {
        gateway.admit(key, request).await;
        let rejected = gateway.rejected().await;
        assert_eq!((rejected.request_key, rejected.epoch), (key, 1));
        assert_eq!(Code::from(rejected.code), code, "{}", rejected.message);
        assert!(rejected.message.contains(names), "{}", rejected.message);
        let credit = gateway.credit(SLOTS).await;
        assert_eq!(credit.admits_seen, u64::from(key), "what it cost is told back");
    }
    let no_generation = wire::Admit { request_key: 90, ..wire::Admit::default() };
    gateway.say(Frame::Admit(no_generation)).await;
    assert_eq!(gateway.rejected().await.code, i32::from(Code::InvalidArgument));
    gateway.admit(99, counting_from(11, 1)).await;
    assert_eq!(gateway.answer(99).await.0, [12]);
}

#[tokio::test]
async fn slots_end_keys_are_unique_and_repeats_are_ignored() {
    let worker = Worker::ready().await;
    let mut gateway = worker.connect("g", 1).await;
    worker.gate.allow(0);
    for key in 1..=SLOTS {
        gateway.admit(key, counting_from(11, 1)).await;
    }
    gateway.admit(1, counting_from(11, 1)).await;
    let again = wire::Admit { request_key: 1, epoch: 2, ..wire::Admit::default() };
    gateway.say(Frame::Admit(again)).await;
    let rejected = gateway.rejected().await;
    assert_eq!((Code::from(rejected.code), rejected.epoch), (Code::AlreadyExists, 2));
    gateway.admit(50, counting_from(11, 1)).await;
    let rejected = gateway.rejected().await;
    assert_eq!((rejected.request_key, rejected.code), (50, i32::from(Code::ResourceExhausted)));
    worker.gate.allow(u64::MAX);
    gateway.credit(SLOTS).await;
}

#[tokio::test]
async fn a_cancelled_request_ends_once_and_late_cancels_are_nothing() {
    let worker = Worker::ready().await;
    let mut gateway = worker.connect("g", 1).await;
    gateway.admit(1, counting_from(11, 400)).await;
    gateway.step().await;
    gateway.say(Frame::Cancel(wire::Cancel { request_keys: vec![1, 77] })).await;
    let (_, finish) = gateway.answer(1).await;
    // 400 tokens may be said before the cancel is read.
    assert!(matches!(finish.reason(), wire::FinishReason::Cancelled | wire::FinishReason::Stop));
    gateway.say(Frame::Cancel(wire::Cancel { request_keys: vec![1] })).await;
    gateway.credit(SLOTS).await;
    worker.idle().await;
}

#[tokio::test]
async fn cancelling_works_while_the_engine_is_busy() {
    let worker = Worker::ready().await;
    let mut gateway = worker.connect("g", 1).await;
    worker.gate.allow(1);
    gateway.admit(1, counting_from(11, 400)).await;
    assert_eq!(tokens_of(&gateway.step().await, 1), [12]);
    gateway.say(Frame::Cancel(wire::Cancel { request_keys: vec![1] })).await;
    // Behind the cancel in the stream, so read after it.
    gateway.admit(2, wire::Generation::default()).await;
    gateway.rejected().await;
    worker.gate.allow(1);
    let (tokens, finish) = gateway.answer(1).await;
    assert!(tokens.len() <= 1, "{tokens:?}");
    assert_eq!(finish.reason(), wire::FinishReason::Cancelled);
}

#[tokio::test]
async fn several_gateways_share_and_a_leaver_gives_back() {
    let worker = Worker::ready().await;
    let mut first = worker.connect("a", 1).await;
    first.credit(SLOTS).await;
    let mut second = worker.connect("b", 1).await;
    second.credit(2).await;
    assert_eq!(first.credit(3).await.kv_blocks, 32);
    drop(second);
    first.credit(SLOTS).await;
}

#[tokio::test]
async fn a_newer_stream_of_a_gateway_replaces_the_older() {
    let worker = Worker::ready().await;
    let mut old = worker.connect("g", 1).await;
    worker.gate.allow(0);
    old.admit(1, counting_from(11, 100)).await;
    old.credit(SLOTS - 1).await;
    let mut new = worker.connect("g", 2).await;
    assert_eq!(old.end().await.unwrap_err().code(), Code::Aborted);
    worker.gate.allow(u64::MAX);
    new.credit(SLOTS).await;
    let mut stale = worker.connect("g", 1).await;
    assert_eq!(stale.end().await.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn a_lost_gateway_leaves_nothing_behind() {
    let worker = Worker::ready().await;
    let mut gateway = worker.connect("g", 1).await;
    gateway.admit(1, counting_from(11, 400)).await;
    gateway.admit(2, wire::Generation { ignore_eos: true, ..counting_from(11, 400) }).await;
    gateway.step().await;
    drop(gateway);
    worker.idle().await;
    worker.connect("h", 1).await.credit(SLOTS).await;
}

#[tokio::test]
async fn a_silent_gateway_is_given_up_and_a_beating_one_is_not() {
    let pace = Pace { silence: Duration::from_millis(300), ..QUICK };
    let worker = Worker::with_pace(pace).await;
    worker.make_ready();
    let mut silent = worker.connect("s", 1).await;
    let mut beating = worker.connect("b", 1).await;
    worker.gate.allow(1);
    silent.admit(1, counting_from(11, 400)).await;
    silent.step().await;
    let end = silent.end();
    let mut end = std::pin::pin!(end);
    let ended = loop {
        tokio::select! {
            ended = &mut end => break ended,
            // The worker's own beats are the clock.
            body = beating.next() => if let Some(Body::Heartbeat(beat)) = body.unwrap() {
                beating.say(Frame::Heartbeat(wire::Heartbeat { beat: beat.beat })).await;
            },
        }
    };
    assert_eq!(ended.unwrap_err().code(), Code::DeadlineExceeded);
    worker.gate.allow(u64::MAX);
    worker.idle().await;
}

#[tokio::test]
async fn heartbeats_carry_the_step_counter() {
    let worker = Worker::ready().await;
    let mut gateway = worker.connect("g", 1).await;
    gateway.admit(1, counting_from(11, 5)).await;
    gateway.answer(1).await;
    let mut last_beat = 0;
    gateway
        .until(|body| match body {
            Body::Heartbeat(heartbeat) => {
                assert!(heartbeat.beat > last_beat);
                last_beat = heartbeat.beat;
                assert_eq!(heartbeat.load.unwrap().kv_blocks_total, 64);
                (heartbeat.step >= 5).then_some(())
            }
            _ => None,
        })
        .await;
}

#[tokio::test]
async fn streams_that_begin_or_go_on_wrongly_end_with_the_reason() {
    let worker = Worker::ready().await;
    let hello = |protocol_version, gateway_id: &str| {
        Frame::Hello(wire::Hello { protocol_version, gateway_id: gateway_id.into(), epoch: 1 })
    };
    let beginnings = [
        (Frame::Heartbeat(wire::Heartbeat::default()), Code::InvalidArgument),
        (hello(2, "g"), Code::FailedPrecondition),
        (hello(1, ""), Code::InvalidArgument),
        (hello(1, "two words"), Code::InvalidArgument),
    ];
    for (first, code) in beginnings {
        let mut gateway = worker.open(first).await;
        assert_eq!(gateway.end().await.unwrap_err().code(), code);
    }
    let goings_on = [hello(1, "g"), Frame::Ack(wire::Ack { frame: 1_000_000 })];
    for frame in goings_on {
        let mut gateway = worker.connect("g", 1).await;
        gateway.say(frame).await;
        assert_eq!(gateway.end().await.unwrap_err().code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn frames_of_unknown_kinds_are_passed_over() {
    let worker = Worker::ready().await;
    let mut gateway = worker.connect("g", 1).await;
    gateway.frames.send(wire::GatewayFrame { frame: None }).await.unwrap();
    gateway.credit(SLOTS).await;
    gateway.say(Frame::Ack(wire::Ack { frame: 1 })).await;
    gateway.admit(1, counting_from(11, 1)).await;
    assert_eq!(gateway.answer(1).await.0, [12]);
}

/// Fields at their edges, in any mixture: an answer or a refusal, no panic.
#[tokio::test]
async fn no_frame_makes_the_worker_panic() {
    let worker = Worker::ready().await;
    let mut gateway = worker.connect("g", 1).await;
    let edges = [0_u32, 1, 2, 255, 256, 511, 512, 513, u32::MAX];
    let floats = [0.0, -0.0, 1.0, -1.0, f32::NAN, f32::INFINITY, f32::MIN_POSITIVE, f32::MAX];
    let mut seed = 1_u64;
    let mut pick = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as usize % below
    };
    for key in 0..300 {
        let mut edge = || edges[pick(edges.len())];
        let generation = wire::Generation {
            prompt_token_ids: vec![edge() % 300; edge() as usize % 600],
            resume_token_ids: vec![edge() % 300; edge() as usize % 3],
            max_new_tokens: edge() % 16,
            min_new_tokens: edge() % 20,
            stop_token_ids: vec![edge(); edge() as usize % 3],
            logprobs: Some(edge() % 30),
            prompt_logprobs: (edge() > 255).then_some(edge() % 30),
            ..wire::Generation::default()
        };
        let mut float = || floats[pick(floats.len())];
        let sampling = wire::Sampling {
            temperature: Some(float()),
            top_p: Some(float()),
            repetition_penalty: Some(float()),
            ..wire::Sampling::default()
        };
        gateway.admit(key, wire::Generation { sampling: Some(sampling), ..generation }).await;
        gateway.say(Frame::Cancel(wire::Cancel { request_keys: vec![key / 2] })).await;
    }
    gateway
        .until(|body| match body {
            Body::Credit(credit) => {
                (credit.admits_seen == 300 && credit.slots == SLOTS).then_some(())
            }
            _ => None,
        })
        .await;
    gateway.admit(1000, counting_from(11, 1)).await;
    assert_eq!(gateway.answer(1000).await.0, [12]);
    assert_eq!(worker.shutdown.num_panics(), 0);
}
