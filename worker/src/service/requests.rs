//! The live requests of one stream: the gateway's keys, the engine's ids.

use std::collections::HashMap;

use tracing::Span;

use crate::convert::step::Assignment;
use crate::generation::{Event, SequenceId};

/// A live request.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) assignment: Assignment,
    /// Open while the request lives.
    pub(super) span: Span,
    /// In its context: prompt, resumed and generated.
    num_tokens: u32,
}

/// Live requests by both names.
#[derive(Debug)]
pub(super) struct Requests {
    by_sequence: HashMap<SequenceId, Live>,
    by_key: HashMap<u32, SequenceId>,
    kv_block_size: u32,
    kv_blocks: u32,
}

impl Requests {
    pub(super) fn new(kv_block_size: u32) -> Self {
        Self { by_sequence: HashMap::new(), by_key: HashMap::new(), kv_block_size, kv_blocks: 0 }
    }

    pub(super) fn insert(
        &mut self,
        sequence: SequenceId,
        assignment: Assignment,
        num_tokens: u32,
        span: Span,
    ) {
        self.kv_blocks += self.blocks(num_tokens);
        self.by_key.insert(assignment.request_key, sequence);
        self.by_sequence.insert(sequence, Live { assignment, span, num_tokens });
    }

    /// Follows an event; a request that has ended is taken out and returned.
    pub(super) fn observe(&mut self, event: &Event) -> Option<Live> {
        match event {
            Event::Token { sequence, .. } => {
                let (before, after) = {
                    let live = self.by_sequence.get_mut(sequence)?;
                    live.num_tokens += 1;
                    (live.num_tokens - 1, live.num_tokens)
                };
                self.kv_blocks += self.blocks(after) - self.blocks(before);
                None
            }
            Event::Finished { sequence, .. } => {
                let live = self.by_sequence.remove(sequence)?;
                self.by_key.remove(&live.assignment.request_key);
                self.kv_blocks -= self.blocks(live.num_tokens);
                Some(live)
            }
            Event::Admitted { .. } | Event::PromptLogprobs { .. } => None,
        }
    }

    pub(super) fn assignment(&self, sequence: SequenceId) -> Option<Assignment> {
        self.by_sequence.get(&sequence).map(|live| live.assignment)
    }

    pub(super) fn sequence(&self, request_key: u32) -> Option<SequenceId> {
        self.by_key.get(&request_key).copied()
    }

    /// Blocks that the live requests' tokens take, the next token included.
    pub(super) fn kv_blocks(&self) -> u32 {
        self.kv_blocks
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_sequence.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.by_sequence.len()
    }

    fn blocks(&self, num_tokens: u32) -> u32 {
        (num_tokens + 1).div_ceil(self.kv_block_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::{FinishReason, SequenceTiming};

    #[test]
    fn blocks_follow_tokens_and_are_all_given_back() {
        let mut requests = Requests::new(4);
        let assignment = Assignment { request_key: 9, epoch: 1 };
        let sequence = SequenceId(1);
        requests.insert(sequence, assignment, 3, Span::none());
        assert_eq!(requests.kv_blocks(), 1);
        let token = Event::Token { sequence, token_id: 0, logprobs: None };
        assert!(requests.observe(&token).is_none());
        assert_eq!(requests.kv_blocks(), 2);
        assert_eq!(requests.sequence(9), Some(sequence));
        let (reason, timing) = (FinishReason::Length, SequenceTiming::default());
        let live = requests.observe(&Event::Finished { sequence, reason, timing }).unwrap();
        assert_eq!(live.assignment, assignment);
        assert!(requests.is_empty() && requests.sequence(9).is_none());
        assert_eq!(requests.kv_blocks(), 0);
        assert!(requests.observe(&token).is_none(), "late events are nobody's");
    }
}
