//! Tasks that end: every task of a service is started here and waited for here.
//!
//! A service stops in three stages, each on its own token:
//! 1. *draining*: take no new work, finish what is there;
//! 2. *cancelled*: the grace has passed (or a second signal came), give up;
//! 3. *aborted*: tasks that ignore stage 2 are dropped where they wait.
//!
//! Dropping a future at its await point always works, so a stuck client cannot
//! hold the process; a task that blocks its thread can, and is therefore not
//! waited for after stage 3.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// How long cancelled tasks have to say goodbye before they are dropped.
const FAREWELL: Duration = Duration::from_millis(500);

/// A handle on the life of one service; clones are the same handle.
#[derive(Debug, Clone)]
pub struct Shutdown {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    draining: CancellationToken,
    cancelled: CancellationToken,
    aborted: CancellationToken,
    tracker: TaskTracker,
    panics: AtomicUsize,
    grace: Duration,
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every task finished by itself within the grace.
    Finished,
    /// So many tasks were still there when the grace had passed.
    Cut {
        /// Tasks that were cancelled.
        tasks: usize,
    },
}

impl Shutdown {
    /// A service that gives its tasks `grace` to finish.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        let cancelled = CancellationToken::new();
        Self {
            inner: Arc::new(Inner {
                draining: CancellationToken::new(),
                aborted: CancellationToken::new(),
                cancelled,
                tracker: TaskTracker::new(),
                panics: AtomicUsize::new(0),
                grace,
            }),
        }
    }

    /// Starts a task that [`drain`](Self::drain) waits for. The current span is
    /// its parent. A panic in it is logged with `name`, counted, and returned
    /// by the handle; it takes nobody else along.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let aborted = self.inner.aborted.clone();
        let witness = Witness { inner: Arc::clone(&self.inner), name };
        let task = async move {
            let _witness = witness;
            if aborted.run_until_cancelled_owned(future).await.is_none() {
                tracing::warn!(task = name, "task was dropped at shutdown");
            }
        };
        self.inner.tracker.spawn(task.in_current_span())
    }

    /// Begins to drain on the first SIGTERM or SIGINT, and cancels at once on
    /// the second.
    ///
    /// # Errors
    /// The operating system refused the handler.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn watch_signals(&self) -> std::io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let this = self.clone();
        let watch = async move {
            let mut next = async || {
                // Both futures are cancel safe: a signal is not lost with them.
                tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                }
            };
            let name = next().await;
            tracing::info!(signal = name, "draining");
            this.begin();
            let name = next().await;
            tracing::warn!(signal = name, "second signal, not waiting for the drain");
            this.cancel();
        };
        // Not tracked: it lives as long as the process, and no drain waits for it.
        #[expect(clippy::disallowed_methods, reason = "this module is where tasks are started")]
        drop(tokio::spawn(watch));
        Ok(())
    }

    /// Begins to drain when standard input ends: a parent process that holds the
    /// other end of the pipe takes its services along however it goes.
    ///
    /// # Errors
    /// The operating system refused the thread.
    pub fn watch_stdin(&self) -> std::io::Result<()> {
        let this = self.clone();
        // A thread of its own, not the runtime's: nothing can interrupt the read,
        // and no exit may wait for it.
        let watch = move || {
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            tracing::info!("standard input ended, draining");
            this.begin();
        };
        std::thread::Builder::new().name("stdin".to_owned()).spawn(watch).map(drop)
    }

    /// Fires when the service should take no new work.
    #[must_use]
    pub fn draining(&self) -> &CancellationToken {
        &self.inner.draining
    }

    /// Fires when work in hand should be given up.
    #[must_use]
    pub fn cancelled(&self) -> &CancellationToken {
        &self.inner.cancelled
    }

    /// How long a drain waits, as configured.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.inner.grace
    }

    /// Tasks that are running.
    #[must_use]
    pub fn num_tasks(&self) -> usize {
        self.inner.tracker.len()
    }

    /// Tasks that have panicked.
    #[must_use]
    pub fn num_panics(&self) -> usize {
        self.inner.panics.load(Ordering::Relaxed)
    }

    /// Begins to drain and returns at once.
    pub fn begin(&self) {
        self.inner.draining.cancel();
    }

    /// Ends the grace at once.
    pub fn cancel(&self) {
        self.begin();
        self.inner.cancelled.cancel();
    }

    /// Drains: waits up to `grace` for every task, then cancels and joins those
    /// that are left. Returns at most about half a second after the grace.
    pub async fn drain(&self, grace: Duration) -> Drained {
        self.begin();
        let tracker = &self.inner.tracker;
        tracker.close();
        let in_time = async {
            tokio::select! {
                () = tracker.wait() => true,
                () = self.inner.cancelled.cancelled() => false,
                () = tokio::time::sleep(grace) => false,
            }
        };
        if in_time.await {
            return Drained::Finished;
        }
        let tasks = tracker.len();
        self.inner.cancelled.cancel();
        if tokio::time::timeout(FAREWELL, tracker.wait()).await.is_err() {
            self.inner.aborted.cancel();
            // Dropping futures needs a turn of the scheduler, not time; a task
            // that blocks its thread is left behind.
            if tokio::time::timeout(FAREWELL / 5, tracker.wait()).await.is_err() {
                tracing::error!(tasks = tracker.len(), "tasks block their threads, leaving them");
            }
        }
        Drained::Cut { tasks }
    }
}

/// Sees a task unwind. Runs on the task's own thread while it panics.
struct Witness {
    inner: Arc<Inner>,
    name: &'static str,
}

impl Drop for Witness {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.inner.panics.fetch_add(1, Ordering::Relaxed);
            tracing::error!(task = self.name, "task panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_tasks_that_finish() {
        let shutdown = Shutdown::new(GRACE);
        let (tx, rx) = tokio::sync::oneshot::channel();
        let draining = shutdown.draining().clone();
        shutdown.spawn("polite", async move {
            draining.cancelled().await;
            tokio::time::sleep(Duration::from_secs(10)).await;
            tx.send(()).unwrap();
        });
        assert_eq!(shutdown.drain(GRACE).await, Drained::Finished);
        rx.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_stuck_task_is_dropped_right_after_the_grace() {
        let shutdown = Shutdown::new(GRACE);
        shutdown.spawn("stuck", std::future::pending());
        let cancelled = shutdown.cancelled().clone();
        shutdown.spawn("cooperative", async move { cancelled.cancelled().await });
        let begun = tokio::time::Instant::now();
        assert_eq!(shutdown.drain(GRACE).await, Drained::Cut { tasks: 2 });
        assert!(begun.elapsed() <= GRACE + Duration::from_secs(1), "{:?}", begun.elapsed());
        assert_eq!(shutdown.num_tasks(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn cancelling_ends_the_grace_at_once() {
        let shutdown = Shutdown::new(GRACE);
        shutdown.spawn("stuck", std::future::pending());
        let begun = tokio::time::Instant::now();
        shutdown.cancel();
        shutdown.drain(GRACE).await;
        assert!(begun.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test]
    async fn a_panic_is_seen_and_takes_nobody_along() {
        let shutdown = Shutdown::new(GRACE);
        let failed = shutdown.spawn("unlucky", async { panic!("on purpose") });
        assert!(failed.await.unwrap_err().is_panic());
        assert_eq!(shutdown.num_panics(), 1);
        let fine = shutdown.spawn("lucky", async {});
        fine.await.unwrap();
        assert_eq!(shutdown.drain(GRACE).await, Drained::Finished);
    }
}
