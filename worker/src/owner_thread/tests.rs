//! Devices that answer, that are slow, that panic, and that never answer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::ThreadId;
use std::time::Instant;

use mesh::SequenceSlice;

use super::*;

/// Does at each step what the token says.
struct Scripted {
    /// Answers of a hung device come only when this ends.
    never: Receiver<()>,
    closed: Arc<AtomicBool>,
    thread: ThreadId,
}

const ANSWER: u32 = 0;
const HANG: u32 = 1;
const PANIC: u32 = 2;
const FAIL: u32 = 3;

impl Forward for Scripted {
    fn forward(&mut self, batch: &StepBatch, out: &mut StepOutput) -> Result<(), MeshError> {
        assert_eq!(std::thread::current().id(), self.thread);
        out.clear();
        match batch.token_ids[0] {
            ANSWER => out.logits.push(7.0),
            HANG => drop(self.never.recv()),
            PANIC => panic!("out of cores"),
            _ => return Err(MeshError::Device("burnt".into())),
        }
        Ok(())
    }

    fn vocab_size(&self) -> usize {
        1
    }

    fn mesh_status(&self) -> MeshStatus {
        MeshStatus { programs: 5, ..MeshStatus::default() }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        assert_eq!(std::thread::current().id(), self.thread);
        self.closed.store(true, Ordering::SeqCst);
    }
}

struct Rig {
    owner: OwnerThread,
    closed: Arc<AtomicBool>,
    never: Option<mpsc::Sender<()>>,
}

const SOON: Duration = Duration::from_millis(50);
const LATE: Duration = Duration::from_secs(600);

fn rig(bounds: StepBounds) -> Rig {
    let (never, gate) = mpsc::channel();
    let closed = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&closed);
    let load = move |progress: &mut dyn FnMut(LoadStage)| {
        progress(LoadStage::Compiling { done: 1, total: 2, programs: 3 });
        let thread = std::thread::current().id();
        Ok::<_, std::io::Error>((Scripted { never: gate, closed: told, thread }, "rest"))
    };
    let mut stages = Vec::new();
    let (owner, rest) = OwnerThread::spawn(bounds, load, &mut |stage| stages.push(stage)).unwrap();
    assert_eq!(rest, "rest");
    assert_eq!(stages, [LoadStage::Compiling { done: 1, total: 2, programs: 3 }]);
    Rig { owner, closed, never: Some(never) }
}

fn step(token: u32, num_tokens: usize, first_position: usize) -> StepBatch {
    let slice = SequenceSlice { first_row: 0, num_tokens, first_position, block_table: vec![0, 1] };
    StepBatch {
        token_ids: vec![token; num_tokens],
        sequences: vec![slice],
        logit_rows: vec![num_tokens - 1],
        choices: None,
    }
}

#[test]
fn a_device_is_loaded_stepped_and_closed_on_one_thread() {
    let Rig { mut owner, closed, .. } = rig(StepBounds { known: LATE, first: LATE });
    let mut out = StepOutput::default();
    owner.forward(&step(ANSWER, 1, 0), &mut out).unwrap();
    assert_eq!((out.logits.as_slice(), owner.vocab_size()), ([7.0].as_slice(), 1));
    assert_eq!(owner.mesh_status().programs, 5);
    let error = owner.forward(&step(FAIL, 1, 0), &mut out).unwrap_err();
    assert_eq!(error.to_string(), "device failed: burnt");
    drop(owner);
    assert!(closed.load(Ordering::SeqCst), "closed before the drop returns");
}

#[test]
fn a_panic_of_the_devices_thread_is_the_callers_and_ends_no_thread() {
    let Rig { mut owner, closed, .. } = rig(StepBounds { known: LATE, first: LATE });
    let mut out = StepOutput::default();
    let panicked = catch_unwind(AssertUnwindSafe(|| owner.forward(&step(PANIC, 1, 0), &mut out)));
    assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"out of cores"));
    owner.forward(&step(ANSWER, 1, 0), &mut out).unwrap();
    drop(owner);
    assert!(closed.load(Ordering::SeqCst));
}

#[test]
fn a_device_that_does_not_answer_is_given_up_and_never_waited_for_again() {
    let Rig { mut owner, closed, never } = rig(StepBounds { known: SOON, first: SOON });
    let mut out = StepOutput::default();
    let started = Instant::now();
    let error = owner.forward(&step(HANG, 1, 0), &mut out).unwrap_err();
    assert!(matches!(error, MeshError::Hung { waited } if waited == SOON), "{error}");
    assert!(error.to_string().contains("50ms"), "{error}");
    assert!(matches!(owner.forward(&step(ANSWER, 1, 0), &mut out), Err(MeshError::Hung { .. })));
    drop(owner);
    assert!(started.elapsed() < FAREWELL, "the drop does not wait for what does not answer");
    assert!(!closed.load(Ordering::SeqCst));
    drop(never);
}

#[test]
fn the_first_step_of_a_kind_may_take_longer() {
    let Rig { mut owner, never, .. } = rig(StepBounds { known: SOON, first: LATE });
    let mut out = StepOutput::default();
    // Another thread lets go of it only after the bound of a known step.
    let letting_go = std::thread::spawn(move || {
        #[expect(clippy::disallowed_methods, reason = "stands for a compiler")]
        std::thread::sleep(SOON * 3);
        never.unwrap().send(()).unwrap();
    });
    // Held until the gate has let go once, and the sender is gone afterwards.
    owner.forward(&step(HANG, 100, 0), &mut out).unwrap();
    letting_go.join().unwrap();
    owner.forward(&step(ANSWER, 1, 0), &mut out).unwrap();
}

#[test]
fn a_hang_in_a_kind_of_step_that_is_known_is_seen_soon() {
    let Rig { mut owner, never, .. } = rig(StepBounds { known: SOON, first: LATE });
    let mut out = StepOutput::default();
    owner.forward(&step(ANSWER, 100, 0), &mut out).unwrap();
    let hung = owner.forward(&step(HANG, 128, 0), &mut out);
    assert!(matches!(hung, Err(MeshError::Hung { waited }) if waited == SOON));
    drop(never);
}

#[test]
fn steps_that_are_compiled_apart_are_of_different_kinds() {
    let kind = |num_tokens, first| StepKind::of(&step(ANSWER, num_tokens, first));
    assert_eq!(kind(65, 0), kind(128, 0));
    assert_ne!(kind(128, 0), kind(129, 0));
    assert_ne!(kind(4096, 0), kind(4097, 0));
    assert_eq!(kind(4097, 0), kind(6144, 0));
    assert_ne!(kind(128, 0), kind(128, 64));
    assert_eq!(kind(128, 2048), kind(128, 4096));
    assert_eq!(kind(1, 3), kind(1, 4));
    let with = |choice| {
        let batch = StepBatch { choices: Some(vec![choice]), ..step(ANSWER, 1, 0) };
        StepKind::of(&batch)
    };
    let drawn = Choice::Sampled { temperature: 1.0, top_k: 2, top_p: 1.0, seed: 1 };
    assert_ne!(with(Choice::Greedy), with(drawn));
    assert_ne!(with(Choice::Greedy), kind(1, 0));
}

#[test]
fn a_load_that_fails_or_panics_says_so() {
    let bounds = StepBounds { known: LATE, first: LATE };
    let refused =
        |_: &mut dyn FnMut(LoadStage)| Err::<(Scripted, ()), _>(std::io::Error::other("no card"));
    let error = OwnerThread::spawn(bounds, refused, &mut |_| {}).unwrap_err();
    assert_eq!(error.to_string(), "no card");
    let panics = |_: &mut dyn FnMut(LoadStage)| -> Result<(Scripted, ()), std::io::Error> {
        panic!("no python")
    };
    let panicked =
        catch_unwind(AssertUnwindSafe(|| OwnerThread::spawn(bounds, panics, &mut |_| {})));
    assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"no python"));
}
