//! What one worker still accepts from this gateway.
//!
//! A `Credit` is absolute and may cross Admits that are still under way, so it
//! says how many Admits it has seen; what was sent since is subtracted here.
//! Between two credits the room only shrinks, so it is never over-committed.

use std::collections::VecDeque;

/// What a worker said last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    /// Sequences it takes.
    pub slots: u32,
    /// KV blocks it takes.
    pub kv_blocks: u32,
    /// Admits it had read when it said so.
    pub admits_seen: u64,
}

/// A worker's credit and what was spent since.
#[derive(Debug, Default)]
pub struct CreditLedger {
    credit: Credit,
    admits_sent: u64,
    /// Blocks of each Admit that the credit does not know of, oldest first.
    under_way: VecDeque<u32>,
}

impl CreditLedger {
    /// Takes a new credit. Returns false, and changes nothing, if it claims
    /// Admits that were never sent or takes back ones it had seen.
    #[must_use]
    pub fn update(&mut self, credit: Credit) -> bool {
        if credit.admits_seen > self.admits_sent || credit.admits_seen < self.credit.admits_seen {
            return false;
        }
        let newly_seen = credit.admits_seen - self.credit.admits_seen;
        for _ in 0..newly_seen {
            self.under_way.pop_front();
        }
        self.credit = credit;
        true
    }

    /// Notes an Admit of so many blocks.
    pub fn spend(&mut self, kv_blocks: u32) {
        self.admits_sent += 1;
        self.under_way.push_back(kv_blocks);
    }

    /// The worker had less room than it said: nothing more until it says again.
    pub fn exhaust(&mut self) {
        self.credit.slots = 0;
    }

    /// Sequences that may still be admitted.
    pub fn slots(&self) -> u32 {
        self.credit.slots.saturating_sub(self.under_way.len() as u32)
    }

    /// Blocks that may still be spent.
    pub fn kv_blocks(&self) -> u32 {
        let spent: u64 = self.under_way.iter().map(|&blocks| u64::from(blocks)).sum();
        u64::from(self.credit.kv_blocks).saturating_sub(spent) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn credit(slots: u32, kv_blocks: u32, admits_seen: u64) -> Credit {
        Credit { slots, kv_blocks, admits_seen }
    }

    #[test]
    fn admits_under_way_are_subtracted() {
        let mut ledger = CreditLedger::default();
        assert!(ledger.update(credit(4, 10, 0)));
        ledger.spend(3);
        ledger.spend(2);
        assert_eq!((ledger.slots(), ledger.kv_blocks()), (2, 5));
        // The worker has read the first one, and counts it in what it says.
        assert!(ledger.update(credit(3, 7, 1)));
        assert_eq!((ledger.slots(), ledger.kv_blocks()), (2, 5));
        assert!(!ledger.update(credit(9, 9, 3)), "claims an admit that was never sent");
        assert!(!ledger.update(credit(9, 9, 0)), "goes back");
        ledger.exhaust();
        assert_eq!(ledger.slots(), 0);
    }

    proptest! {
        /// A worker whose credits arrive late, in order, is never over-committed.
        #[test]
        fn late_credits_never_over_commit(ops in prop::collection::vec((0u8..4, 1u32..6), 1..200)) {
            let (total_slots, total_blocks) = (8u32, 32u32);
            let mut ledger = CreditLedger::default();
            let (mut to_worker, mut to_gateway) = (VecDeque::new(), VecDeque::new());
            let (mut seen, mut held) = (0u64, Vec::<u32>::new());
            to_gateway.push_back(credit(total_slots, total_blocks, 0));
            for (op, blocks) in ops {
                match op {
                    0 if ledger.slots() > 0 && ledger.kv_blocks() >= blocks => {
                        ledger.spend(blocks);
                        to_worker.push_back(blocks);
                    }
                    1 => if let Some(blocks) = to_worker.pop_front() {
                        seen += 1;
                        held.push(blocks);
                        prop_assert!(held.len() as u32 <= total_slots);
                        prop_assert!(held.iter().sum::<u32>() <= total_blocks);
                    },
                    2 => { held.pop(); }
                    3 => if let Some(credit) = to_gateway.pop_front() {
                        prop_assert!(ledger.update(credit));
                    },
                    _ => {}
                }
                let used: u32 = held.iter().sum();
                to_gateway.push_back(credit(total_slots - held.len() as u32, total_blocks - used, seen));
            }
        }
    }
}
