//! Random schedules against a straight-line oracle.

use std::time::Duration;

use mesh::StepRules;

use super::*;
use crate::engine::fake::VOCAB_SIZE;
use crate::generation::Sampling;

/// SplitMix64: the schedules are functions of their seeds.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn tokens(&mut self, num_tokens: usize) -> Vec<u32> {
        // Few distinct prompts, so that prefixes are shared.
        let flavour = self.below(3) as u32;
        let own = self.below(num_tokens + 1);
        (0..num_tokens)
            .map(|i| if i < own { flavour } else { self.below(VOCAB_SIZE) as u32 })
            .collect()
    }

    fn sampling(&mut self) -> Sampling {
        if self.chance(40) {
            // As a device can choose by.
            return Sampling {
                temperature: self.pick(&[0.0, 0.0, 0.7]),
                top_k: self.pick(&[None, Some(3), Some(9)]),
                top_p: self.pick(&[1.0, 0.8]),
                seed: self.next(),
                any_draw: self.chance(50),
                ..Sampling::default()
            };
        }
        Sampling {
            temperature: self.pick(&[0.0, 0.7, 1.5]),
            top_k: self.pick(&[None, Some(3), Some(9)]),
            top_p: self.pick(&[1.0, 0.8]),
            min_p: self.pick(&[0.0, 0.05]),
            presence_penalty: self.pick(&[0.0, 0.5]),
            frequency_penalty: self.pick(&[0.0, 0.25]),
            repetition_penalty: self.pick(&[1.0, 1.3]),
            logit_bias: if self.chance(20) { vec![(1, 2.0), (5, -100.0)] } else { vec![] },
            seed: self.next(),
            any_draw: self.chance(30),
        }
    }

    fn generation(&mut self, config: &EngineConfig) -> Generation {
        let num_prompt = 1 + self.below(config.max_model_len - 1);
        let room = config.max_model_len - num_prompt;
        let stop = self.below(VOCAB_SIZE) as u32;
        let mut generation = Generation {
            prompt_token_ids: self.tokens(num_prompt),
            resume_token_ids: vec![],
            max_new_tokens: 1 + self.below(room.min(12)) as u32,
            min_new_tokens: self.pick(&[0, 0, 2]),
            stop_token_ids: if self.chance(50) { vec![stop] } else { vec![] },
            sampling: self.sampling(),
            logprobs: self.pick(&[None, None, Some(0), Some(3)]),
            prompt_logprobs: self.pick(&[None, None, None, Some(2)]),
            priority: self.pick(&[0, 0, 0, 1, -5]),
            deadline: None,
            cache_salt: self.pick(&[&b""[..], &b"a"[..]]).to_vec(),
        };
        if self.chance(20) {
            let (mut whole, _) = answer(&generation, config.max_model_len);
            whole.truncate(self.below(whole.len() + 1));
            generation.resume_token_ids = whole;
        }
        generation
    }
}

/// Schedules of a mesh that takes anything, and of one with rules.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Free,
    Ruled,
}

fn config(random: &mut Random, kind: Kind, spare_blocks: usize) -> EngineConfig {
    let max_num_seqs = 1 + random.below(8);
    let kv_block_size = random.pick(&[1, 2, 4, 5]);
    let max_model_len = 2 + random.below(30);
    let rules = match kind {
        Kind::Free => StepRules {
            mixes_prefill_with_decode: random.chance(75),
            chooses: random.chance(25),
            ..StepRules::FREE
        },
        Kind::Ruled => rules(random, max_num_seqs),
    };
    let multiple = rules.prefill_multiple - 1;
    EngineConfig {
        max_num_seqs,
        max_num_batched_tokens: max_num_seqs + multiple + random.below(12),
        max_model_len,
        num_kv_blocks: max_model_len.div_ceil(kv_block_size) + spare_blocks,
        kv_block_size,
        max_logit_rows: max_num_seqs + multiple + random.below(4),
        prefix_cache: random.chance(75),
        rules,
    }
}

/// Like those of a device: most often steps of one kind, one prompt at a time.
fn rules(random: &mut Random, max_num_seqs: usize) -> StepRules {
    let prefill_multiple = random.pick(&[1, 2, 3, 4, 8]);
    let longest = prefill_multiple * (1 + random.below(3)) + random.below(prefill_multiple);
    StepRules {
        mixes_prefill_with_decode: random.chance(15),
        max_prefill_seqs: random.pick(&[Some(1), Some(1), Some(2), None]),
        decode_rows: random.pick(&[Some(max_num_seqs), Some(32), None]),
        prefill_multiple,
        max_prefill_chunk: random.chance(60).then_some(longest),
        chooses: random.chance(70),
        compiles: true,
    }
}

/// What came of a schedule.
struct Came {
    totals: Totals,
    num_chosen: u64,
}

/// Arrivals, cancellations, deadlines and pauses at random; then everything is
/// let run to its end.
fn random_schedule(
    (kind, seed): (Kind, u64),
    spare_blocks: usize,
    num_requests: usize,
    hasher: BlockHasher,
) -> Came {
    let mut random = Random(seed);
    let config = config(&mut random, kind, spare_blocks);
    let mut rig = Rig::new(config, hasher);
    let busy = random.pick(&[10, 40, 80]);
    while rig.requests.len() < num_requests {
        if random.chance(busy) {
            let mut generation = random.generation(&config);
            if random.chance(5) {
                let wait = Duration::from_millis(random.below(20) as u64);
                generation.deadline = Some(rig.now + wait);
            }
            rig.submit(random.below(3) as u64, generation);
        } else if random.chance(8) {
            let id = SequenceId(random.below(num_requests) as u64);
            let held = rig.state.sequences.contains_key(&id);
            rig.state.cancel(id, rig.now);
            rig.state.check();
            assert!(!held || !rig.state.sequences.contains_key(&id));
        } else if random.chance(8) {
            rig.state.set_paused(ClientId(random.below(3) as u64), random.chance(50));
        } else {
            rig.now += Duration::from_millis(1);
            rig.step();
        }
    }
    for client in 0..3 {
        rig.state.set_paused(ClientId(client), false);
    }
    rig.run_to_end();
    rig.verify();
    Came { totals: rig.state.totals(), num_chosen: rig.stepper.forward_mut().num_chosen }
}

#[test]
fn random_schedules_yield_what_each_request_yields_alone() {
    let (mut preemptions, mut cached_tokens) = (0, 0);
    for seed in 0..10_000 {
        let spare = (seed % 40) as usize;
        let schedule = (Kind::Free, seed);
        let Came { totals, .. } = random_schedule(schedule, spare, 12, BlockHasher::new([1; 32]));
        assert_eq!(totals.submitted, totals.finished);
        preemptions += totals.preemptions;
        cached_tokens += totals.cached_tokens;
    }
    // The schedules are worth something only if they are eventful.
    assert!(preemptions > 2_000, "{preemptions}");
    assert!(cached_tokens > 50_000, "{cached_tokens}");
}

#[test]
fn a_mesh_with_rules_yields_what_each_request_yields_alone() {
    let (mut preemptions, mut cached_tokens, mut num_chosen) = (0, 0, 0);
    for seed in 40_000..50_000 {
        let spare = (seed % 40) as usize;
        let schedule = (Kind::Ruled, seed);
        let came = random_schedule(schedule, spare, 12, BlockHasher::new([4; 32]));
        assert_eq!(came.totals.submitted, came.totals.finished);
        preemptions += came.totals.preemptions;
        cached_tokens += came.totals.cached_tokens;
        num_chosen += came.num_chosen;
    }
    // The schedules are worth something only if they are eventful.
    assert!(preemptions > 2_000, "{preemptions}");
    assert!(cached_tokens > 20_000, "{cached_tokens}");
    assert!(num_chosen > 20_000, "{num_chosen}");
}

#[test]
fn three_spare_blocks_are_enough_to_finish_everything() {
    for seed in 10_000..10_300 {
        random_schedule((Kind::Free, seed), 3, 64, BlockHasher::new([2; 32]));
        random_schedule((Kind::Ruled, seed), 3, 64, BlockHasher::new([2; 32]));
    }
}

#[test]
fn no_spare_block_is_enough_to_finish_everything() {
    for seed in 20_000..21_000 {
        random_schedule((Kind::Free, seed), 0, 8, BlockHasher::new([3; 32]));
        random_schedule((Kind::Ruled, seed), 0, 8, BlockHasher::new([3; 32]));
    }
}

#[test]
fn colliding_hashes_cost_only_misses() {
    for seed in 30_000..31_000 {
        random_schedule((Kind::Free, seed), 20, 12, BlockHasher::weakened(1));
        random_schedule((Kind::Free, seed), 20, 12, BlockHasher::weakened(0));
    }
}
