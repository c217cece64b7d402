//! A model whose logits are a pure function of what is visible through the
//! block table.
//!
//! Its "KV cache" holds the token ids themselves. Wrong block handling (a block
//! shared and written, read before it was written, given to two) shows as
//! other tokens than [`answer`]'s, which knows no blocks.

use mesh::{Choice, MeshError, StepBatch, StepOutput};

use super::step::Forward;
use crate::generation::{FinishReason, Generation};
use crate::sampler::{SampleContext, Scratch, TokenCounts, sample};

pub(crate) const VOCAB_SIZE: usize = 24;

/// Stands for memory that nobody may read.
const POISON: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct FakeModel {
    block_size: usize,
    /// `[num_blocks * block_size]` token ids.
    cache: Vec<u32>,
    /// Steps so far, failed ones included.
    pub(crate) num_steps: u64,
    /// Panics when a batch holds this token.
    pub(crate) poison_token: Option<u32>,
    /// Rows of sequences that begin with this token are not finite.
    pub(crate) nan_after: Option<u32>,
    /// The device fails at this step.
    pub(crate) fails_at: Option<u64>,
    /// Tokens chosen here instead of by the host.
    pub(crate) num_chosen: u64,
}

impl FakeModel {
    pub(crate) fn new(num_blocks: usize, block_size: usize) -> Self {
        Self {
            block_size,
            cache: vec![POISON; num_blocks * block_size],
            num_steps: 0,
            poison_token: None,
            nan_after: None,
            fails_at: None,
            num_chosen: 0,
        }
    }

    /// Makes the content of blocks unreadable.
    pub(crate) fn poison(&mut self, blocks: &[u32]) {
        for &block in blocks {
            let start = block as usize * self.block_size;
            self.cache[start..start + self.block_size].fill(POISON);
        }
    }

    fn slot(&self, block_table: &[u32], position: usize) -> usize {
        block_table[position / self.block_size] as usize * self.block_size
            + position % self.block_size
    }

    fn write(&mut self, batch: &StepBatch) {
        let mut written = std::collections::HashSet::new();
        for slice in &batch.sequences {
            for i in 0..slice.num_tokens {
                let slot = self.slot(&slice.block_table, slice.first_position + i);
                assert!(written.insert(slot), "slot {slot} is written twice in a step");
                self.cache[slot] = batch.token_ids[slice.first_row + i];
            }
        }
        for slice in &batch.sequences {
            // Whole blocks of other sequences may be read, not written.
            let first_block = slice.first_position / self.block_size;
            let last_block = (slice.first_position + slice.num_tokens - 1) / self.block_size;
            for block in &slice.block_table[first_block..=last_block] {
                let users =
                    batch.sequences.iter().filter(|other| other.block_table.contains(block));
                assert_eq!(users.count(), 1, "block {block} is shared and written");
            }
        }
    }

    fn visible(&self, block_table: &[u32], position: usize) -> Vec<u32> {
        let tokens: Vec<u32> =
            (0..=position).map(|p| self.cache[self.slot(block_table, p)]).collect();
        assert!(!tokens.contains(&POISON), "a position is read that was never written");
        tokens
    }
}

impl Forward for FakeModel {
    fn forward(&mut self, batch: &StepBatch, out: &mut StepOutput) -> Result<(), MeshError> {
        self.num_steps += 1;
        out.clear();
        let logits = &mut out.logits;
        if self.fails_at.is_some_and(|step| self.num_steps >= step) {
            return Err(MeshError::Device("hang up".to_owned()));
        }
        self.write(batch);
        if let Some(token) = self.poison_token {
            assert!(!batch.token_ids.contains(&token), "poisoned token");
        }
        for (idx, &row) in batch.logit_rows.iter().enumerate() {
            let slice = batch.sequences.iter().rfind(|slice| slice.first_row <= row).unwrap();
            let position = slice.first_position + row - slice.first_row;
            let visible = self.visible(&slice.block_table, position);
            if let Some(choices) = &batch.choices {
                self.num_chosen += 1;
                out.token_ids.push(chosen_after(&visible, &choices[idx]));
                continue;
            }
            let start = logits.len();
            logits.extend(logits_after(&visible));
            if self.nan_after == Some(visible[0]) {
                logits[start + 3] = f32::NAN;
            }
        }
        Ok(())
    }

    fn vocab_size(&self) -> usize {
        VOCAB_SIZE
    }
}

/// `[VOCAB_SIZE]`, of any token history.
pub(crate) fn logits_after(tokens: &[u32]) -> [f32; VOCAB_SIZE] {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for &token in tokens {
        hash = (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    }
    std::array::from_fn(|_| {
        hash = hash.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (hash >> 40) as f32 / (1u64 << 24) as f32 * 6.0
    })
}

/// Ids by falling logit, the lowest first on a tie.
pub(crate) fn by_logit(tokens: &[u32]) -> Vec<u32> {
    let logits = logits_after(tokens);
    let mut ids: Vec<u32> = (0..VOCAB_SIZE as u32).collect();
    ids.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
    ids
}

/// What the fake mesh chooses: never what the host would have drawn.
fn chosen_after(tokens: &[u32], choice: &Choice) -> u32 {
    let ids = by_logit(tokens);
    match *choice {
        Choice::Greedy => ids[0],
        Choice::Sampled { temperature, top_k, top_p, seed } => {
            assert!(temperature > 0.0 && top_p > 0.0);
            assert!((1..=mesh::MAX_CANDIDATES).contains(&top_k));
            ids[(seed % u64::from(top_k)) as usize]
        }
    }
}

/// What a generation must come to, without an engine.
pub(crate) fn answer(generation: &Generation, max_model_len: usize) -> (Vec<u32>, FinishReason) {
    let mut tokens = generation.prompt_token_ids.clone();
    tokens.extend(&generation.resume_token_ids);
    let mut answer = generation.resume_token_ids.clone();
    loop {
        let is_stop = |token: &&u32| generation.stop_token_ids.contains(token);
        let long_enough = answer.len() >= generation.min_new_tokens as usize;
        if let Some(&stop) = answer.last().filter(is_stop).filter(|_| long_enough) {
            return (answer, FinishReason::Stop(stop));
        }
        if answer.len() >= generation.max_new_tokens as usize || tokens.len() >= max_model_len {
            return (answer, FinishReason::Length);
        }
        let counts = TokenCounts::new(&generation.sampling, &generation.prompt_token_ids, &answer);
        let context = SampleContext {
            sampling: &generation.sampling,
            counts: &counts,
            index: answer.len() as u32,
            banned: if long_enough { &[] } else { &generation.stop_token_ids },
            fallback: generation.stop_token_ids.first().copied().unwrap_or(0),
            logprobs: None,
        };
        let sampled =
            sample(&mut logits_after(&tokens), &context, &mut Scratch::default()).unwrap();
        answer.push(sampled.token_id);
        tokens.push(sampled.token_id);
    }
}
