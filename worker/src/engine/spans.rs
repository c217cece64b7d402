//! The engine's part of each request's trace: queue, prefill, decode.

use std::collections::HashMap;

use tracing::Span;
use tracing::field::Empty;

use crate::generation::{Event, FinishReason, SequenceId, SequenceTiming};

#[derive(Debug)]
struct SequenceSpans {
    parent: Span,
    /// The phase that the sequence is in; closed by being dropped.
    phase: Span,
    queued: bool,
    prefilling: bool,
    prompt_tokens: usize,
}

/// Spans of the sequences that have not ended.
#[derive(Debug, Default)]
pub(super) struct Spans {
    by_id: HashMap<SequenceId, SequenceSpans>,
}

impl Spans {
    /// A sequence begins to wait.
    pub(super) fn submitted(&mut self, id: SequenceId, parent: Span, prompt_tokens: usize) {
        let phase = tracing::info_span!(parent: &parent, "queue", finish_reason = Empty);
        let spans = SequenceSpans { parent, phase, queued: true, prefilling: false, prompt_tokens };
        self.by_id.insert(id, spans);
    }

    /// Follows what happens to a sequence. True when this ends its (first)
    /// wait.
    pub(super) fn observe(&mut self, event: &Event) -> bool {
        match event {
            Event::Admitted { sequence, cached_tokens } => {
                let Some(spans) = self.by_id.get_mut(sequence) else { return false };
                spans.phase = tracing::info_span!(
                    parent: &spans.parent,
                    "prefill",
                    prompt_tokens = spans.prompt_tokens,
                    cached_tokens,
                    finish_reason = Empty,
                );
                spans.prefilling = true;
                std::mem::take(&mut spans.queued)
            }
            Event::PromptLogprobs { .. } => false,
            Event::Token { sequence, .. } => {
                let Some(spans) = self.by_id.get_mut(sequence) else { return false };
                if std::mem::take(&mut spans.prefilling) {
                    spans.phase = tracing::info_span!(
                        parent: &spans.parent,
                        "decode",
                        generated_tokens = Empty,
                        preemptions = Empty,
                        finish_reason = Empty,
                    );
                }
                false
            }
            Event::Finished { sequence, reason, timing } => {
                let Some(spans) = self.by_id.remove(sequence) else { return false };
                spans.close(reason, timing);
                spans.queued
            }
        }
    }
}

impl SequenceSpans {
    fn close(&self, reason: &FinishReason, timing: &SequenceTiming) {
        self.phase.record("finish_reason", name_of(reason));
        self.phase.record("generated_tokens", timing.generated_tokens);
        self.phase.record("preemptions", timing.preemptions);
    }
}

fn name_of(reason: &FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop(_) => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
        FinishReason::Deadline => "deadline",
        FinishReason::Numerical => "numerical_error",
        FinishReason::Device(_) | FinishReason::DeviceFailed(_) => "device_error",
    }
}
