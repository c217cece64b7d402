//! The workers this gateway knows, and one task per worker that keeps a stream
//! to it open.
//!
//! A worker is `connecting` (dialling, describing), `ready`, `draining`, or
//! `down` (with the reason, until the next attempt). The list is static; where
//! it comes from DNS or Kubernetes, this is the file that follows it.

pub mod convert;
mod dial;
#[cfg(test)]
pub(crate) mod fake_worker;
mod link;
mod liveness;
pub mod roster;

use std::sync::Arc;
use std::time::Duration;

use common::shutdown::Shutdown;
use tokio_util::sync::CancellationToken;

use crate::scheduler::LinkSender;
use crate::scheduler::sequence::WorkerId;
use link::Link;
use roster::{Roster, WorkerState};

/// What the pool is to reach, and how patiently.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// `http://host:port` or `unix:/path`, one per worker.
    pub endpoints: Vec<String>,
    /// Stable name of this gateway process, unique among the gateways.
    pub gateway_id: String,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for `Describe`, and for a stream's first credit.
    pub handshake_timeout: Duration,
    /// A worker that says nothing for so long is down.
    pub silence_timeout: Duration,
    /// A worker with work whose step counter stands still for so long is down.
    pub stall_timeout: Duration,
    /// First wait before dialling again; doubles up to `max_backoff`.
    pub min_backoff: Duration,
    /// Longest wait before dialling again.
    pub max_backoff: Duration,
    /// Wait after a worker broke the contract.
    pub quarantine: Duration,
}

impl PoolConfig {
    /// The defaults, for these workers. The stall timeout is the CPU mesh's: a
    /// prefill step takes seconds there; 2 s suits a card.
    pub fn new(endpoints: Vec<String>, gateway_id: impl Into<String>) -> Self {
        Self {
            endpoints,
            gateway_id: gateway_id.into(),
            connect_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            silence_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(10),
            min_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(5),
            quarantine: Duration::from_secs(30),
        }
    }
}

/// What a worker must be for this gateway to use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Of the gateway's own tokenizer; `None` trusts the worker (tests only).
    pub tokenizer_fingerprint: Option<String>,
    /// Ids are below this; a worker may pad its own vocabulary beyond it.
    pub vocab_size: u32,
}

/// Starts one link per endpoint; they end when `stop` fires.
pub fn start(
    config: &PoolConfig,
    expected: &Expected,
    roster: &Arc<Roster>,
    scheduler: &LinkSender,
    (shutdown, stop): (&Shutdown, &CancellationToken),
) {
    for (index, endpoint) in (0u32..).zip(&config.endpoints) {
        let link = Link::new(
            (WorkerId(index), endpoint.clone()),
            config.clone(),
            expected.clone(),
            Arc::clone(roster),
            scheduler.clone(),
        );
        let stop = stop.clone();
        let roster = Arc::clone(roster);
        shutdown.spawn("worker link", async move {
            // Dropping the link at any await is safe: the scheduler has ended.
            let _ = stop.run_until_cancelled(link.run()).await;
            roster.set_state(WorkerId(index), WorkerState::Down, "gateway is stopping");
        });
    }
}
