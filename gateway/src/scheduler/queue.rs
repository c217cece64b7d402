//! Sequences that wait for a worker: higher priority first, then in order of
//! arrival; bounded by number and by tokens.
//!
//! Fair sharing between owners belongs here, as a term between priority and
//! arrival in [`Rank`].

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::sequence::SequenceId;

/// Place in the queue; the smallest is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    priority: Reverse<i32>,
    arrival: u64,
}

/// Most that may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueBounds {
    /// Sequences.
    pub max_sequences: usize,
    /// Tokens that they can come to, prompts included.
    pub max_tokens: u64,
}

/// The queue.
#[derive(Debug, Default)]
pub struct Queue {
    entries: BTreeMap<Rank, (SequenceId, u64)>,
    num_tokens: u64,
}

impl Queue {
    /// Whether so many more sequences and tokens may join. Whatever comes to
    /// an empty queue may: its own size is the request limits' business.
    pub fn has_room(&self, sequences: usize, tokens: u64, bounds: QueueBounds) -> bool {
        self.entries.is_empty()
            || (self.entries.len() + sequences <= bounds.max_sequences
                && self.num_tokens.saturating_add(tokens) <= bounds.max_tokens)
    }

    /// Puts a sequence in its place; one that was here before keeps its order
    /// of arrival and so comes before later ones. No bound: it has been taken.
    pub fn insert(&mut self, priority: i32, arrival: u64, id: SequenceId, tokens: u64) {
        let rank = Rank { priority: Reverse(priority), arrival };
        let before = self.entries.insert(rank, (id, tokens));
        debug_assert!(before.is_none(), "arrival numbers are unique");
        self.num_tokens += tokens;
    }

    /// Takes a sequence out, if it is there.
    pub fn remove(&mut self, priority: i32, arrival: u64) {
        let rank = Rank { priority: Reverse(priority), arrival };
        if let Some((_, tokens)) = self.entries.remove(&rank) {
            self.num_tokens -= tokens;
        }
    }

    /// The sequences in order.
    pub fn iter(&self) -> impl Iterator<Item = SequenceId> + '_ {
        self.entries.values().map(|&(id, _)| id)
    }

    /// Sequences that wait.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Tokens that the waiting sequences can come to.
    pub fn num_tokens(&self) -> u64 {
        self.num_tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priority_comes_before_arrival_and_a_returner_before_later_ones() {
        let mut queue = Queue::default();
        for (priority, arrival) in [(0, 1), (0, 2), (5, 3), (-1, 0)] {
            queue.insert(priority, arrival, SequenceId(arrival), 10);
        }
        queue.remove(0, 1);
        queue.insert(0, 1, SequenceId(1), 10);
        let order: Vec<u64> = queue.iter().map(|id| id.0).collect();
        assert_eq!(order, [3, 1, 2, 0]);
    }

    #[test]
    fn bounds_count_sequences_and_tokens() {
        let bounds = QueueBounds { max_sequences: 2, max_tokens: 100 };
        let mut queue = Queue::default();
        assert!(queue.has_room(3, 1000, bounds), "an empty queue takes anything");
        queue.insert(0, 0, SequenceId(0), 60);
        assert!(queue.has_room(1, 40, bounds));
        assert!(!queue.has_room(1, 41, bounds));
        assert!(!queue.has_room(2, 2, bounds));
        assert!(!queue.has_room(1, u64::MAX, bounds));
        queue.remove(0, 0);
        assert_eq!((queue.len(), queue.num_tokens()), (0, 0));
    }
}
