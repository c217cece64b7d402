//! Counting connections, in all and by address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Counters of one port; clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    max_total: usize,
    max_per_ip: usize,
    counts: Arc<Mutex<Counts>>,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    by_ip: HashMap<IpAddr, usize>,
}

/// One connection's place; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Slot {
    ip: IpAddr,
    slots: Slots,
}

impl Slots {
    pub(super) fn new(max_total: usize, max_per_ip: usize) -> Self {
        Self { max_total, max_per_ip, counts: Arc::default() }
    }

    /// A place for a connection from `ip`, if there is one.
    pub(super) fn take(&self, ip: IpAddr) -> Option<Slot> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let of_ip = counts.by_ip.get(&ip).copied().unwrap_or(0);
        if counts.total >= self.max_total || of_ip >= self.max_per_ip {
            return None;
        }
        counts.total += 1;
        counts.by_ip.insert(ip, of_ip + 1);
        Some(Slot { ip, slots: self.clone() })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.slots.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total = counts.total.saturating_sub(1);
        match counts.by_ip.get(&self.ip).copied() {
            Some(count) if count > 1 => counts.by_ip.insert(self.ip, count - 1),
            // No entry for nobody: addresses are the clients' to choose.
            _ => counts.by_ip.remove(&self.ip),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bounds_hold_and_places_come_back() {
        let slots = Slots::new(3, 2);
        let (a, b): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let first = slots.take(a).unwrap();
        let _second = slots.take(a).unwrap();
        assert!(slots.take(a).is_none(), "two from one address");
        let third = slots.take(b).unwrap();
        assert!(slots.take(b).is_none(), "three in all");
        drop(third);
        assert!(!slots.counts.lock().unwrap().by_ip.contains_key(&b));
        drop(first);
        slots.take(a).unwrap();
    }
}
