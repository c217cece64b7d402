//! Who chooses the tokens: the mesh or the host.

use mesh::{Choice, StepRules};

use super::examples::{request, roomy};
use super::*;

fn plan_of(requests: &[Generation]) -> StepPlan {
    let rules = StepRules { chooses: true, ..StepRules::FREE };
    let mut rig = Rig::new(
        EngineConfig { rules, max_num_batched_tokens: 64, ..roomy() },
        BlockHasher::new([0; 32]),
    );
    for generation in requests {
        rig.submit(0, generation.clone());
    }
    rig.state.plan(rig.now)
}

fn sampled(change: impl FnOnce(&mut Sampling)) -> Generation {
    let mut sampling =
        Sampling { temperature: 0.7, top_k: Some(20), any_draw: true, ..Sampling::default() };
    change(&mut sampling);
    Generation { sampling, ..request(5, 4) }
}

fn greedy() -> Generation {
    Generation { sampling: Sampling::default(), ..request(4, 4) }
}

#[test]
fn greedy_tokens_and_free_draws_are_the_meshs() {
    let plan = plan_of(&[greedy(), sampled(|_| {}), sampled(|sampling| sampling.top_p = 0.5)]);
    let choices = plan.batch.choices.unwrap();
    assert_eq!(choices[0], Choice::Greedy);
    let drawn = |choice: Choice| match choice {
        Choice::Sampled { temperature, top_k, top_p, seed } => (temperature, top_k, top_p, seed),
        Choice::Greedy => panic!("drawn greedily"),
    };
    let ((temperature, top_k, top_p, seed), second) = (drawn(choices[1]), drawn(choices[2]));
    assert_eq!((temperature, top_k, top_p), (0.7, 20, 1.0));
    assert_eq!((second.2, second.3), (0.5, seed), "a seed is the request's and the index's");
    // The one candidate needs no draw, nor a free one.
    let one = sampled(|sampling| (sampling.top_k, sampling.any_draw) = (Some(1), false));
    assert_eq!(plan_of(&[one]).batch.choices, Some(vec![Choice::Greedy]));
}

#[test]
fn every_token_of_an_answer_has_its_own_seed() {
    let seeds: Vec<u64> = (0..6)
        .map(|resumed| {
            let resume_token_ids = vec![3; resumed];
            let plan =
                plan_of(&[Generation { resume_token_ids, max_new_tokens: 9, ..sampled(|_| {}) }]);
            match plan.batch.choices.unwrap()[0] {
                Choice::Sampled { seed, .. } => seed,
                Choice::Greedy => panic!("drawn greedily"),
            }
        })
        .collect();
    assert_eq!(seeds.iter().collect::<HashSet<_>>().len(), 6);
}

#[test]
fn what_needs_the_distribution_or_a_reproducible_draw_is_the_hosts() {
    let of_the_host = [
        sampled(|sampling| sampling.any_draw = false),
        sampled(|sampling| sampling.top_k = None),
        sampled(|sampling| sampling.top_k = Some(33)),
        sampled(|sampling| sampling.min_p = 0.1),
        sampled(|sampling| sampling.presence_penalty = 0.1),
        sampled(|sampling| sampling.frequency_penalty = -0.1),
        sampled(|sampling| sampling.repetition_penalty = 1.1),
        sampled(|sampling| sampling.logit_bias = vec![(3, 1.0)]),
        Generation { logprobs: Some(0), ..greedy() },
        Generation { prompt_logprobs: Some(0), ..greedy() },
        Generation { min_new_tokens: 2, stop_token_ids: vec![7], ..greedy() },
    ];
    for generation in of_the_host {
        assert_eq!(
            plan_of(std::slice::from_ref(&generation)).batch.choices,
            None,
            "{generation:?}"
        );
        // Then all rows are.
        assert_eq!(plan_of(&[greedy(), generation]).batch.choices, None);
    }
    // Nothing is banned where no id ends the answer.
    let unbanned = Generation { min_new_tokens: 2, ..greedy() };
    assert!(plan_of(&[unbanned]).batch.choices.is_some());
}

#[test]
fn a_chunk_without_a_token_asks_for_no_choice() {
    let rules = StepRules { chooses: true, ..StepRules::FREE };
    let mut rig = Rig::new(EngineConfig { rules, ..roomy() }, BlockHasher::new([0; 32]));
    rig.submit(0, Generation { sampling: Sampling::default(), ..request(12, 2) });
    let plan = rig.state.plan(rig.now);
    assert_eq!((plan.prefill_tokens, plan.batch.choices), (8, None));
}
