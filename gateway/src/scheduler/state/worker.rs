//! One worker as the scheduler sees it: what it holds and what it still takes.

use std::collections::HashMap;

use super::super::credit::CreditLedger;
use super::super::sequence::{Load, Sequence, SequenceId, SequenceSpec, WorkerId};
use super::WorkerProfile;
use crate::routing::Candidate;

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) epoch: u32,
    pub(super) profile: WorkerProfile,
    pub(super) credit: CreditLedger,
    pub(super) next_key: u32,
    pub(super) running: HashMap<u32, SequenceId>,
    pub(super) is_draining: bool,
    pub(super) load: Load,
}

impl Worker {
    /// Whether it could take the sequence if it were empty.
    pub(super) fn could_take(&self, spec: &SequenceSpec) -> bool {
        !self.is_draining
            && spec.max_tokens() <= self.profile.max_sequence_tokens()
            && (spec.prompt_logprobs.is_none() || self.profile.prompt_logprobs)
    }

    /// Blocks that the sequence needs here at once.
    pub(super) fn num_blocks(&self, sequence: &Sequence, reserve: u32) -> u32 {
        let blocks =
            sequence.reserved_tokens(reserve).div_ceil(u64::from(self.profile.kv_block_size));
        blocks.min(u64::from(self.profile.num_kv_blocks)) as u32
    }

    /// Itself with this sequence on it, if there is room. A sequence that needs
    /// more than this gateway's whole share may have the worker to itself:
    /// nothing of ours would ever make the share larger.
    pub(super) fn candidate(&self, id: WorkerId, blocks: u32) -> Option<Candidate> {
        let (slots, free) = (self.credit.slots(), self.credit.kv_blocks());
        let alone = self.running.is_empty() && free > 0;
        (slots > 0 && (blocks <= free || alone) && self.next_key < u32::MAX).then(|| Candidate {
            worker: id,
            num_running: self.running.len() as u32,
            free_slots: slots - 1,
            free_kv_blocks: free.saturating_sub(blocks),
        })
    }

    /// Spends credit on a sequence and gives it a key.
    pub(super) fn take(&mut self, id: SequenceId, blocks: u32) -> u32 {
        let key = self.next_key;
        self.next_key += 1;
        self.credit.spend(blocks);
        self.running.insert(key, id);
        key
    }
}
