//! A state with a fake model under it, and an ear for what it reports.

use std::collections::HashMap;

use super::*;
use crate::engine::fake::{FakeModel, answer, logits_after};
use crate::engine::step::Stepper;
use crate::sampler;

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
        if !config.prefill_with_decode {
            assert!(plan.prefill_tokens == 0 || plan.decode_tokens == 0);
        }
        if !plan.is_empty() {
            self.num_steps += 1;
            self.stepper.step(&mut self.state, &plan).unwrap();
            self.state.check();
        }
        self.listen();
        !plan.is_empty()
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
