//! Batches of a tiny random model: no user notices another.

use super::*;
use crate::driver::tests::tiny_driver;

const GREEDY: Decoding =
    Decoding { iterations: 12, stop_ids: Vec::new(), temperature: 0.0, top_p: 1.0, seed: 0 };

fn prompt(seed: u32) -> Encoded {
    let ids = (0..20 + seed % 5).map(|n| (n * n + 7 * n * seed + seed) % 64).collect();
    Encoded { text: String::new(), ids, clipped: 0 }
}

/// Runs a batch on blocks dealt by `seed`, in a cache that `driver` may have
/// used before.
fn answers(
    (driver, tables): &mut (Driver, crate::driver::BlockTables),
    seed: u64,
    prompts: &[&Encoded],
    decoding: &Decoding,
) -> Vec<Answer> {
    let sequences = tables.deal(prompts.len(), 40, seed).unwrap();
    run(driver, sequences, prompts, decoding, &mut |_| {}).unwrap().answers
}

#[test]
fn equal_prompts_get_the_answer_that_each_gets_alone() {
    let mut model = tiny_driver(32 * 5, 16);
    let prompt = prompt(3);
    let alone = answers(&mut model, 1, &[&prompt], &GREEDY).remove(0);
    assert_eq!(alone.ids.len(), 13);
    assert_eq!(answers(&mut model, 2, &[&prompt; 32], &GREEDY), vec![alone; 32]);
}

#[test]
fn a_later_batch_is_as_if_it_were_the_first() {
    let prompts: Vec<Encoded> = (0..32).map(prompt).collect();
    let mut used = tiny_driver(32 * 5, 16);
    for batch in 0..3 {
        let of_batch: Vec<&Encoded> = (0..32).map(|user| &prompts[(user + batch) % 32]).collect();
        let after_others = answers(&mut used, batch as u64, &of_batch, &GREEDY);
        let fresh = answers(&mut tiny_driver(32 * 5, 16), 99, &of_batch, &GREEDY);
        assert_eq!(after_others, fresh, "batch {batch}");
        let alone = answers(&mut used, 50, &of_batch[..1], &GREEDY);
        assert_eq!(alone[0], after_others[0]);
        // Different prompts do get different answers here.
        assert!(after_others.iter().any(|answer| *answer != after_others[0]));
    }
}

#[test]
fn a_stop_id_ends_one_answer_and_not_the_others() {
    let mut model = tiny_driver(20, 16);
    let prompts = [prompt(1), prompt(2)];
    let both: Vec<&Encoded> = prompts.iter().collect();
    let free = answers(&mut model, 1, &both, &GREEDY);
    // An id of the first answer that the second lacks.
    let place = free[0].ids.iter().position(|id| !free[1].ids.contains(id)).unwrap();
    let stop = free[0].ids[place];
    let decoding = Decoding { stop_ids: vec![stop], ..GREEDY };
    let stopped = answers(&mut model, 2, &both, &decoding);
    assert_eq!(stopped[0], Answer { ids: free[0].ids[..place].to_vec(), stopped_by: Some(stop) });
    assert_eq!(stopped[1], free[1]);
}

#[test]
fn iterations_are_a_bound_and_every_step_is_told() {
    let (mut driver, tables) = tiny_driver(20, 16);
    let prompts = [prompt(1), prompt(2), prompt(4)];
    let all: Vec<&Encoded> = prompts.iter().collect();
    for iterations in [0, 1, 7] {
        let decoding = Decoding { iterations, ..GREEDY };
        let (mut tokens, mut steps, mut prefills) = (0, 0, 0);
        let sequences = tables.deal(3, 32, 5).unwrap();
        let run = run(&mut driver, sequences, &all, &decoding, &mut |event| match event {
            Event::Prefilled { .. } => prefills += 1,
            Event::Token { .. } => tokens += 1,
            Event::Step { number, answering, .. } => {
                steps += 1;
                assert_eq!((number, answering), (steps, 3));
            }
        })
        .unwrap();
        assert_eq!((prefills, steps, tokens), (3, iterations, 3 * (iterations + 1)));
        assert_eq!((run.steps.len(), run.prefill.len()), (iterations, 3));
        assert_eq!(run.kept, vec![3; iterations]);
        assert!(run.answers.iter().all(|answer| answer.ids.len() == iterations + 1));
    }
}

#[test]
fn a_batch_that_is_done_is_not_computed_further() {
    let (mut driver, tables) = tiny_driver(20, 16);
    let decoding = Decoding { stop_ids: (0..64).collect(), ..GREEDY };
    let sequences = tables.deal(1, 32, 5).unwrap();
    let run = run(&mut driver, sequences, &[&prompt(1)], &decoding, &mut |_| {}).unwrap();
    assert!(run.steps.is_empty() && run.answers[0].ids.is_empty());
}

#[test]
fn draws_depend_on_the_seed_and_the_user() {
    let mut model = tiny_driver(40, 16);
    let prompt = prompt(1);
    let warm = Decoding { temperature: 1.5, seed: 4, ..GREEDY };
    let first = answers(&mut model, 1, &[&prompt; 3], &warm);
    assert_eq!(answers(&mut model, 2, &[&prompt; 3], &warm), first);
    assert_ne!(first[0], first[1]);
    let shifted = answers(&mut model, 3, &[&prompt], &Decoding { seed: 5, ..warm });
    assert_eq!(shifted[0], first[1]);
}
