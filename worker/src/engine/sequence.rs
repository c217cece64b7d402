//! One request inside the engine: its tokens, its blocks, where its time went.
//!
//! Everything that belongs to a request lives here, under its id; nothing is
//! ever kept by batch row or slot.

use std::cmp::Reverse;
use std::time::Instant;

use super::blocks::{BlockHash, BlockHasher, BlockTable};
use crate::generation::{ClientId, FinishReason, Generation, SequenceId, SequenceTiming};
use crate::sampler::TokenCounts;

/// Place in the order of service: higher priority first, then older first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    priority: Reverse<i32>,
    pub(super) id: SequenceId,
}

impl Rank {
    pub(super) fn priority(self) -> i32 {
        self.priority.0
    }
}

#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    pub(super) client: ClientId,
    pub(super) generation: Generation,
    /// Prompt, resumed and generated ids.
    pub(super) tokens: Vec<u32>,
    /// Leading tokens whose KV is in `table`.
    pub(super) num_computed: usize,
    pub(super) table: BlockTable,
    /// What the penalties need to know of `tokens`.
    pub(super) counts: TokenCounts,
    /// Root hash of the salt.
    pub(super) owner: BlockHash,
    /// Of the whole blocks of `tokens`, as far as computed.
    hashes: Vec<BlockHash>,
    /// Next prompt position whose log-probability is to be reported.
    pub(super) next_prompt_logprob: usize,
    submitted_at: Instant,
    /// Resident for the first time.
    pub(super) was_admitted: bool,
    first_chunk_at: Option<Instant>,
    first_token_at: Option<Instant>,
    pub(super) cached_tokens: u32,
    pub(super) preemptions: u32,
}

impl Sequence {
    pub(super) fn new(
        id: SequenceId,
        client: ClientId,
        generation: Generation,
        owner: BlockHash,
        now: Instant,
    ) -> Self {
        let mut tokens = generation.prompt_token_ids.clone();
        tokens.extend_from_slice(&generation.resume_token_ids);
        let counts = TokenCounts::new(
            &generation.sampling,
            &generation.prompt_token_ids,
            &generation.resume_token_ids,
        );
        Self {
            id,
            client,
            generation,
            tokens,
            num_computed: 0,
            table: BlockTable::default(),
            counts,
            owner,
            hashes: Vec::new(),
            next_prompt_logprob: 1,
            submitted_at: now,
            was_admitted: false,
            first_chunk_at: None,
            first_token_at: None,
            cached_tokens: 0,
            preemptions: 0,
        }
    }

    pub(super) fn rank(&self) -> Rank {
        Rank { priority: Reverse(self.generation.priority), id: self.id }
    }

    /// Ids generated, resumed ones included.
    pub(super) fn num_generated(&self) -> u32 {
        u32::try_from(self.tokens.len() - self.generation.prompt_token_ids.len())
            .expect("bounded by max_new_tokens")
    }

    /// Tokens whose KV is still to be computed; one for a decode.
    pub(super) fn num_uncomputed(&self) -> usize {
        self.tokens.len() - self.num_computed
    }

    /// True when the only token to compute is one that this engine generated.
    pub(super) fn is_decode(&self) -> bool {
        self.num_uncomputed() == 1 && self.first_token_at.is_some()
    }

    /// First position whose logits are still wanted; every later one below the
    /// prompt's last is wanted as well. `None`: only the last token's.
    pub(super) fn first_prompt_logit(&self) -> Option<usize> {
        let wanted = self.generation.prompt_logprobs.is_some()
            && self.next_prompt_logprob < self.generation.prompt_token_ids.len();
        wanted.then(|| self.next_prompt_logprob - 1)
    }

    /// True when a token is to be drawn once the context is computed.
    pub(super) fn wants_token(&self) -> bool {
        self.num_generated() < self.generation.max_new_tokens
    }

    /// Hashes of the first `num_blocks` whole blocks; each is computed once.
    pub(super) fn hashes(
        &mut self,
        num_blocks: usize,
        block_size: usize,
        hasher: &BlockHasher,
    ) -> &[BlockHash] {
        while self.hashes.len() < num_blocks {
            let parent = self.hashes.last().copied().unwrap_or(self.owner);
            let start = self.hashes.len() * block_size;
            self.hashes.push(hasher.block(parent, &self.tokens[start..start + block_size]));
        }
        &self.hashes[..num_blocks]
    }

    /// Why the sequence has ended with what it has, if it has.
    pub(super) fn finished(&self, max_model_len: usize) -> Option<FinishReason> {
        let generated = self.num_generated();
        if generated > 0 && generated >= self.generation.min_new_tokens {
            let last = *self.tokens.last().expect("a prompt has at least one id");
            if self.generation.stop_token_ids.binary_search(&last).is_ok() {
                return Some(FinishReason::Stop(last));
            }
        }
        let full = !self.wants_token() || self.tokens.len() >= max_model_len;
        let prompt_reported = self.first_prompt_logit().is_none();
        (full && prompt_reported).then_some(FinishReason::Length)
    }

    pub(super) fn chunk_planned(&mut self, now: Instant) {
        self.first_chunk_at.get_or_insert(now);
    }

    pub(super) fn push_token(&mut self, token_id: u32, now: Instant) {
        self.tokens.push(token_id);
        self.counts.add_generated(token_id);
        self.first_token_at.get_or_insert(now);
    }

    pub(super) fn timing(&self, now: Instant) -> SequenceTiming {
        let first_chunk = self.first_chunk_at.unwrap_or(now);
        let first_token = self.first_token_at.unwrap_or(now);
        SequenceTiming {
            queue: first_chunk.saturating_duration_since(self.submitted_at),
            prefill: first_token.saturating_duration_since(first_chunk),
            decode: now.saturating_duration_since(first_token),
            prompt_tokens: u32::try_from(self.generation.prompt_token_ids.len())
                .expect("bounded by max_model_len"),
            cached_tokens: self.cached_tokens,
            generated_tokens: self.num_generated(),
            preemptions: self.preemptions,
        }
    }
}
