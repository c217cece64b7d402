//! The state machine against model workers that check what they are given.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::super::credit::Credit;
use super::super::sequence::{Fault, StepEntry, WorkerFinish};
use super::*;

const BLOCK: u32 = 4;
const SLOTS: u32 = 3;
const BLOCKS: u32 = 12;

fn spec(prompt: usize, max_new_tokens: u32, priority: i32) -> SequenceSpec {
    SequenceSpec {
        request_id: "test".into(),
        prompt: vec![1; prompt].into(),
        max_new_tokens,
        min_new_tokens: 0,
        stop_token_ids: [].into(),
        ignore_eos: false,
        sampling: Arc::default(),
        seed: 0,
        any_draw: false,
        logprobs: None,
        prompt_logprobs: None,
        priority,
        deadline: None,
        cache_salt: [].into(),
        trace: Default::default(),
    }
}

fn profile() -> WorkerProfile {
    WorkerProfile {
        max_model_len: 40,
        num_kv_blocks: BLOCKS,
        kv_block_size: BLOCK,
        prompt_logprobs: true,
    }
}

fn config() -> SchedulerConfig {
    SchedulerConfig {
        queue: QueueBounds { max_sequences: 4, max_tokens: 100 },
        reserve_tokens: 8,
        ..SchedulerConfig::default()
    }
}

/// A worker that counts what it holds, and panics if it is over-committed.
#[derive(Default)]
struct ModelWorker {
    epoch: u32,
    /// Key to blocks it was charged for, of what it holds.
    held: HashMap<u32, u32>,
    seen: u64,
}

struct World {
    state: State,
    now: Instant,
    workers: HashMap<WorkerId, ModelWorker>,
    running: HashMap<SequenceId, (WorkerId, u32)>,
    ended: HashSet<SequenceId>,
    tokens: HashMap<SequenceId, u32>,
    next_id: u64,
    admitted: Vec<SequenceId>,
}

impl World {
    fn new() -> Self {
        Self {
            state: State::new(config()),
            now: Instant::now(),
            workers: HashMap::new(),
            running: HashMap::new(),
            ended: HashSet::new(),
            tokens: HashMap::new(),
            next_id: 0,
            admitted: Vec::new(),
        }
    }

    fn with_worker() -> Self {
        let mut world = Self::new();
        world.up(WorkerId(0));
        world
    }

    fn up(&mut self, id: WorkerId) {
        let epoch = self.workers.get(&id).map_or(1, |worker| worker.epoch + 1);
        self.workers.insert(id, ModelWorker { epoch, ..ModelWorker::default() });
        self.state.worker_up(id, epoch, profile());
        self.credit(id);
    }

    fn down(&mut self, id: WorkerId) {
        let epoch = self.workers[&id].epoch;
        self.workers.get_mut(&id).unwrap().held.clear();
        self.running.retain(|_, (worker, _)| *worker != id);
        self.run(|state, now, actions| state.worker_down(now, id, epoch, actions));
    }

    fn credit(&mut self, id: WorkerId) {
        let worker = &self.workers[&id];
        let used: u32 = worker.held.values().sum();
        let credit = Credit {
            slots: SLOTS - worker.held.len() as u32,
            kv_blocks: BLOCKS.saturating_sub(used),
            admits_seen: worker.seen,
        };
        self.frame(id, WorkerFrame::Credit(credit));
    }

    fn frame(&mut self, id: WorkerId, frame: WorkerFrame) {
        let epoch = self.workers[&id].epoch;
        self.run(|state, now, actions| state.apply(now, (id, epoch), frame, actions));
    }

    /// Runs something and then the scheduler, and checks all that comes of it.
    fn run(&mut self, op: impl FnOnce(&mut State, Instant, &mut Vec<Action>)) {
        let mut actions = Vec::new();
        op(&mut self.state, self.now, &mut actions);
        self.state.schedule(&mut actions);
        for action in actions {
            self.check(action);
        }
    }

    fn check(&mut self, action: Action) {
        match action {
            Action::Admit(worker, assignment) => {
                let id = self.sequence_of(worker, assignment.key);
                assert!(!self.ended.contains(&id), "admitted after its end");
                let log = self.tokens.get(&id).copied().unwrap_or(0);
                assert_eq!(assignment.resume.len() as u32, log, "the log is what was delivered");
                let left = assignment.spec.max_new_tokens - log;
                let tokens = assignment.spec.prompt.len() as u32 + log + left.min(8);
                let blocks = tokens.div_ceil(BLOCK).min(BLOCKS);
                let model = self.workers.get_mut(&worker).unwrap();
                let used: u32 = model.held.values().sum();
                assert!(model.held.len() < SLOTS as usize, "a slot too many");
                assert!(used + blocks <= BLOCKS || model.held.is_empty(), "blocks too many");
                model.seen += 1;
                assert!(model.held.insert(assignment.key, blocks).is_none());
                self.running.insert(id, (worker, assignment.key));
                self.admitted.push(id);
            }
            Action::Cancel(worker, key) => {
                self.workers.get_mut(&worker).unwrap().held.remove(&key);
                self.running.retain(|_, place| *place != (worker, key));
            }
            Action::Deliver(id, delivery) => {
                assert!(!self.ended.contains(&id), "a word after the end");
                match delivery {
                    Delivery::Output { token_ids, .. } => {
                        *self.tokens.entry(id).or_default() += token_ids.len() as u32;
                    }
                    Delivery::Finished(_) | Delivery::Failed(_) => {
                        self.ended.insert(id);
                        self.running.remove(&id);
                    }
                    Delivery::Admitted { .. } => {}
                }
            }
            Action::Quarantine(_, reason) => panic!("{reason}"),
        }
    }

    fn sequence_of(&self, worker: WorkerId, key: u32) -> SequenceId {
        self.state.workers[&worker].running[&key]
    }

    fn submit(&mut self, specs: Vec<SequenceSpec>) -> Result<Vec<SequenceId>, GatewayError> {
        let first = self.next_id;
        self.next_id += specs.len() as u64;
        let batch: Vec<_> = (first..).map(SequenceId).zip(specs).collect();
        let ids = batch.iter().map(|&(id, _)| id).collect();
        let result = self.state.submit(self.now, batch);
        self.run(|_, _, _| ());
        result.map(|()| ids)
    }

    fn entry(&mut self, id: SequenceId, tokens: Vec<u32>, finish: Option<WorkerFinish>) {
        let Some(&(worker, key)) = self.running.get(&id) else { return };
        if finish.is_some() {
            self.workers.get_mut(&worker).unwrap().held.remove(&key);
            self.running.remove(&id);
        }
        let finish = finish.map(|finish| (finish, SequenceTiming::default()));
        let entry = StepEntry { key, token_ids: tokens, finish, ..StepEntry::default() };
        let entries = vec![entry];
        self.frame(worker, WorkerFrame::Step { entries, load: None, num_late: 0 });
    }
}

#[test]
fn admission_follows_priority_then_arrival() {
    let mut world = World::with_worker();
    // Four blocks each, of twelve.
    let ids = world.submit(vec![spec(8, 8, 0), spec(8, 8, 0), spec(8, 8, 0)]).unwrap();
    let late = world.submit(vec![spec(8, 8, 0), spec(8, 8, 0)]).unwrap();
    let urgent = world.submit(vec![spec(8, 8, 9)]).unwrap();
    assert_eq!(world.admitted, ids);
    world.entry(ids[0], vec![5], Some(WorkerFinish::Stop));
    world.credit(WorkerId(0));
    world.entry(ids[1], vec![5], Some(WorkerFinish::Stop));
    world.credit(WorkerId(0));
    assert_eq!(world.admitted[3..], [urgent[0], late[0]]);
}

#[test]
fn the_queue_is_bounded_and_says_when_to_return() {
    let mut world = World::with_worker();
    for _ in 0..7 {
        world.submit(vec![spec(8, 8, 0)]).unwrap();
    }
    let error = world.submit(vec![spec(8, 8, 0)]).unwrap_err();
    assert_eq!(error.code(), "overloaded");
    assert!(error.retry_after_secs() >= Some(1));
    assert_eq!(world.state.census().waiting, 4);
}

#[test]
fn a_long_sequence_is_not_starved_and_an_impossible_one_holds_nobody_back() {
    let mut world = World::with_worker();
    let small = world.submit(vec![spec(8, 4, 0)]).unwrap()[0];
    let long = world.submit(vec![spec(36, 4, 0)]).unwrap()[0];
    let behind = world.submit(vec![spec(4, 4, 0)]).unwrap()[0];
    assert_eq!(world.admitted, [small], "the one behind waits for the long one");
    let impossible = world.submit(vec![spec(40, 4, 9)]).unwrap()[0];
    world.entry(small, vec![], Some(WorkerFinish::Stop));
    world.credit(WorkerId(0));
    assert_eq!(world.admitted, [small, long, behind]);
    world.now += Duration::from_secs(1);
    world.run(|state, now, actions| state.tick(now, actions));
    world.now += Duration::from_secs(11);
    world.run(|state, now, actions| state.tick(now, actions));
    assert!(world.ended.contains(&impossible));
}

#[test]
fn lost_sequences_go_on_from_their_log_but_not_for_ever() {
    let mut world = World::with_worker();
    let id = world.submit(vec![spec(4, 8, 0)]).unwrap()[0];
    world.entry(id, vec![7, 8], None);
    world.down(WorkerId(0));
    assert!(!world.ended.contains(&id));
    world.up(WorkerId(0));
    assert_eq!(world.admitted, [id, id]);
    world.entry(id, vec![9], None);
    world.down(WorkerId(0));
    assert!(world.ended.contains(&id), "it may be what kills workers");
}

#[test]
fn a_failed_device_is_a_lost_worker_that_is_asked_for_nothing_more() {
    let mut world = World::with_worker();
    let id = world.submit(vec![spec(4, 8, 0)]).unwrap()[0];
    let failed =
        || WorkerFinish::Error { fault: Fault::Capacity, message: "the device hangs".into() };
    world.entry(id, vec![7, 8], Some(failed()));
    // Its credit stands, and yet nothing goes there.
    world.credit(WorkerId(0));
    assert_eq!((world.admitted.len(), world.ended.contains(&id)), (1, false));
    world.up(WorkerId(1));
    assert_eq!(world.admitted, [id, id]);
    assert_eq!(world.running[&id].0, WorkerId(1));
    world.entry(id, vec![9], Some(failed()));
    assert!(world.ended.contains(&id), "it may be what kills devices");
}

#[test]
fn deadlines_and_absent_workers_end_sequences() {
    let mut world = World::new();
    assert_eq!(world.submit(vec![spec(4, 4, 0)]).unwrap_err().code(), "no_worker");
    world.up(WorkerId(0));
    let deadline = Some(world.now + Duration::from_secs(3));
    let timed = world.submit(vec![SequenceSpec { deadline, ..spec(4, 4, 0) }]).unwrap()[0];
    let lost = world.submit(vec![spec(4, 4, 0)]).unwrap()[0];
    world.down(WorkerId(0));
    world.run(|state, now, actions| state.tick(now, actions));
    world.now += Duration::from_secs(4);
    world.run(|state, now, actions| state.tick(now, actions));
    assert!(world.ended.contains(&timed) && !world.ended.contains(&lost));
    world.now += Duration::from_secs(7);
    world.run(|state, now, actions| state.tick(now, actions));
    assert!(world.ended.contains(&lost) && world.state.is_idle());
}

#[test]
fn a_worker_that_says_too_much_fails_that_sequence_alone() {
    let mut world = World::with_worker();
    let ids = world.submit(vec![spec(4, 2, 0), spec(4, 2, 0)]).unwrap();
    world.entry(ids[0], vec![1, 2, 3], None);
    assert!(world.ended.contains(&ids[0]));
    world.entry(ids[1], vec![1, 2], Some(WorkerFinish::Length));
    assert!(world.ended.contains(&ids[1]) && world.state.is_idle());
}

#[test]
fn parked_sequences_resume_and_stale_output_is_dropped() {
    let mut world = World::with_worker();
    let id = world.submit(vec![spec(4, 8, 0)]).unwrap()[0];
    let (worker, key) = world.running[&id];
    world.entry(id, vec![7], None);
    world.run(|state, now, actions| state.park(now, id, actions));
    let stale = StepEntry { key, token_ids: vec![9], ..StepEntry::default() };
    world.frame(worker, WorkerFrame::Step { entries: vec![stale], load: None, num_late: 0 });
    assert_eq!(world.state.take_late_outputs(), 1);
    world.run(|state, now, actions| state.unpark(now, id, actions));
    assert_eq!((world.admitted.len(), world.tokens[&id]), (2, 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever happens in whatever order: no worker is over-committed, nobody
    /// hears a word after the end, and at the end nothing is left.
    #[test]
    fn random_histories_keep_every_promise(
        ops in prop::collection::vec((0u8..12, 0usize..64, 1u32..20), 1..150),
    ) {
        let mut world = World::with_worker();
        for (op, pick, size) in ops {
            let running: Vec<SequenceId> = {
                let mut ids: Vec<_> = world.running.keys().copied().collect();
                ids.sort_unstable();
                ids
            };
            let chosen = (!running.is_empty()).then(|| running[pick % running.len()]);
            let worker = WorkerId(pick as u32 % 2);
            let is_up = world.state.workers.contains_key(&worker);
            match (op, chosen) {
                (0 | 1, _) => {
                    let priority = (pick % 3) as i32;
                    let specs = vec![spec(size as usize, size, priority); 1 + pick % 2];
                    let _ = world.submit(specs);
                }
                (2 | 3, Some(id)) => world.entry(id, vec![5], None),
                (4, Some(id)) => world.entry(id, vec![], Some(WorkerFinish::Stop)),
                (5, Some(id)) => {
                    let fault = if size % 2 == 0 { Fault::Capacity } else { Fault::Internal };
                    let error = WorkerFinish::Error { fault, message: "no".into() };
                    world.entry(id, vec![], Some(error));
                }
                (6, _) if world.next_id > 0 => {
                    let id = SequenceId(pick as u64 % world.next_id);
                    world.run(|state, _, actions| state.cancel(id, actions));
                    world.ended.insert(id);
                    world.running.remove(&id);
                }
                (7, _) if is_up => world.down(worker),
                (7, _) => world.up(worker),
                (8, Some(id)) => {
                    world.run(|state, now, actions| state.park(now, id, actions));
                    if size % 2 == 0 {
                        world.run(|state, now, actions| state.unpark(now, id, actions));
                    }
                }
                (9, _) => {
                    world.now += Duration::from_secs(u64::from(size));
                    world.run(|state, now, actions| state.tick(now, actions));
                }
                _ if is_up => world.credit(worker),
                _ => {}
            }
        }
        // Every clock runs out in the end, and nothing is left.
        for id in [WorkerId(0), WorkerId(1)] {
            if world.state.workers.contains_key(&id) {
                world.down(id);
            }
        }
        for _ in 0..3 {
            world.now += Duration::from_secs(100);
            world.run(|state, now, actions| state.tick(now, actions));
        }
        prop_assert!(world.state.is_idle());
        prop_assert!(world.state.queue.is_empty());
        prop_assert_eq!(world.state.queue.num_tokens(), 0);
    }
}
