//! A state with a fake model under it, and an ear for what it reports.

use std::collections::HashMap;

use super::*;
use crate::engine::fake::{FakeModel, VOCAB_SIZE, answer, by_logit, logits_after};
use crate::engine::step::Stepper;
use crate::generation::Sampling;
use crate::sampler::{self, TokenCounts};

mod choices;
mod examples;
mod schedules;

/// What was reported of one sequence.
#[derive(Default)]
struct Heard {
    tokens: Vec<u32>,
    logprobs: Vec<Option<Logprobs>>,
    prompt_logprobs: Vec<Logprobs>,
    finished: Option<FinishReason>,
}

/// A state with its model, and everything heard of it.
struct Rig {
    state: EngineState,
    stepper: Stepper<FakeModel>,
    now: Instant,
    requests: HashMap<SequenceId, Generation>,
    heard: HashMap<SequenceId, Heard>,
    num_steps: usize,
}

impl Rig {
    fn new(config: EngineConfig, hasher: BlockHasher) -> Self {
        Self {
            state: EngineState::new(config, hasher),
            stepper: Stepper::new(FakeModel::new(config.num_kv_blocks, config.kv_block_size)),
            now: Instant::now(),
            requests: HashMap::new(),
            heard: HashMap::new(),
            num_steps: 0,
        }
    }

    fn submit(&mut self, client: u64, generation: Generation) -> SequenceId {
        let id = SequenceId(self.requests.len() as u64);
        self.requests.insert(id, generation.clone());
        self.state.submit(id, ClientId(client), generation, self.now);
        self.listen();
        id
    }

    fn step(&mut self) -> bool {
        let plan = self.state.plan(self.now);
        self.state.check();
        let config = self.state.config;
        assert!(plan.batch.num_tokens() <= config.max_num_batched_tokens);
        assert!(plan.batch.logit_rows.len() <= config.max_logit_rows);
        assert!(plan.batch.logit_rows.is_sorted_by(|a, b| a < b));
        self.check_rules(&plan);
        if !plan.is_empty() {
            self.num_steps += 1;
            self.stepper.step(&mut self.state, &plan).unwrap();
            self.state.check();
        }
        self.listen();
        !plan.is_empty()
    }

    /// The mesh's rules hold for the step.
    fn check_rules(&self, plan: &StepPlan) {
        let rules = self.state.config.rules;
        if !rules.mixes_prefill_with_decode {
            assert!(plan.prefill_tokens == 0 || plan.decode_tokens == 0);
        }
        let sequences = || plan.work.iter().zip(&plan.batch.sequences);
        let (decodes, prefills): (Vec<_>, Vec<_>) =
            sequences().partition(|(work, _)| self.state.sequences[&work.id].is_decode());
        assert!(rules.decode_rows.is_none_or(|rows| decodes.len() <= rows));
        assert!(rules.max_prefill_seqs.is_none_or(|most| prefills.len() <= most));
        for (work, slice) in prefills {
            assert_eq!(slice.first_position % rules.prefill_multiple, 0);
            assert!(rules.max_prefill_chunk.is_none_or(|most| slice.num_tokens <= most));
            let end = slice.first_position + slice.num_tokens;
            let is_last = end == self.state.sequences[&work.id].tokens.len();
            assert!(is_last || end.is_multiple_of(rules.prefill_multiple));
        }
        match &plan.batch.choices {
            Some(choices) => {
                assert!(rules.chooses);
                assert_eq!(choices.len(), plan.batch.logit_rows.len());
                for (work, slice) in sequences() {
                    let generation = &self.state.sequences[&work.id].generation;
                    assert_eq!(work.num_prompt_logits, 0);
                    assert!(!work.samples || generation.logprobs.is_none());
                    assert!(slice.num_tokens > 0);
                }
            }
            None if rules.chooses => assert!(
                plan.batch.logit_rows.is_empty() || self.any_needs_logits(plan),
                "the mesh could have chosen"
            ),
            None => {}
        }
    }

    fn any_needs_logits(&self, plan: &StepPlan) -> bool {
        plan.work.iter().filter(|work| work.num_logits() > 0).any(|work| {
            let sequence = &self.state.sequences[&work.id];
            let Generation { sampling, stop_token_ids, logprobs, min_new_tokens, .. } =
                &sequence.generation;
            let plain = Sampling {
                temperature: sampling.temperature,
                top_k: sampling.top_k,
                top_p: sampling.top_p,
                seed: sampling.seed,
                any_draw: sampling.any_draw,
                ..Sampling::default()
            };
            let is_greedy = sampling.temperature == 0.0 || sampling.top_k == Some(1);
            let of_the_host = !sampling.any_draw || sampling.top_k.is_none_or(|top_k| top_k > 32);
            work.num_prompt_logits > 0
                || logprobs.is_some()
                || *sampling != plain
                || (!is_greedy && of_the_host)
                || (sequence.num_generated() < *min_new_tokens && !stop_token_ids.is_empty())
        })
    }

    fn listen(&mut self) {
        let free = self.state.pool.free_blocks().to_vec();
        self.stepper.forward_mut().poison(&free);
        for (_, event) in self.state.take_events() {
            match event {
                Event::Admitted { sequence, cached_tokens } => {
                    let generation = &self.requests[&sequence];
                    assert!((cached_tokens as usize) <= generation.prompt_token_ids.len());
                }
                Event::PromptLogprobs { sequence, first_position, tokens } => {
                    let heard = self.heard.entry(sequence).or_default();
                    assert_eq!(first_position as usize, heard.prompt_logprobs.len() + 1);
                    heard.prompt_logprobs.extend(tokens);
                }
                Event::Token { sequence, token_id, logprobs } => {
                    let heard = self.heard.entry(sequence).or_default();
                    assert_eq!(heard.finished, None, "a token after the end");
                    heard.tokens.push(token_id);
                    heard.logprobs.push(logprobs);
                }
                Event::Finished { sequence, reason, .. } => {
                    let heard = self.heard.entry(sequence).or_default();
                    assert_eq!(heard.finished.replace(reason), None, "ended twice");
                }
            }
        }
    }

    fn run_to_end(&mut self) {
        while !self.state.is_empty() {
            let stepped = self.step();
            assert!(stepped || self.state.is_empty(), "stuck: {:?}", self.state.load());
            assert!(self.num_steps < 100_000, "no end in sight");
        }
        assert_eq!(self.state.load().kv_blocks_used, 0);
    }

    /// Everything heard equals what the request yields by itself.
    fn verify(&self) {
        for (id, generation) in &self.requests {
            let heard = &self.heard[id];
            if generation.sampling.any_draw && self.state.config.rules.chooses {
                verify_any_draw(generation, heard);
                continue;
            }
            let resumed = generation.resume_token_ids.len();
            let (expected, reason) = answer(generation, self.state.config.max_model_len);
            let expected = &expected[resumed..];
            match &heard.finished {
                Some(FinishReason::Cancelled | FinishReason::Deadline) => {
                    assert_eq!(heard.tokens, expected[..heard.tokens.len()]);
                    continue;
                }
                finished => assert_eq!(*finished, Some(reason), "{id:?}"),
            }
            assert_eq!(heard.tokens, expected, "{id:?}");
            verify_logprobs(generation, heard);
        }
    }
}

/// An answer that depends on who drew it: of the right length, and each token
/// one of those that it was to be drawn from.
fn verify_any_draw(generation: &Generation, heard: &Heard) {
    let Generation { sampling, stop_token_ids, .. } = generation;
    let num_answered = generation.resume_token_ids.len() + heard.tokens.len();
    let last = heard.tokens.last().or(generation.resume_token_ids.last());
    match &heard.finished {
        Some(FinishReason::Stop(id)) => {
            assert!(last == Some(id) && stop_token_ids.contains(id));
        }
        Some(FinishReason::Length) => assert_eq!(num_answered, generation.max_new_tokens as usize),
        Some(FinishReason::Cancelled | FinishReason::Deadline) => {}
        other => panic!("{other:?}"),
    }
    // Penalties and biases may lift any token.
    let plain = sampling.logit_bias.is_empty()
        && TokenCounts::new(sampling, &[], &[7]).is_empty()
        && generation.min_new_tokens == 0;
    let top_k = sampling.top_k.filter(|_| plain).map_or(VOCAB_SIZE, |top_k| top_k as usize);
    let mut tokens = generation.prompt_token_ids.clone();
    tokens.extend(&generation.resume_token_ids);
    for &token in &heard.tokens {
        assert!(by_logit(&tokens)[..top_k].contains(&token));
        tokens.push(token);
    }
}

fn verify_logprobs(generation: &Generation, heard: &Heard) {
    let mut tokens = generation.prompt_token_ids.clone();
    if let Some(num_top) = generation.prompt_logprobs.filter(|_| !heard.tokens.is_empty()) {
        let expected: Vec<Logprobs> = (1..tokens.len())
            .map(|p| sampler::logprobs(&logits_after(&tokens[..p]), tokens[p], num_top))
            .collect();
        assert_eq!(heard.prompt_logprobs, expected);
    }
    tokens.extend(&generation.resume_token_ids);
    for (&token, logprobs) in heard.tokens.iter().zip(&heard.logprobs) {
        let expected =
            generation.logprobs.map(|n| sampler::logprobs(&logits_after(&tokens), token, n));
        assert_eq!(*logprobs, expected);
        tokens.push(token);
    }
}
