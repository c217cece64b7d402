//! Persistent threads that share out the tasks of one call at a time.
//!
//! A step of a small model runs hundreds of kernel calls of a few
//! microseconds each, so entering and leaving a call must cost about one
//! cache-line transfer: threads spin for the next call for [`SPIN`] and only
//! then park. A worker that is late (descheduled) is not waited for: the
//! caller takes tasks too and only waits for the workers that entered.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a thread spins before it parks: longer than the gap between two
/// kernel calls of one step, shorter than anyone would notice on an idle machine.
const SPIN: Duration = Duration::from_micros(40);

/// `gate`: epoch in the high half, [`OPEN`], and the number of workers inside.
const OPEN: u64 = 1 << 31;
const EPOCH: u64 = 1 << 32;
const INSIDE: u64 = OPEN - 1;

type Task = dyn Fn(usize) + Sync;

thread_local! {
    /// Whether this thread is inside a task: a nested `run` stays on it.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

/// A fixed set of threads; the caller of [`Pool::run`] is one of them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One call at a time.
    running: Mutex<()>,
}

#[repr(align(128))]
struct Line<T>(T);

struct Shared {
    gate: Line<AtomicU64>,
    next: Line<AtomicUsize>,
    num_parked: Line<AtomicUsize>,
    stopping: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    call: UnsafeCell<Option<Call>>,
}

#[derive(Clone)]
struct Call {
    task: *const Task,
    num_tasks: usize,
    caller: Thread,
}

// SAFETY: `call` is written only by the thread that holds `Pool::running` and
// only while the gate is shut and nobody is inside; it is read only by threads
// that are inside. `task` points to a `Sync` closure that outlives the call.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is never used outside a call.
unsafe impl Send for Shared {}

impl Pool {
    /// Starts `num_threads - 1` threads; the caller of [`run`](Self::run) is the last one.
    ///
    /// # Panics
    /// If `num_threads` is 0 or the system refuses a thread.
    #[must_use]
    pub fn new(num_threads: usize) -> Self {
        assert!(num_threads > 0, "a pool has at least 1 thread");
        let shared = Arc::new(Shared {
            gate: Line(AtomicU64::new(0)),
            next: Line(AtomicUsize::new(0)),
            num_parked: Line(AtomicUsize::new(0)),
            stopping: AtomicBool::new(false),
            panic: Mutex::new(None),
            call: UnsafeCell::new(None),
        });
        let workers = (1..num_threads)
            .map(|idx| {
                let shared = Arc::clone(&shared);
                thread::Builder::new()
                    .name(format!("kernels-{idx}"))
                    .spawn(move || shared.work())
                    .expect("the system starts a thread")
            })
            .collect();
        Self { shared, workers, running: Mutex::new(()) }
    }

    /// The number of threads that share a call, the caller included.
    #[must_use]
    pub fn num_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(0)`, …, `task(num_tasks - 1)`, each once, in any order, on
    /// any thread of the pool, and returns when all have finished. Calls from
    /// several threads take turns; a call from inside a task runs on its own
    /// thread alone.
    ///
    /// # Panics
    /// With the payload of the first task that panicked; tasks not yet started
    /// are then skipped. The pool stays usable.
    pub fn run(&self, num_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() || num_tasks <= 1 || IN_TASK.get() {
            (0..num_tasks).for_each(task);
            return;
        }
        let turn = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes; the pointer is not used after this call returns.
        let task = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static Task>(task) };
        let call = Call { task, num_tasks, caller: thread::current() };
        shared.next.0.store(0, Ordering::Relaxed);
        // SAFETY: the gate is shut and nobody is inside: we hold `running`, and
        // the previous call waited for that.
        unsafe { *shared.call.get() = Some(call.clone()) };
        let gate = shared.gate.0.load(Ordering::Relaxed);
        let opened = (gate & !(OPEN | INSIDE)).wrapping_add(EPOCH) | OPEN;
        shared.gate.0.store(opened, Ordering::SeqCst);
        if shared.num_parked.0.load(Ordering::SeqCst) > 0 {
            self.workers.iter().for_each(|worker| worker.thread().unpark());
        }
        shared.take_tasks(&call);
        shared.gate.0.fetch_and(!OPEN, Ordering::SeqCst);
        shared.wait_until_empty();
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(turn);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches every panic of a task, so there is none to report.
            let _ = worker.join();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("num_threads", &self.num_threads()).finish()
    }
}

impl Shared {
    /// A worker's life: wait for an open gate, enter, take tasks, leave.
    fn work(&self) {
        let mut last_epoch = 0;
        while let Some(gate) = self.wait_for_call(last_epoch) {
            last_epoch = gate / EPOCH;
            if self
                .gate
                .0
                .compare_exchange(gate, gate + 1, Ordering::SeqCst, Ordering::Relaxed)
                .is_err()
            {
                // Shut, or another worker entered first: look again at the same epoch.
                last_epoch = last_epoch.wrapping_sub(1);
                continue;
            }
            // SAFETY: this thread is inside, so the caller does not write `call`.
            let call = unsafe { (*self.call.get()).clone() }.expect("an open gate has a call");
            self.take_tasks(&call);
            let before = self.gate.0.fetch_sub(1, Ordering::SeqCst);
            if before & (OPEN | INSIDE) == 1 {
                call.caller.unpark();
            }
        }
    }

    /// The gate, open, at another epoch than `last_epoch`; `None` when stopping.
    fn wait_for_call(&self, last_epoch: u64) -> Option<u64> {
        let ready = || {
            let gate = self.gate.0.load(Ordering::SeqCst);
            (gate & OPEN != 0 && gate / EPOCH != last_epoch).then_some(gate)
        };
        let stopping = || self.stopping.load(Ordering::SeqCst);
        let mut found = None;
        spin(|| {
            found = ready();
            found.is_some() || stopping()
        });
        if stopping() {
            return None;
        }
        if found.is_some() {
            return found;
        }
        // Announce first, look again, then park: the caller opens first and looks for parked threads then.
        self.num_parked.0.fetch_add(1, Ordering::SeqCst);
        found = loop {
            let gate = ready();
            if gate.is_some() || stopping() {
                break gate;
            }
            thread::park();
        };
        self.num_parked.0.fetch_sub(1, Ordering::SeqCst);
        if stopping() { None } else { found }
    }

    fn take_tasks(&self, call: &Call) {
        // SAFETY: the caller of `run` keeps the closure alive until everyone has left.
        let task = unsafe { &*call.task };
        IN_TASK.set(true);
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task_idx = self.next.0.fetch_add(1, Ordering::Relaxed);
                if task_idx >= call.num_tasks {
                    break;
                }
                task(task_idx);
            }
        }));
        IN_TASK.set(false);
        if let Err(payload) = result {
            // Nobody starts another task.
            self.next.0.store(call.num_tasks, Ordering::Relaxed);
            let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            match &*first {
                None => *first = Some(payload),
                // Not dropped: its own `Drop` may panic, and `run` would unwind
                // while other threads are still inside.
                Some(_) => std::mem::forget(payload),
            }
        }
    }

    fn wait_until_empty(&self) {
        let empty = || self.gate.0.load(Ordering::SeqCst) & INSIDE == 0;
        while !spin(empty) {
            thread::park();
        }
    }
}

/// Spins until `done` or [`SPIN`] has passed; returns whether `done`.
fn spin(mut done: impl FnMut() -> bool) -> bool {
    if done() {
        return true;
    }
    let start = Instant::now();
    loop {
        for _ in 0..16 {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() >= SPIN {
            return done();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_over_many_tiny_calls() {
        for num_threads in 1..=4 {
            let pool = Pool::new(num_threads);
            for num_tasks in (0..40).cycle().take(4000) {
                let counts: Vec<AtomicUsize> =
                    (0..num_tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(num_tasks, &|idx| {
                    counts[idx].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(3);
        for bad in 0..20 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(20, &|idx| assert!(idx != bad, "task {idx} is bad"));
            }));
            let payload = result.expect_err("a task panicked");
            let message = payload.downcast_ref::<String>().expect("assert formats a string");
            assert_eq!(*message, format!("task {bad} is bad"));
            let sum = AtomicUsize::new(0);
            pool.run(10, &|idx| {
                sum.fetch_add(idx, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 45);
        }
    }

    #[test]
    fn a_payload_that_panics_when_dropped_leaves_no_thread_inside() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        let pool = Pool::new(2);
        // Both tasks are in flight at once, so both payloads are there.
        let barrier = std::sync::Barrier::new(2);
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(2, &|_| {
                barrier.wait();
                std::panic::panic_any(Bomb);
            });
        }));
        std::mem::forget(result.expect_err("both tasks panicked"));
        let count = AtomicUsize::new(0);
        pool.run(8, &|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 8);
    }

    #[test]
    fn parked_threads_wake_up() {
        let pool = Pool::new(2);
        for _ in 0..20 {
            // Both tasks must be in flight at once, so the parked worker has to come.
            thread::park_timeout(4 * SPIN);
            let barrier = std::sync::Barrier::new(2);
            pool.run(2, &|_| {
                barrier.wait();
            });
        }
    }

    #[test]
    fn nested_and_concurrent_calls_finish() {
        let pool = Pool::new(2);
        let total = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(4, &|_| {
                            pool.run(3, &|_| {
                                total.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 3 * 200 * 12);
    }

    #[test]
    fn drop_joins_idle_and_parked_threads() {
        for _ in 0..50 {
            drop(Pool::new(4));
        }
    }
}
