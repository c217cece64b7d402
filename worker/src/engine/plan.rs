//! What the next step computes: continuous batching with chunked prefill.
//!
//! Every decode gets its row in every step; what is left of the token budget
//! goes to prefill chunks, in order of rank (priority, then age), so a long
//! prompt costs the others a bounded step, never a wait. A mesh may ask for less
//! freedom ([`mesh::StepRules`]): steps of one kind, which then alternate; few
//! prompts at a time; chunks that begin at round positions.
//!
//! Progress: blocks for a whole context are taken at admission, so only decodes
//! ask for more; a decode that finds none takes them from a lower rank, or
//! waits for a higher one. The highest rank is never the one to wait, and alone
//! it fits by [`EngineState::submit`]'s contract: no schedule is stuck.

use std::time::Instant;

use super::batch::{Chunk, StepPlan};
use super::blocks::BlockTable;
use super::chunk::{self, ChunkLimits};
use super::sequence::{Rank, Sequence};
use super::state::EngineState;
use crate::generation::{Event, FinishReason};

/// Prefills ahead of a sequence.
#[derive(Debug)]
struct Backlog {
    sequences: usize,
    tokens: usize,
}

/// What is left of a step.
#[derive(Debug)]
struct Budget {
    prefill_tokens: usize,
    /// Sequences that may still prefill.
    prefill_seqs: usize,
    logit_rows: usize,
    prefills: bool,
    decodes: bool,
}

impl EngineState {
    /// Ends what has passed its deadline, admits, pre-empts, and says what to
    /// compute. An empty plan means that nothing can be done now.
    pub fn plan(&mut self, now: Instant) -> StepPlan {
        self.expire(now);
        self.admit();
        let mut budget = self.budget();
        let mut plan = self.plan_within(&mut budget, now);
        if plan.is_empty() && !budget.prefills {
            // Every decode waits for blocks that prefills of higher rank hold.
            (budget.prefills, budget.decodes) = (true, false);
            plan = self.plan_within(&mut budget, now);
        }
        self.last_was_prefill = plan.prefill_tokens > 0;
        plan.batch.choices = self.choices(&plan);
        plan
    }

    fn plan_within(&mut self, budget: &mut Budget, now: Instant) -> StepPlan {
        let mut plan = StepPlan::default();
        // A copy, since planning one may pre-empt another of lower rank.
        for rank in self.running.iter().copied().collect::<Vec<_>>() {
            if self.is_runnable(rank) {
                self.plan_sequence(rank, budget, &mut plan, now);
            }
        }
        plan
    }

    fn expire(&mut self, now: Instant) {
        let expired = self.sequences.values().filter(|sequence| {
            sequence.generation.deadline.is_some_and(|deadline| deadline <= now)
        });
        for id in expired.map(|sequence| sequence.id).collect::<Vec<_>>() {
            self.finish(id, FinishReason::Deadline, now);
        }
    }

    fn sequence(&self, rank: Rank) -> &Sequence {
        &self.sequences[&rank.id]
    }

    fn is_paused(&self, rank: Rank) -> bool {
        !self.paused.is_empty() && self.paused.contains(&self.sequence(rank).client)
    }

    fn is_runnable(&self, rank: Rank) -> bool {
        self.running.contains(&rank) && !self.is_paused(rank)
    }

    fn num_decodes(&self) -> usize {
        let decodes = |rank: &&Rank| !self.is_paused(**rank) && self.sequence(**rank).is_decode();
        self.running.iter().filter(decodes).count()
    }

    fn prefill_budget(&self) -> usize {
        let tokens = self.config.max_num_batched_tokens;
        let mixes = self.config.rules.mixes_prefill_with_decode;
        if mixes { tokens - self.num_decodes() } else { tokens }
    }

    fn max_prefill_seqs(&self) -> usize {
        self.config.rules.max_prefill_seqs.unwrap_or(usize::MAX)
    }

    fn budget(&self) -> Budget {
        let mut budget = Budget {
            prefill_tokens: self.prefill_budget(),
            prefill_seqs: self.max_prefill_seqs(),
            logit_rows: self.config.max_logit_rows,
            prefills: true,
            decodes: true,
        };
        let num_decodes = self.num_decodes();
        if !self.config.rules.mixes_prefill_with_decode {
            let prefill = |rank: &Rank| !self.is_paused(*rank) && !self.sequence(*rank).is_decode();
            let any_prefill = self.running.iter().any(prefill);
            budget.decodes = num_decodes > 0 && (self.last_was_prefill || !any_prefill);
            budget.prefills = !budget.decodes;
        }
        if budget.decodes {
            // Decodes have their rows whatever else is in the step.
            budget.logit_rows -= num_decodes;
        }
        budget
    }

    // ------------------------------------------------------------ admission

    fn admit(&mut self) {
        loop {
            let head = self.waiting.iter().copied().find(|rank| !self.is_paused(*rank));
            let Some(rank) = head else { return };
            // No sooner than it would get tokens: until then it would only
            // hold blocks, and may yet find more of its prompt in the cache.
            let Backlog { sequences, tokens } = self.prefill_backlog(rank);
            let is_next = sequences < self.max_prefill_seqs() && tokens < self.prefill_budget();
            if !is_next || !self.try_admit(rank) {
                return;
            }
        }
    }

    /// Prefills that come before that of `rank`.
    fn prefill_backlog(&self, rank: Rank) -> Backlog {
        let mut backlog = Backlog { sequences: 0, tokens: 0 };
        for before in self.running.range(..rank).filter(|before| !self.is_paused(**before)) {
            let sequence = self.sequence(*before);
            if !sequence.is_decode() {
                backlog.sequences += 1;
                backlog.tokens += sequence.num_uncomputed();
            }
        }
        backlog
    }

    /// Gives the sequence a place and blocks for its whole context, from lower
    /// priorities if need be. False, and nothing lost, when there is no room.
    fn try_admit(&mut self, rank: Rank) -> bool {
        let mut table = self.find_prefix(rank);
        let context = self.sequence(rank).tokens.len();
        let needed = context.div_ceil(self.config.kv_block_size) - table.blocks().len();
        let Some(victims) = self.victims_for_admission(rank, needed) else {
            self.pool.release(table);
            return false;
        };
        for victim in victims {
            self.preempt(victim);
        }
        let owner = self.sequence(rank).owner;
        for _ in 0..needed {
            let grown = self.pool.grow(&mut table, owner);
            assert!(grown, "victims_for_admission counted the blocks");
        }
        self.make_resident(rank, table);
        true
    }

    /// The part of the context that is in the cache, as far as the mesh can go on
    /// from it. Never all of it: the last token's logits must be computed.
    fn find_prefix(&mut self, rank: Rank) -> BlockTable {
        let granularity = self.config.prefix_granularity();
        let block_size = self.config.kv_block_size;
        let sequence = self.sequences.get_mut(&rank.id).expect("ranked sequences exist");
        if !self.config.prefix_cache || sequence.first_prompt_logit().is_some() {
            return BlockTable::default();
        }
        let max_blocks = (sequence.tokens.len() - 1) / block_size;
        let hashes = sequence.hashes(max_blocks, block_size, &self.hasher).to_vec();
        let mut acquire = |num_blocks: usize| {
            let chunks = sequence.tokens.chunks_exact(block_size);
            self.pool.acquire(&sequence.generation.cache_salt, &hashes[..num_blocks], chunks)
        };
        let table = acquire(hashes.len());
        let num_usable = table.num_known() - table.num_known() % granularity;
        if num_usable == table.num_known() {
            return table;
        }
        // The first blocks are held twice for a moment, lest they be forgotten.
        let usable = acquire(num_usable);
        self.pool.release(table);
        usable
    }

    /// Running sequences of strictly lower priority to pre-empt so that a place
    /// and `needed` blocks are there; none if they are there anyway.
    fn victims_for_admission(&self, rank: Rank, needed: usize) -> Option<Vec<Rank>> {
        let mut victims = Vec::new();
        let mut available = self.pool.num_available();
        let mut num_running = self.running.len();
        let mut candidates = self.running.iter().rev();
        // One block ahead for each that runs, lest the newcomer's blocks be
        // taken away again at their next block boundary.
        while num_running == self.config.max_num_seqs || available < needed + num_running {
            let victim = candidates.next().filter(|last| last.priority() < rank.priority())?;
            available += self.pool.num_exclusive(&self.sequence(*victim).table);
            num_running -= 1;
            victims.push(*victim);
        }
        Some(victims)
    }

    fn make_resident(&mut self, rank: Rank, table: BlockTable) {
        let num_cached = table.num_known() * self.config.kv_block_size;
        let sequence = self.sequences.get_mut(&rank.id).expect("ranked sequences exist");
        sequence.table = table;
        sequence.num_computed = num_cached;
        self.waiting.remove(&rank);
        self.running.insert(rank);
        self.totals.cached_tokens += num_cached as u64;
        if !sequence.was_admitted {
            sequence.was_admitted = true;
            let in_prompt = num_cached.min(sequence.generation.prompt_token_ids.len());
            let cached_tokens = u32::try_from(in_prompt).expect("bounded by max_model_len");
            sequence.cached_tokens = cached_tokens;
            let client = sequence.client;
            self.emit(client, Event::Admitted { sequence: rank.id, cached_tokens });
        }
    }

    /// Takes place and blocks away; the sequence waits to be computed again.
    fn preempt(&mut self, rank: Rank) {
        let sequence = self.sequences.get_mut(&rank.id).expect("ranked sequences exist");
        sequence.num_computed = 0;
        sequence.preemptions += 1;
        let table = std::mem::take(&mut sequence.table);
        self.pool.release(table);
        self.running.remove(&rank);
        self.waiting.insert(rank);
        self.totals.preemptions += 1;
    }

    // ------------------------------------------------------------ the step

    fn plan_sequence(
        &mut self,
        rank: Rank,
        budget: &mut Budget,
        plan: &mut StepPlan,
        now: Instant,
    ) {
        let sequence = self.sequence(rank);
        let is_decode = sequence.is_decode();
        let num_tokens = if is_decode {
            usize::from(budget.decodes)
        } else if budget.prefills {
            self.take_chunk(sequence, budget)
        } else {
            0
        };
        if num_tokens == 0 || !self.cover(rank, num_tokens) {
            return;
        }
        let sequence = self.sequences.get_mut(&rank.id).expect("ranked sequences exist");
        sequence.chunk_planned(now);
        let first_position = sequence.num_computed;
        let end = first_position + num_tokens;
        plan.push(&Chunk {
            id: rank.id,
            tokens: &sequence.tokens[first_position..end],
            first_position,
            block_table: sequence.table.blocks(),
            prompt_logits: chunk::prompt_logits(sequence, end),
            samples: end == sequence.tokens.len() && sequence.wants_token(),
        });
        let counted = if is_decode { &mut plan.decode_tokens } else { &mut plan.prefill_tokens };
        *counted += u32::try_from(num_tokens).expect("bounded by max_num_batched_tokens");
    }

    /// Tokens of the sequence's next chunk, taken from the budget.
    fn take_chunk(&self, sequence: &Sequence, budget: &mut Budget) -> usize {
        if budget.prefill_seqs == 0 {
            return 0;
        }
        let chunk = chunk::within(
            sequence,
            &ChunkLimits {
                max_tokens: budget.prefill_tokens,
                max_logit_rows: budget.logit_rows,
                rules: &self.config.rules,
            },
        );
        if chunk.num_tokens > 0 {
            budget.prefill_seqs -= 1;
        }
        budget.prefill_tokens -= chunk.num_tokens;
        budget.logit_rows -= chunk.logit_rows;
        chunk.num_tokens
    }

    /// Makes the table cover `num_tokens` more positions. False when a higher
    /// rank holds the blocks that would be needed.
    fn cover(&mut self, rank: Rank, num_tokens: usize) -> bool {
        loop {
            let owner = self.sequence(rank).owner;
            let sequence = self.sequences.get_mut(&rank.id).expect("ranked sequences exist");
            let covered = sequence.table.blocks().len() * self.config.kv_block_size;
            if covered >= sequence.num_computed + num_tokens {
                return true;
            }
            if self.pool.grow(&mut sequence.table, owner) {
                continue;
            }
            // Those of paused clients first: they would not use theirs. Neither
            // they nor lower ranks are in the plan yet.
            let paused = self.running.iter().rev().copied().find(|other| self.is_paused(*other));
            let lowest = self.running.last().copied().filter(|last| *last > rank);
            let Some(victim) = paused.or(lowest) else { return false };
            self.preempt(victim);
        }
    }
}
