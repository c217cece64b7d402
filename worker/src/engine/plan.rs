//! What the next step computes: continuous batching with chunked prefill.
//!
//! Every decode gets its row in every step; what is left of the token budget
//! goes to prefill chunks, in order of rank (priority, then age), so a long
//! prompt costs the others a bounded step, never a wait.
//!
//! Progress: blocks for a whole context are taken at admission, so only decodes
//! ask for more; a decode that finds none takes them from a lower rank, or
//! waits for a higher one. The highest rank is never the one to wait, and alone
//! it fits by [`EngineState::submit`]'s contract: no schedule is stuck.

use std::time::Instant;

use super::batch::{Chunk, StepPlan};
use super::blocks::BlockTable;
use super::sequence::{Rank, Sequence};
use super::state::EngineState;
use crate::generation::{Event, FinishReason};

/// What is left of a step.
#[derive(Debug)]
struct Budget {
    prefill_tokens: usize,
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
        if self.config.prefill_with_decode { tokens - self.num_decodes() } else { tokens }
    }

    fn budget(&self) -> Budget {
        let mut budget = Budget {
            prefill_tokens: self.prefill_budget(),
            logit_rows: self.config.max_logit_rows,
            prefills: true,
            decodes: true,
        };
        let num_decodes = self.num_decodes();
        if !self.config.prefill_with_decode {
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
            if self.prefill_backlog(rank) >= self.prefill_budget() || !self.try_admit(rank) {
                return;
            }
        }
    }

    /// Prefill tokens that come before those of `rank`.
    fn prefill_backlog(&self, rank: Rank) -> usize {
        let before = self.running.range(..rank).filter(|before| !self.is_paused(**before));
        before
            .map(|before| self.sequence(*before))
            .filter(|sequence| !sequence.is_decode())
            .map(Sequence::num_uncomputed)
            .sum()
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

    /// The part of the context that is in the cache. Never all of it: the last
    /// token's logits must be computed.
    fn find_prefix(&mut self, rank: Rank) -> BlockTable {
        let block_size = self.config.kv_block_size;
        let sequence = self.sequences.get_mut(&rank.id).expect("ranked sequences exist");
        if !self.config.prefix_cache || sequence.first_prompt_logit().is_some() {
            return BlockTable::default();
        }
        let max_blocks = (sequence.tokens.len() - 1) / block_size;
        let hashes = sequence.hashes(max_blocks, block_size, &self.hasher).to_vec();
        let chunks = sequence.tokens.chunks_exact(block_size);
        self.pool.acquire(&sequence.generation.cache_salt, &hashes, chunks)
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
            let (num_tokens, logit_rows) =
                chunk_within(sequence, budget.prefill_tokens, budget.logit_rows);
            budget.prefill_tokens -= num_tokens;
            budget.logit_rows -= logit_rows;
            num_tokens
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
            prompt_logits: prompt_logits(sequence, end),
            samples: end == sequence.tokens.len() && sequence.wants_token(),
        });
        let counted = if is_decode { &mut plan.decode_tokens } else { &mut plan.prefill_tokens };
        *counted += u32::try_from(num_tokens).expect("bounded by max_num_batched_tokens");
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

/// Positions of a chunk ending before `end` whose logits are wanted for the
/// prompt; empty ranges start at the prompt's first.
fn prompt_logits(sequence: &Sequence, end: usize) -> std::ops::Range<usize> {
    let Some(first) = sequence.first_prompt_logit() else { return 0..0 };
    let first = first.max(sequence.num_computed);
    let end = end.min(sequence.generation.prompt_token_ids.len() - 1);
    if first < end { first..end } else { 0..0 }
}

/// The longest chunk within a budget of tokens and rows of logits, and the rows
/// that it takes.
fn chunk_within(sequence: &Sequence, max_tokens: usize, max_rows: usize) -> (usize, usize) {
    let start = sequence.num_computed;
    let mut num_tokens = sequence.num_uncomputed().min(max_tokens);
    if let Some(first) = sequence.first_prompt_logit() {
        num_tokens = num_tokens.min(first.max(start) + max_rows - start);
    }
    let rows = |num_tokens: usize| {
        let samples = num_tokens == sequence.num_uncomputed() && sequence.wants_token();
        prompt_logits(sequence, start + num_tokens).len() + usize::from(samples)
    };
    // The last token's own row may be the one too many.
    if num_tokens > 0 && rows(num_tokens) > max_rows {
        num_tokens -= 1;
    }
    (num_tokens, if num_tokens == 0 { 0 } else { rows(num_tokens) })
}
