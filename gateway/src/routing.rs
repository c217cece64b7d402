//! Which worker gets a sequence, of those that can take it now.
//!
//! Pure: it sees candidates and names one. Least load for now; longest cached
//! prefix and session affinity are further terms of the same comparison.

use crate::scheduler::sequence::WorkerId;

/// A worker that can take the sequence now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub worker: WorkerId,
    /// Sequences of this gateway on it.
    pub num_running: u32,
    /// Slots it would still have.
    pub free_slots: u32,
    /// KV blocks it would still have.
    pub free_kv_blocks: u32,
}

/// The least loaded: fewest sequences, then most room, then the lowest id.
pub fn choose(candidates: impl IntoIterator<Item = Candidate>) -> Option<WorkerId> {
    candidates
        .into_iter()
        .min_by_key(|c| {
            let room = (std::cmp::Reverse(c.free_slots), std::cmp::Reverse(c.free_kv_blocks));
            (c.num_running, room, c.worker)
        })
        .map(|candidate| candidate.worker)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_loaded_worker_is_chosen() {
        let candidate = |id, num_running, free_slots| Candidate {
            worker: WorkerId(id),
            num_running,
            free_slots,
            free_kv_blocks: 10,
        };
        let check = |candidates: &[Candidate], expected: Option<u32>| {
            assert_eq!(choose(candidates.iter().copied()), expected.map(WorkerId));
        };
        check(&[], None);
        check(&[candidate(0, 3, 9), candidate(1, 2, 1)], Some(1));
        check(&[candidate(0, 2, 1), candidate(1, 2, 9)], Some(1));
        check(&[candidate(1, 2, 9), candidate(0, 2, 9)], Some(0));
    }
}
