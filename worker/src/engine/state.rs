//! Pure state machine of the engine's sequences: no clock, no channel, no
//! randomness, no mesh. Times go in, events come out; the same calls give the
//! same results.
//!
//! A sequence is *waiting* (holds nothing) or *running* (holds KV blocks for
//! its whole context and one of `max_num_seqs` places). What a step computes is
//! decided in `plan`.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Instant;

use mesh::StepRules;

use super::batch::StepPlan;
use super::blocks::{BlockHasher, BlockPool, CacheEvents, PublishedBlock};
use super::sequence::{Rank, Sequence};
use crate::generation::{ClientId, Event, FinishReason, Generation, Load, Logprobs, SequenceId};
use crate::sampler::{SampleContext, Sampled};

/// Limits that the engine plans within.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineConfig {
    /// Most sequences resident.
    pub max_num_seqs: usize,
    /// Most tokens computed in one step; at least `max_num_seqs`.
    pub max_num_batched_tokens: usize,
    /// Most tokens of one sequence, prompt and answer together.
    pub max_model_len: usize,
    /// KV blocks of the mesh.
    pub num_kv_blocks: usize,
    /// Positions in a block.
    pub kv_block_size: usize,
    /// Most rows of logits in one step; at least `max_num_seqs`, and as many as
    /// the shortest chunk has tokens. Bounds the memory that prompt
    /// log-probabilities take.
    pub max_logit_rows: usize,
    /// Find blocks again by content.
    pub prefix_cache: bool,
    /// What the mesh asks of its steps. Where prefill chunks and decodes may
    /// not share a step, steps of either kind alternate.
    pub rules: StepRules,
}

impl EngineConfig {
    /// Most blocks that `generation` can come to hold.
    pub fn blocks_needed(&self, generation: &Generation) -> usize {
        let answer = generation.max_new_tokens as usize;
        let tokens = generation.prompt_token_ids.len().saturating_add(answer);
        tokens.min(self.max_model_len).div_ceil(self.kv_block_size)
    }

    /// The shortest chunk must fit beside all decodes that may come with it.
    fn assert_rules_leave_room(&self) {
        let StepRules { prefill_multiple, .. } = self.rules;
        assert!(prefill_multiple > 0 && self.rules.max_prefill_seqs != Some(0));
        assert!(self.rules.max_prefill_chunk.is_none_or(|most| most >= prefill_multiple));
        assert!(self.rules.decode_rows.is_none_or(|rows| rows >= self.max_num_seqs));
        let decodes = if self.rules.mixes_prefill_with_decode { self.max_num_seqs - 1 } else { 0 };
        assert!(self.max_num_batched_tokens >= prefill_multiple + decodes);
        assert!(self.max_logit_rows >= prefill_multiple + decodes);
    }

    /// Blocks after which a prompt found in the cache may go on: a chunk begins
    /// at a multiple of both the block and `prefill_multiple`.
    pub(super) fn prefix_granularity(&self) -> usize {
        let (mut a, mut b) = (self.kv_block_size, self.rules.prefill_multiple);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        self.rules.prefill_multiple / a
    }
}

/// Work since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Sequences submitted.
    pub submitted: u64,
    /// Sequences ended, for whatever reason.
    pub finished: u64,
    /// Context tokens whose KV was found instead of computed.
    pub cached_tokens: u64,
    /// Tokens computed in prefill chunks, recomputation included.
    pub prefill_tokens: u64,
    /// Tokens computed as decodes.
    pub decode_tokens: u64,
    /// Times a sequence lost its blocks.
    pub preemptions: u64,
}

/// What a step found out about one planned sequence.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Its tokens are computed.
    Computed {
        /// One for each row of logits that was wanted for the prompt.
        prompt_logprobs: Vec<Logprobs>,
        /// If a token was to be drawn.
        sampled: Option<Sampled>,
    },
    /// It can't go on.
    Failed(FinishReason),
}

impl Outcome {
    /// Of a sequence whose token the mesh chose, if one was to be.
    pub(super) fn chosen(token_id: Option<u32>) -> Self {
        let sampled = token_id.map(|token_id| Sampled { token_id, logprobs: None });
        Self::Computed { prompt_logprobs: Vec::new(), sampled }
    }
}

/// All sequences and blocks.
#[derive(Debug)]
pub struct EngineState {
    pub(super) config: EngineConfig,
    pub(super) hasher: BlockHasher,
    pub(super) pool: BlockPool,
    pub(super) sequences: BTreeMap<SequenceId, Sequence>,
    pub(super) waiting: BTreeSet<Rank>,
    pub(super) running: BTreeSet<Rank>,
    pub(super) paused: HashSet<ClientId>,
    /// Whether the last step held prefill chunks, for meshes that alternate.
    pub(super) last_was_prefill: bool,
    pub(super) totals: Totals,
    events: Vec<(ClientId, Event)>,
}

impl EngineState {
    /// Nothing to do yet.
    ///
    /// # Panics
    /// When a limit is zero, when a step has no room for one token and one row of
    /// logits of every resident sequence, or when the mesh's rules leave no room
    /// for a chunk of a prompt or for the decodes.
    pub fn new(config: EngineConfig, hasher: BlockHasher) -> Self {
        assert!(config.max_num_seqs > 0 && config.max_model_len > 0 && config.kv_block_size > 0);
        assert!(config.num_kv_blocks > 0);
        assert!(config.max_num_batched_tokens >= config.max_num_seqs);
        assert!(config.max_logit_rows >= config.max_num_seqs);
        config.assert_rules_leave_room();
        Self {
            config,
            hasher,
            pool: BlockPool::new(config.num_kv_blocks),
            sequences: BTreeMap::new(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            paused: HashSet::new(),
            last_was_prefill: false,
            totals: Totals::default(),
            events: Vec::new(),
        }
    }

    /// Takes a checked request in. Ids must grow in order of arrival.
    ///
    /// # Panics
    /// When the request is one that could never run: no prompt, longer than
    /// `max_model_len`, or needing more blocks than there are.
    pub fn submit(
        &mut self,
        id: SequenceId,
        client: ClientId,
        generation: Generation,
        now: Instant,
    ) {
        let num_tokens = generation.prompt_token_ids.len() + generation.resume_token_ids.len();
        assert!(!generation.prompt_token_ids.is_empty(), "a prompt has at least one id");
        assert!(num_tokens <= self.config.max_model_len, "longer than max_model_len");
        assert!(self.config.blocks_needed(&generation) <= self.config.num_kv_blocks, "never fits");
        debug_assert!(generation.stop_token_ids.is_sorted());
        let owner = self.hasher.root(&generation.cache_salt);
        let sequence = Sequence::new(id, client, generation, owner, now);
        let finished = sequence.finished(self.config.max_model_len);
        self.waiting.insert(sequence.rank());
        let previous = self.sequences.insert(id, sequence);
        assert!(previous.is_none(), "sequence ids are never reused");
        self.totals.submitted += 1;
        if let Some(reason) = finished {
            self.finish(id, reason, now);
        }
    }

    /// Ends a sequence, if it still is; its blocks are free at once.
    pub fn cancel(&mut self, id: SequenceId, now: Instant) {
        self.finish(id, FinishReason::Cancelled, now);
    }

    /// Ends all sequences of a client, and forgets it.
    pub fn cancel_client(&mut self, client: ClientId, now: Instant) {
        let of_client = self.sequences.values().filter(|sequence| sequence.client == client);
        for id in of_client.map(|sequence| sequence.id).collect::<Vec<_>>() {
            self.cancel(id, now);
        }
        self.paused.remove(&client);
    }

    /// Ends all sequences for one reason; returns how many.
    pub fn finish_all(&mut self, reason: &FinishReason, now: Instant) -> u32 {
        let ids: Vec<SequenceId> = self.sequences.keys().copied().collect();
        for id in &ids {
            self.finish(*id, reason.clone(), now);
        }
        u32::try_from(ids.len()).unwrap_or(u32::MAX)
    }

    /// While paused, a client's sequences are not planned.
    pub fn set_paused(&mut self, client: ClientId, paused: bool) {
        if paused {
            self.paused.insert(client);
        } else {
            self.paused.remove(&client);
        }
    }

    /// What a planned sequence's next token depends on beside the logits.
    ///
    /// # Panics
    /// When there is no such sequence.
    pub fn sample_context(&self, id: SequenceId) -> SampleContext<'_> {
        let sequence = &self.sequences[&id];
        let generation = &sequence.generation;
        let index = sequence.num_generated();
        let too_early = index < generation.min_new_tokens;
        SampleContext {
            sampling: &generation.sampling,
            counts: &sequence.counts,
            index,
            banned: if too_early { &generation.stop_token_ids } else { &[] },
            fallback: generation.stop_token_ids.first().copied().unwrap_or(0),
            logprobs: generation.logprobs,
        }
    }

    /// The prompt tokens from `first` on, and how many alternatives to report
    /// beside each.
    ///
    /// # Panics
    /// When there is no such sequence.
    pub fn prompt_from(&self, id: SequenceId, first: usize) -> (&[u32], u32) {
        let generation = &self.sequences[&id].generation;
        (&generation.prompt_token_ids[first..], generation.prompt_logprobs.unwrap_or(0))
    }

    /// Takes in what a planned step computed; `outcomes` lie beside
    /// `plan.work`. Sequences that ended meanwhile are passed over.
    pub fn apply(&mut self, plan: &StepPlan, outcomes: Vec<Outcome>, now: Instant) {
        assert_eq!(plan.work.len(), outcomes.len());
        self.totals.prefill_tokens += u64::from(plan.prefill_tokens);
        self.totals.decode_tokens += u64::from(plan.decode_tokens);
        for (work, outcome) in plan.work.iter().zip(outcomes) {
            let Some(sequence) = self.sequences.get_mut(&work.id) else { continue };
            match outcome {
                Outcome::Failed(reason) => {
                    // Whatever went wrong may lie in the KV: nobody else is to
                    // find it.
                    self.pool.distrust(&sequence.table);
                    self.finish(work.id, reason, now);
                }
                Outcome::Computed { prompt_logprobs, sampled } => {
                    sequence.num_computed += work.num_tokens;
                    self.publish(work.id);
                    self.report(work.id, prompt_logprobs, sampled, now);
                }
            }
        }
    }

    /// Offers the sequence's newly full blocks to the prefix cache.
    fn publish(&mut self, id: SequenceId) {
        if !self.config.prefix_cache {
            return;
        }
        let block_size = self.config.kv_block_size;
        let sequence = self.sequences.get_mut(&id).expect("just applied");
        let num_full = sequence.num_computed / block_size;
        sequence.hashes(num_full, block_size, &self.hasher);
        for idx in sequence.table.num_known()..num_full {
            let hash = sequence.hashes(idx + 1, block_size, &self.hasher)[idx];
            let block = PublishedBlock {
                hash,
                tokens: &sequence.tokens[idx * block_size..(idx + 1) * block_size],
                salt: &sequence.generation.cache_salt,
                owner: sequence.owner,
            };
            self.pool.publish(&mut sequence.table, block);
        }
    }

    fn report(
        &mut self,
        id: SequenceId,
        prompt_logprobs: Vec<Logprobs>,
        sampled: Option<Sampled>,
        now: Instant,
    ) {
        let sequence = self.sequences.get_mut(&id).expect("just applied");
        if !prompt_logprobs.is_empty() {
            let first_position = u32::try_from(sequence.next_prompt_logprob)
                .expect("positions are below max_model_len");
            sequence.next_prompt_logprob += prompt_logprobs.len();
            let event =
                Event::PromptLogprobs { sequence: id, first_position, tokens: prompt_logprobs };
            self.events.push((sequence.client, event));
        }
        if let Some(Sampled { token_id, logprobs }) = sampled {
            sequence.push_token(token_id, now);
            self.events.push((sequence.client, Event::Token { sequence: id, token_id, logprobs }));
        }
        // Only a whole context can be at its end.
        if sequence.num_uncomputed() <= 1
            && let Some(reason) = sequence.finished(self.config.max_model_len)
        {
            self.finish(id, reason, now);
        }
    }

    /// Ends a sequence that still is.
    pub(super) fn finish(&mut self, id: SequenceId, reason: FinishReason, now: Instant) {
        let Some(sequence) = self.sequences.remove(&id) else { return };
        let rank = sequence.rank();
        self.waiting.remove(&rank);
        self.running.remove(&rank);
        let timing = sequence.timing(now);
        self.pool.release(sequence.table);
        self.totals.finished += 1;
        self.events.push((sequence.client, Event::Finished { sequence: id, reason, timing }));
    }

    pub(super) fn emit(&mut self, client: ClientId, event: Event) {
        self.events.push((client, event));
    }

    /// Events since the last call, in order.
    pub fn take_events(&mut self) -> Vec<(ClientId, Event)> {
        std::mem::take(&mut self.events)
    }

    /// Changes of the prefix cache since the last call.
    pub fn take_cache_events(&mut self) -> CacheEvents {
        self.pool.take_events()
    }

    /// How full it is.
    pub fn load(&self) -> Load {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Load {
            running: count(self.running.len()),
            waiting: count(self.waiting.len()),
            kv_blocks_used: count(self.pool.num_total() - self.pool.num_available()),
            kv_blocks_total: count(self.pool.num_total()),
        }
    }

    /// Work since the start.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// True when no sequence is left.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// The earliest deadline.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.sequences.values().filter_map(|sequence| sequence.generation.deadline).min()
    }

    /// Verifies the invariants that tie sequences and blocks together.
    ///
    /// # Panics
    /// When one does not hold.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        self.pool.check(self.sequences.values().map(|sequence| &sequence.table));
        assert_eq!(self.waiting.len() + self.running.len(), self.sequences.len());
        assert!(self.running.len() <= self.config.max_num_seqs);
        for sequence in self.sequences.values() {
            let covered = sequence.table.blocks().len() * self.config.kv_block_size;
            assert!(sequence.num_computed < sequence.tokens.len());
            if self.waiting.contains(&sequence.rank()) {
                assert_eq!((covered, sequence.num_computed), (0, 0));
            } else {
                assert!(self.running.contains(&sequence.rank()));
                assert!(sequence.num_computed <= covered);
            }
        }
    }
}

#[cfg(test)]
mod tests;
