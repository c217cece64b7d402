//! Who may admit how much.
//!
//! Every gateway is entitled to an equal share of the slots and blocks, and
//! alone to all of them. Its credit is what its share has left; where others
//! hold more than theirs (they were here alone, and their sequences still run),
//! what is free is split by what each lacks. So credits never exceed what is
//! free together, and a gateway that comes gets its share as sequences end.
//!
//! Blocks are counted by the tokens that sequences hold, not by what they may
//! come to hold: the engine pre-empts when they grow beyond the cache.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Most gateways with an open stream.
pub(super) const MAX_GATEWAYS: usize = 64;

/// What a gateway may admit, or holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Amount {
    pub(super) slots: u32,
    pub(super) kv_blocks: u32,
}

/// The worker's whole capacity and its holders.
#[derive(Debug)]
pub(super) struct CreditBook {
    total: Amount,
    holders: Mutex<Holders>,
    /// Changes when a credit may have.
    version: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Holders {
    gateways: BTreeMap<u64, Amount>,
    /// Slots of plain `Generate` calls.
    plain_slots: u32,
    next_id: u64,
}

impl CreditBook {
    pub(super) fn new(slots: u32, kv_blocks: u32) -> Self {
        Self {
            total: Amount { slots, kv_blocks },
            holders: Mutex::default(),
            version: watch::Sender::new(0),
        }
    }

    /// Enters a gateway. `None` when there are [`MAX_GATEWAYS`].
    pub(super) fn join(self: &Arc<Self>) -> Option<Member> {
        let mut holders = self.lock();
        if holders.gateways.len() >= MAX_GATEWAYS {
            return None;
        }
        let id = holders.next_id;
        holders.next_id += 1;
        holders.gateways.insert(id, Amount::default());
        drop(holders);
        self.announce();
        let mut changes = self.version.subscribe();
        changes.mark_unchanged();
        Some(Member { book: Arc::clone(self), id, changes })
    }

    /// A slot for one plain call, given back when dropped. `None` when all are
    /// taken.
    pub(super) fn take_plain(self: &Arc<Self>) -> Option<PlainSlot> {
        let mut holders = self.lock();
        if holders.slots_taken() >= self.total.slots {
            return None;
        }
        holders.plain_slots += 1;
        drop(holders);
        self.announce();
        Some(PlainSlot { book: Arc::clone(self) })
    }

    /// All slots.
    pub(super) fn total_slots(&self) -> u32 {
        self.total.slots
    }

    fn announce(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Holders> {
        // Every change is one assignment; a panic leaves nothing half done.
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Holders {
    fn slots_taken(&self) -> u32 {
        self.plain_slots + self.gateways.values().map(|held| held.slots).sum::<u32>()
    }

    fn credit(&self, id: u64, total: Amount) -> Amount {
        let of = |total: u32, held: fn(&Amount) -> u32| {
            let shares = self.gateways.len() as u32;
            let lacks = |rank: usize, held: u32| {
                let extra = u32::from((rank as u32) < total % shares);
                (total / shares + extra).saturating_sub(held)
            };
            let ranked = self.gateways.iter().enumerate();
            let lacking = ranked.map(|(rank, (&id, amount))| (id, lacks(rank, held(amount))));
            let lacking: Vec<(u64, u32)> = lacking.collect();
            let all: u64 = lacking.iter().map(|(_, lack)| u64::from(*lack)).sum();
            let mine = lacking.iter().find(|(other, _)| *other == id).map_or(0, |(_, lack)| *lack);
            let taken: u32 = self.gateways.values().map(held).sum();
            let free = u64::from(total.saturating_sub(taken));
            if all <= free { mine } else { (u64::from(mine) * free / all) as u32 }
        };
        let slots = total.slots.saturating_sub(self.plain_slots);
        Amount {
            slots: of(slots, |held| held.slots),
            kv_blocks: of(total.kv_blocks, |held| held.kv_blocks),
        }
    }
}

/// One gateway's place in the book, given back with all it holds when dropped.
#[derive(Debug)]
pub(super) struct Member {
    book: Arc<CreditBook>,
    id: u64,
    changes: watch::Receiver<u64>,
}

impl Member {
    /// What this gateway may still admit.
    pub(super) fn credit(&self) -> Amount {
        self.book.lock().credit(self.id, self.book.total)
    }

    /// Takes a slot. `false` when the worker has none left: a gateway that kept
    /// to a credit that has just shrunk still gets what is free.
    pub(super) fn take_slot(&self) -> bool {
        let mut holders = self.book.lock();
        if holders.slots_taken() >= self.book.total.slots {
            return false;
        }
        if let Some(held) = holders.gateways.get_mut(&self.id) {
            held.slots += 1;
        }
        drop(holders);
        self.book.announce();
        true
    }

    /// Gives a slot back.
    pub(super) fn give_slot(&self) {
        if let Some(held) = self.book.lock().gateways.get_mut(&self.id) {
            held.slots = held.slots.saturating_sub(1);
        }
        self.book.announce();
    }

    /// Says how many blocks this gateway's sequences hold.
    pub(super) fn hold_blocks(&self, kv_blocks: u32) {
        if let Some(held) = self.book.lock().gateways.get_mut(&self.id) {
            held.kv_blocks = kv_blocks;
        }
    }

    /// Waits until a credit may have changed. Cancel safe.
    pub(super) async fn changed(&mut self) {
        // The book, and with it the sender, is held by this very value.
        let _ = self.changes.changed().await;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.book.lock().gateways.remove(&self.id);
        self.book.announce();
    }
}

/// The slot of one plain call.
#[derive(Debug)]
pub(super) struct PlainSlot {
    book: Arc<CreditBook>,
}

impl Drop for PlainSlot {
    fn drop(&mut self) {
        let mut holders = self.book.lock();
        holders.plain_slots = holders.plain_slots.saturating_sub(1);
        drop(holders);
        self.book.announce();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn slots(members: &[Member]) -> Vec<u32> {
        members.iter().map(|member| member.credit().slots).collect()
    }

    #[test]
    fn one_gateway_gets_everything_and_several_equal_shares() {
        let book = Arc::new(CreditBook::new(11, 64));
        let mut members = vec![book.join().unwrap()];
        assert_eq!(members[0].credit(), Amount { slots: 11, kv_blocks: 64 });
        members.push(book.join().unwrap());
        assert_eq!(slots(&members), [6, 5]);
        members.push(book.join().unwrap());
        assert_eq!(slots(&members), [4, 4, 3]);
        members.remove(0);
        assert_eq!(slots(&members), [6, 5]);
    }

    #[test]
    fn a_newcomer_gets_what_is_free_until_its_share_is() {
        let book = Arc::new(CreditBook::new(10, 10));
        let old = book.join().unwrap();
        for _ in 0..8 {
            assert!(old.take_slot());
        }
        let new = book.join().unwrap();
        assert_eq!((old.credit().slots, new.credit().slots), (0, 2));
        old.give_slot();
        assert_eq!(new.credit().slots, 3);
        old.hold_blocks(9);
        assert_eq!((old.credit().kv_blocks, new.credit().kv_blocks), (0, 1));
    }

    #[test]
    fn plain_calls_count_and_slots_end() {
        let book = Arc::new(CreditBook::new(2, 8));
        let member = book.join().unwrap();
        let plain = book.take_plain().unwrap();
        assert_eq!(member.credit().slots, 1);
        assert!(member.take_slot());
        assert!(!member.take_slot());
        assert!(book.take_plain().is_none());
        drop(plain);
        assert!(book.take_plain().is_some());
        drop(member);
        assert_eq!(book.lock().slots_taken(), 0);
    }

    #[test]
    fn gateways_are_bounded() {
        let book = Arc::new(CreditBook::new(2, 8));
        let members: Vec<Member> = (0..MAX_GATEWAYS).map(|_| book.join().unwrap()).collect();
        assert!(book.join().is_none());
        drop(members);
        assert!(book.join().is_some());
    }

    proptest! {
        #[test]
        fn credits_never_exceed_what_is_free(
            total in 0_u32..50,
            held in proptest::collection::vec(0_u32..30, 1..6),
            plain in 0_u32..5,
        ) {
            let book = Arc::new(CreditBook::new(total, total));
            let members: Vec<Member> = held.iter().map(|_| book.join().unwrap()).collect();
            let _plain: Vec<_> = (0..plain).filter_map(|_| book.take_plain()).collect();
            for (member, held) in members.iter().zip(&held) {
                (0..*held).for_each(|_| _ = member.take_slot());
                member.hold_blocks(*held);
            }
            let taken = book.lock().slots_taken();
            prop_assert!(taken <= total);
            let credits: u32 = slots(&members).iter().sum();
            prop_assert!(credits <= total - taken);
            // What is free is handed out, but for what rounding loses.
            if taken < total {
                prop_assert!(credits + members.len() as u32 > total - taken);
            }
            let blocks: u32 = members.iter().map(|member| member.credit().kv_blocks).sum();
            prop_assert!(blocks <= total.saturating_sub(held.iter().sum()));
        }
    }
}
