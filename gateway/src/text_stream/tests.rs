//! Answers against a naive oracle, whatever the tokens and the batches.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::scheduler::sequence::{RawLogprob, SequenceEnd, SequenceTiming};
use crate::text::tokenizer::fixture;

fn spec(stop: &[&str]) -> AnswerSpec {
    AnswerSpec {
        choice: 0,
        tokenizer: Arc::new(fixture::tokenizer()),
        prompt: vec![1].into(),
        stop: stop.iter().map(|&stop| stop.to_owned()).collect(),
        stop_token_ids: [].into(),
        ignore_eos: false,
        echo: false,
        prompt_logprobs: false,
        return_prompt_token_ids: false,
    }
}

fn raw() -> RawLogprob {
    RawLogprob { logprob: -1.0, top: vec![] }
}

/// Feeds tokens in batches, and merges what comes out.
fn run(answer: &mut Answer, batches: &[Vec<u32>]) -> Delta {
    let mut merged = Delta::default();
    let mut take = |unread: Unread| {
        if answer.has_ended() {
            return;
        }
        let (deltas, result) = answer.take(unread);
        assert_eq!(result, Ok(()));
        for delta in deltas {
            merged.text.push_str(&delta.text);
            merged.token_ids.extend(delta.token_ids);
            merged.logprobs.extend(delta.logprobs);
            merged.finish = delta.finish;
        }
    };
    for batch in batches {
        let logprobs = batch.iter().map(|_| raw()).collect();
        take(Unread { token_ids: batch.clone(), logprobs, ..Unread::default() });
    }
    let (reason, timing) = (FinishReason::Length, SequenceTiming::default());
    let end = SequenceEnd { reason, stop_token: None, timing };
    take(Unread { end: Some(Ok(end)), ..Unread::default() });
    merged
}

#[test]
fn half_a_character_is_held_back_with_its_tokens() {
    let mut answer = Answer::new(spec(&[]));
    let bytes: Vec<u32> = "é!".bytes().map(fixture::id_of_byte).collect();
    let first = Unread { token_ids: vec![bytes[0]], ..Unread::default() };
    assert_eq!(answer.take(first).0, []);
    let rest = Unread { token_ids: bytes[1..].to_vec(), ..Unread::default() };
    let delta = &answer.take(rest).0[0];
    assert_eq!((delta.text.as_str(), delta.token_ids.len()), ("é!", 3));
}

#[test]
fn a_failure_does_not_swallow_what_came_before_it() {
    let mut answer = Answer::new(spec(&[]));
    let unread = Unread {
        token_ids: vec![fixture::id_of_byte(b'x')],
        end: Some(Err(GatewayError::WorkerLost)),
        ..Unread::default()
    };
    let (deltas, result) = answer.take(unread);
    assert_eq!((deltas[0].text.as_str(), result), ("x", Err(GatewayError::WorkerLost)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Text ends before the first stop string, ids and log-probabilities go
    /// with the text, and every token up to the match counts.
    #[test]
    fn any_batches_give_the_text_before_the_first_stop(
        batches in prop::collection::vec(
            prop::collection::vec(prop_oneof![97u32..100, Just(0xC3u32), Just(0xA9u32)], 0..4),
            0..10,
        ),
    ) {
        let (stops, tokenizer) = (["ab", "cc"], fixture::tokenizer());
        let tokens: Vec<u32> = batches.iter().flatten().copied().collect();
        let bytes = |n: usize| -> Vec<u8> {
            tokens[..n].iter().flat_map(|&id| tokenizer.token_bytes(id).to_vec()).collect()
        };
        let mut answer = Answer::new(spec(&stops));
        let delta = run(&mut answer, &batches);
        let stopped_after = (0..=tokens.len()).find(|&n| {
            let text = String::from_utf8_lossy(&bytes(n)).into_owned();
            stops.iter().any(|stop| text.contains(stop))
        });
        let whole = String::from_utf8_lossy(&bytes(stopped_after.unwrap_or(tokens.len()))).into_owned();
        let cut = stops.iter().filter_map(|stop| whole.find(stop)).min();
        prop_assert_eq!(&delta.text, &whole[..cut.unwrap_or(whole.len())]);
        let used = stopped_after.unwrap_or(tokens.len());
        prop_assert_eq!(answer.num_tokens() as usize, used);
        prop_assert_eq!(delta.token_ids.len(), delta.logprobs.len());
        prop_assert!(tokens.starts_with(&delta.token_ids));
        let reason = delta.finish.map(|finish| finish.reason);
        let expected = if cut.is_some() { FinishReason::Stop } else { FinishReason::Length };
        prop_assert_eq!(reason, Some(expected));
    }
}
