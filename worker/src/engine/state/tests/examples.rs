//! Behaviour by example.

use std::time::Duration;

use mesh::StepRules;

use super::*;
use crate::generation::Sampling;

pub(super) fn roomy() -> EngineConfig {
    EngineConfig {
        max_num_seqs: 4,
        max_num_batched_tokens: 8,
        max_model_len: 64,
        num_kv_blocks: 64,
        kv_block_size: 4,
        max_logit_rows: 8,
        prefix_cache: true,
        rules: StepRules::FREE,
    }
}

fn rig(config: EngineConfig) -> Rig {
    Rig::new(config, BlockHasher::new([0; 32]))
}

pub(super) fn request(num_prompt: u32, max_new_tokens: u32) -> Generation {
    Generation {
        prompt_token_ids: (0..num_prompt).map(|i| (i * 7 + num_prompt) % 24).collect(),
        resume_token_ids: vec![],
        max_new_tokens,
        min_new_tokens: 0,
        stop_token_ids: vec![],
        sampling: Sampling { temperature: 1.0, seed: 11, ..Sampling::default() },
        logprobs: None,
        prompt_logprobs: None,
        priority: 0,
        deadline: None,
        cache_salt: vec![],
    }
}

#[test]
fn a_resumed_answer_goes_on_as_if_unbroken_at_every_cut() {
    let whole = Generation {
        sampling: Sampling { frequency_penalty: 0.4, ..request(1, 1).sampling },
        ..request(9, 20)
    };
    let (expected, _) = answer(&whole, 64);
    for cut in 0..=expected.len() {
        let mut rig = rig(roomy());
        let resume_token_ids = expected[..cut].to_vec();
        let id = rig.submit(0, Generation { resume_token_ids, ..whole.clone() });
        rig.run_to_end();
        assert_eq!(rig.heard[&id].tokens, expected[cut..], "cut at {cut}");
        assert_eq!(rig.heard[&id].finished, Some(FinishReason::Length));
    }
}

#[test]
fn a_long_prompt_delays_no_decode() {
    for mixes_prefill_with_decode in [true, false] {
        let rules = StepRules { mixes_prefill_with_decode, ..StepRules::FREE };
        let mut rig = rig(EngineConfig { rules, ..roomy() });
        let short = rig.submit(0, request(2, 30));
        rig.step();
        let long = rig.submit(0, request(50, 1));
        let mut last = rig.heard[&short].tokens.len();
        while rig.heard.get(&long).is_none_or(|heard| heard.tokens.is_empty()) {
            rig.step();
            if !mixes_prefill_with_decode {
                rig.step();
            }
            let now = rig.heard[&short].tokens.len();
            assert_eq!(now, last + 1);
            last = now;
        }
    }
}

#[test]
fn a_second_turn_finds_prompt_and_answer_of_the_first() {
    let mut rig = rig(roomy());
    let first = request(10, 11);
    let id = rig.submit(0, first.clone());
    rig.run_to_end();
    let mut second = request(1, 4);
    second.prompt_token_ids = [first.prompt_token_ids, rig.heard[&id].tokens.clone()].concat();
    let cached = |rig: &mut Rig, generation: Generation| {
        let before = rig.state.totals.cached_tokens;
        rig.submit(0, generation);
        rig.run_to_end();
        rig.verify();
        rig.state.totals.cached_tokens - before
    };
    // 20 of 21 tokens were computed: five whole blocks.
    assert_eq!(cached(&mut rig, second.clone()), 20);
    let salted = Generation { cache_salt: b"other".to_vec(), ..second.clone() };
    assert_eq!(cached(&mut rig, salted), 0);
    let explained = Generation { prompt_logprobs: Some(1), ..second.clone() };
    assert_eq!(cached(&mut rig, explained), 0);
    // Never the whole prompt, even where all of it is known.
    second.prompt_token_ids.truncate(20);
    assert_eq!(cached(&mut rig, second), 16);
}

#[test]
fn prompt_logprobs_alone_generate_nothing() {
    let mut rig = rig(EngineConfig { max_logit_rows: 4, ..roomy() });
    let generation = Generation { prompt_logprobs: Some(2), ..request(23, 0) };
    let prompt = generation.prompt_token_ids.clone();
    let id = rig.submit(0, generation);
    rig.run_to_end();
    let heard = &rig.heard[&id];
    assert_eq!(heard.finished, Some(FinishReason::Length));
    assert!(heard.tokens.is_empty());
    let expected: Vec<Logprobs> = (1..prompt.len())
        .map(|p| sampler::logprobs(&logits_after(&prompt[..p]), prompt[p], 2))
        .collect();
    assert_eq!(heard.prompt_logprobs, expected);
    let single = rig.submit(0, Generation { prompt_logprobs: Some(2), ..request(1, 0) });
    assert_eq!(rig.heard[&single].finished, Some(FinishReason::Length));
}

#[test]
fn deadlines_and_cancellations_free_blocks_before_the_next_step() {
    let mut rig = rig(roomy());
    let deadline = Some(rig.now + Duration::from_secs(1));
    let late = rig.submit(0, Generation { deadline, ..request(9, 30) });
    let cancelled = rig.submit(0, request(5, 30));
    rig.step();
    rig.step();
    assert_eq!(rig.state.load().running, 2);
    rig.state.cancel(cancelled, rig.now);
    assert_eq!(rig.state.load().running, 1);
    rig.now += Duration::from_secs(1);
    assert!(!rig.step());
    assert_eq!(rig.heard[&late].finished, Some(FinishReason::Deadline));
    assert_eq!(rig.heard[&cancelled].finished, Some(FinishReason::Cancelled));
    assert_eq!(rig.state.load(), Load { kv_blocks_total: 64, ..Load::default() });
}

#[test]
fn higher_priority_takes_the_place_of_the_newest_lowest() {
    let mut rig = rig(EngineConfig { max_num_seqs: 2, ..roomy() });
    let older = rig.submit(0, request(3, 20));
    let newer = rig.submit(0, request(4, 20));
    rig.step();
    let urgent = rig.submit(0, Generation { priority: 1, ..request(5, 2) });
    rig.step();
    let waits = |rig: &Rig, id| rig.state.waiting.iter().any(|rank| rank.id == id);
    assert!(waits(&rig, newer) && !waits(&rig, older) && !waits(&rig, urgent));
    rig.run_to_end();
    rig.verify();
    assert_eq!(rig.state.totals.preemptions, 1);
}

#[test]
fn a_panic_ends_only_the_sequence_that_causes_it() {
    let mut rig = rig(EngineConfig { max_num_batched_tokens: 64, ..roomy() });
    rig.stepper.forward_mut().poison_token = Some(23);
    let mut poisoned = request(3, 5);
    poisoned.prompt_token_ids[1] = 23;
    let without = |generation: Generation| Generation {
        sampling: Sampling { logit_bias: vec![(23, -100.0)], ..generation.sampling },
        prompt_token_ids: generation.prompt_token_ids.iter().map(|id| id % 23).collect(),
        ..generation
    };
    let before = rig.submit(0, without(request(4, 6)));
    let bad = rig.submit(0, poisoned);
    let after = rig.submit(0, without(request(6, 6)));
    rig.run_to_end();
    let reason = rig.heard[&bad].finished.clone().unwrap();
    assert!(matches!(&reason, FinishReason::Device(text) if text.contains("poisoned token")));
    rig.requests.remove(&bad);
    assert_eq!(rig.heard[&before].tokens.len() + rig.heard[&after].tokens.len(), 12);
    rig.verify();
}

#[test]
fn a_row_that_is_not_finite_ends_its_sequence_and_is_not_shared() {
    let mut rig = rig(roomy());
    rig.stepper.forward_mut().nan_after = Some(22);
    let mut broken = request(9, 5);
    broken.prompt_token_ids[0] = 22;
    let good = rig.submit(0, request(8, 6));
    let bad = rig.submit(0, broken.clone());
    rig.run_to_end();
    assert_eq!(rig.heard[&bad].finished, Some(FinishReason::Numerical));
    rig.stepper.forward_mut().nan_after = None;
    let cached = rig.state.totals.cached_tokens;
    rig.submit(0, broken);
    rig.run_to_end();
    assert_eq!(rig.state.totals.cached_tokens, cached, "KV of a broken sequence was found again");
    rig.requests.remove(&bad);
    assert_eq!(rig.heard[&good].tokens.len(), 6);
    rig.verify();
}

#[test]
fn times_add_up() {
    let mut rig = rig(roomy());
    let id = rig.submit(0, request(12, 3));
    let start = rig.now;
    let mut timing = None;
    for _ in 0..5 {
        rig.now += Duration::from_millis(10);
        let plan = rig.state.plan(rig.now);
        if plan.is_empty() {
            continue;
        }
        let outcomes = plan
            .work
            .iter()
            .map(|work| Outcome::Computed {
                prompt_logprobs: vec![],
                sampled: work.samples.then_some(Sampled { token_id: 1, logprobs: None }),
            })
            .collect();
        rig.state.apply(&plan, outcomes, rig.now + Duration::from_millis(5));
        for (_, event) in rig.state.take_events() {
            if let Event::Finished { timing: of, sequence, .. } = event {
                assert_eq!(sequence, id);
                timing = Some((of, rig.now + Duration::from_millis(5)));
            }
        }
    }
    let (timing, end) = timing.unwrap();
    assert_eq!(timing.queue, Duration::from_millis(10));
    assert_eq!(timing.prefill, Duration::from_millis(15));
    assert_eq!(timing.queue + timing.prefill + timing.decode, end - start);
    assert_eq!((timing.prompt_tokens, timing.generated_tokens), (12, 3));
}

#[test]
fn nobody_is_admitted_into_the_block_that_another_needs_next() {
    let config = EngineConfig { num_kv_blocks: 16, max_model_len: 60, ..roomy() };
    let mut rig = rig(config);
    rig.submit(0, request(4, 20));
    rig.step();
    rig.step();
    // 14 blocks are left, which is what the second needs, but no more.
    let second = rig.submit(0, request(53, 2));
    rig.step();
    assert!(rig.state.waiting.iter().any(|rank| rank.id == second));
    rig.run_to_end();
    rig.verify();
    assert_eq!(rig.state.totals.preemptions, 0);
}

#[test]
fn alternating_steps_go_on_when_every_decode_waits_for_blocks() {
    let config = EngineConfig {
        max_num_seqs: 2,
        max_num_batched_tokens: 2,
        max_model_len: 20,
        num_kv_blocks: 20,
        kv_block_size: 1,
        rules: StepRules { mixes_prefill_with_decode: false, ..StepRules::FREE },
        ..roomy()
    };
    let mut rig = rig(config);
    rig.submit(0, request(2, 18));
    rig.step();
    let long = Generation { priority: 1, ..request(16, 2) };
    rig.submit(0, long);
    // Asserts that no plan is empty.
    rig.run_to_end();
    rig.verify();
}

#[test]
fn a_cache_hit_is_cut_down_to_where_a_chunk_may_begin() {
    let rules = StepRules { prefill_multiple: 6, ..StepRules::FREE };
    let config = EngineConfig { rules, max_num_batched_tokens: 24, max_logit_rows: 16, ..roomy() };
    let mut rig = rig(config);
    rig.submit(0, request(23, 2));
    rig.run_to_end();
    let before = rig.state.totals.cached_tokens;
    rig.submit(0, request(23, 2));
    rig.run_to_end();
    rig.verify();
    // Five whole blocks of 4 are known; chunks begin at multiples of 12 tokens.
    assert_eq!(rig.state.totals.cached_tokens - before, 12);
}

#[test]
fn one_prompt_a_step_leaves_the_next_waiting_without_blocks() {
    let rules = StepRules {
        mixes_prefill_with_decode: false,
        max_prefill_seqs: Some(1),
        ..StepRules::FREE
    };
    let mut rig = rig(EngineConfig { rules, ..roomy() });
    let ids: Vec<_> = (0..3).map(|_| rig.submit(0, request(3, 8))).collect();
    rig.step();
    assert_eq!((rig.state.load().running, rig.state.load().waiting), (1, 2));
    rig.step();
    // A decode in between, and the second prompt.
    rig.step();
    assert_eq!(rig.heard[&ids[0]].tokens.len(), 2);
    assert_eq!(rig.heard[&ids[1]].tokens.len(), 1);
    rig.run_to_end();
    rig.verify();
}
