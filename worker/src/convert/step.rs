//! One engine step's events for one gateway, as frames: an `Admitted` each,
//! then one columnar `StepOutput`.

use std::collections::HashMap;

use proto::v1 as wire;
use proto::v1::worker_frame::Body;

use crate::generation::{Event, Logprobs, SequenceId, StepEvents, StepTiming};

/// What the gateway calls a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assignment {
    /// The gateway's own number.
    pub request_key: u32,
    /// Epoch of the assignment.
    pub epoch: u32,
}

/// One sequence's output in the step.
#[derive(Debug)]
struct Entry<'a> {
    assignment: Assignment,
    tokens: Vec<(u32, Option<&'a Logprobs>)>,
}

/// The frames of a step. Events of sequences that `assignment` does not know
/// are left out; nothing is made for a step without output.
///
/// A sequence that only ends, without a token, has an entry too (with a count
/// of 0), so that its epoch is told.
pub fn frames(
    step: &StepEvents,
    stream_epoch: u32,
    assignment: impl Fn(SequenceId) -> Option<Assignment>,
) -> Vec<Body> {
    let mut bodies = Vec::new();
    let mut output = wire::StepOutput {
        step: step.step,
        kind: kind(&step.timing).into(),
        load: Some(super::load(step.load)),
        timing: Some(super::step_timing(&step.timing)),
        ..wire::StepOutput::default()
    };
    let mut entries: Vec<Entry<'_>> = Vec::new();
    let mut by_sequence: HashMap<SequenceId, usize> = HashMap::new();
    for event in &step.events {
        let sequence = sequence_of(event);
        let Some(assignment) = assignment(sequence) else { continue };
        let request_key = assignment.request_key;
        if let Event::Admitted { cached_tokens, .. } = event {
            bodies.push(Body::Admitted(wire::Admitted {
                request_key,
                epoch: assignment.epoch,
                cached_tokens: *cached_tokens,
            }));
            continue;
        }
        let at = *by_sequence.entry(sequence).or_insert_with(|| {
            entries.push(Entry { assignment, tokens: Vec::new() });
            entries.len() - 1
        });
        match event {
            Event::Admitted { .. } => {}
            Event::Token { token_id, logprobs, .. } => {
                entries[at].tokens.push((*token_id, logprobs.as_ref()));
            }
            Event::PromptLogprobs { first_position, tokens, .. } => {
                let converted = super::prompt_logprobs(request_key, *first_position, tokens);
                output.prompt_logprobs.push(converted);
            }
            Event::Finished { reason, timing, .. } => {
                output.finishes.push(super::finish(request_key, reason, timing));
            }
        }
    }
    if !entries.is_empty() {
        write_columns(&mut output, &entries, stream_epoch);
        bodies.push(Body::Step(output));
    }
    bodies
}

fn write_columns(output: &mut wire::StepOutput, entries: &[Entry<'_>], stream_epoch: u32) {
    output.request_keys = entries.iter().map(|entry| entry.assignment.request_key).collect();
    if entries.iter().any(|entry| entry.assignment.epoch != stream_epoch) {
        output.epochs = entries.iter().map(|entry| entry.assignment.epoch).collect();
    }
    if entries.iter().any(|entry| entry.tokens.len() != 1) {
        output.token_counts = entries.iter().map(|entry| clamp(entry.tokens.len())).collect();
    }
    for (token_id, logprobs) in entries.iter().flat_map(|entry| &entry.tokens) {
        if let Some(logprobs) = logprobs {
            let token_index = clamp(output.token_ids.len());
            output.logprobs.push(super::token_logprobs(token_index, logprobs));
        }
        output.token_ids.push(*token_id);
    }
}

fn sequence_of(event: &Event) -> SequenceId {
    match event {
        Event::Admitted { sequence, .. }
        | Event::PromptLogprobs { sequence, .. }
        | Event::Token { sequence, .. }
        | Event::Finished { sequence, .. } => *sequence,
    }
}

fn kind(timing: &StepTiming) -> wire::StepKind {
    match (timing.prefill_tokens > 0, timing.decode_tokens > 0) {
        (true, true) => wire::StepKind::Mixed,
        (true, false) => wire::StepKind::Prefill,
        (false, true) => wire::StepKind::Decode,
        (false, false) => wire::StepKind::Unspecified,
    }
}

/// A frame holds far fewer than 2³² of anything.
fn clamp(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::{FinishReason, SequenceTiming};

    const EPOCH: u32 = 3;

    fn of_key(request_key: u32, epoch: u32) -> Assignment {
        Assignment { request_key, epoch }
    }

    fn known(sequence: SequenceId) -> Option<Assignment> {
        (sequence.0 < 100).then(|| of_key(sequence.0 as u32 + 10, EPOCH))
    }

    fn token(sequence: u64, token_id: u32) -> Event {
        Event::Token { sequence: SequenceId(sequence), token_id, logprobs: None }
    }

    fn finished(sequence: u64) -> Event {
        Event::Finished {
            sequence: SequenceId(sequence),
            reason: FinishReason::Length,
            timing: SequenceTiming::default(),
        }
    }

    fn step(events: Vec<Event>) -> StepEvents {
        let timing = StepTiming { decode_tokens: 2, ..StepTiming::default() };
        StepEvents { step: 5, events, load: Default::default(), timing }
    }

    fn output(bodies: &[Body]) -> &wire::StepOutput {
        match bodies.last() {
            Some(Body::Step(output)) => output,
            other => panic!("no output but {other:?}"),
        }
    }

    #[test]
    fn one_token_each_needs_neither_counts_nor_epochs() {
        let bodies = frames(&step(vec![token(1, 7), token(0, 8), finished(0)]), EPOCH, known);
        assert_eq!(bodies.len(), 1);
        let output = output(&bodies);
        assert_eq!((output.step, output.kind()), (5, wire::StepKind::Decode));
        assert_eq!((&output.request_keys[..], &output.token_ids[..]), (&[11, 10][..], &[7, 8][..]));
        assert!(output.token_counts.is_empty() && output.epochs.is_empty());
        assert_eq!(output.finishes[0].request_key, 10);
    }

    #[test]
    fn merged_steps_group_tokens_and_point_logprobs_at_them() {
        let logprobs = Logprobs { logprob: -0.5, top: vec![(9, -0.5), (4, -1.0)] };
        let scored =
            Event::Token { sequence: SequenceId(0), token_id: 9, logprobs: Some(logprobs) };
        let events = vec![token(0, 7), token(1, 8), scored, finished(2)];
        let bodies = frames(&step(events), EPOCH, known);
        let output = output(&bodies);
        assert_eq!(output.request_keys, [10, 11, 12]);
        assert_eq!(output.token_counts, [2, 1, 0]);
        assert_eq!(output.token_ids, [7, 9, 8]);
        assert_eq!(output.logprobs.len(), 1);
        assert_eq!(output.logprobs[0].token_index, 1);
        assert_eq!(output.logprobs[0].top_token_ids, [9, 4]);
    }

    #[test]
    fn admissions_come_first_and_alone_make_no_output() {
        let admitted = Event::Admitted { sequence: SequenceId(0), cached_tokens: 32 };
        let bodies = frames(&step(vec![admitted.clone()]), EPOCH, known);
        assert!(matches!(&bodies[..], [Body::Admitted(a)] if a.cached_tokens == 32));
        let bodies = frames(&step(vec![token(1, 7), admitted]), EPOCH, known);
        assert!(matches!(&bodies[..], [Body::Admitted(_), Body::Step(_)]));
    }

    #[test]
    fn epochs_are_told_when_one_differs() {
        let events = step(vec![token(0, 1), token(1, 2)]);
        let bodies = frames(&events, EPOCH, |sequence| Some(of_key(1, EPOCH + sequence.0 as u32)));
        assert_eq!(output(&bodies).epochs, [EPOCH, EPOCH + 1]);
    }

    #[test]
    fn unknown_sequences_are_left_out() {
        assert!(frames(&step(vec![token(100, 1), finished(200)]), EPOCH, known).is_empty());
        assert!(frames(&step(vec![]), EPOCH, known).is_empty());
    }
}
