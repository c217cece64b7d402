//! Which gateways have a stream open: one each, the newest.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::metrics;

/// Streams by gateway.
#[derive(Debug, Default)]
pub(super) struct Gateways {
    by_id: Mutex<HashMap<String, Entry>>,
}

#[derive(Debug)]
struct Entry {
    epoch: u32,
    superseded: CancellationToken,
}

/// A gateway's registration, withdrawn when dropped.
#[derive(Debug)]
pub(super) struct Registration {
    gateways: Arc<Gateways>,
    id: String,
    epoch: u32,
    /// Fires when the gateway has opened a newer stream.
    pub(super) superseded: CancellationToken,
}

impl Gateways {
    /// Registers a stream. An older one of the same gateway is told to end; its
    /// gateway has given up on it, whatever the socket says.
    ///
    /// # Errors
    /// The epoch of the open stream, if that is not older.
    pub(super) fn register(self: &Arc<Self>, id: &str, epoch: u32) -> Result<Registration, u32> {
        let mut by_id = self.lock();
        if let Some(open) = by_id.get(id) {
            if open.epoch >= epoch {
                return Err(open.epoch);
            }
            open.superseded.cancel();
        }
        let superseded = CancellationToken::new();
        by_id.insert(id.to_owned(), Entry { epoch, superseded: superseded.clone() });
        metrics::gateways(by_id.len());
        Ok(Registration { gateways: Arc::clone(self), id: id.to_owned(), epoch, superseded })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut by_id = self.gateways.lock();
        if by_id.get(&self.id).is_some_and(|open| open.epoch == self.epoch) {
            by_id.remove(&self.id);
        }
        metrics::gateways(by_id.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_stream_ends_the_older_one() {
        let gateways = Arc::new(Gateways::default());
        let old = gateways.register("a", 1).unwrap();
        let other = gateways.register("b", 1).unwrap();
        assert_eq!(gateways.register("a", 1).unwrap_err(), 1);
        let new = gateways.register("a", 2).unwrap();
        assert!(old.superseded.is_cancelled());
        assert!(!new.superseded.is_cancelled() && !other.superseded.is_cancelled());
        drop(old);
        assert_eq!(gateways.register("a", 2).unwrap_err(), 2, "the newer one is still there");
        drop(new);
        assert!(gateways.register("a", 1).is_ok());
    }
}
