//! From the bytes of an event stream to the parts of an answer.

use std::collections::VecDeque;

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde_json::Value;

use super::{Part, Usage};

/// Parses an event stream however its bytes are cut.
#[derive(Debug, Default)]
pub(super) struct Events {
    pending: Vec<u8>,
    lines: VecDeque<Vec<u8>>,
    parts: VecDeque<Part>,
    done: bool,
}

#[derive(Debug, Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Delta,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
}

impl Events {
    /// More bytes from the wire.
    pub(super) fn push(&mut self, data: &[u8]) {
        for &byte in data {
            if byte == b'\n' {
                self.lines.push_back(std::mem::take(&mut self.pending));
            } else {
                self.pending.push(byte);
            }
        }
    }

    /// Whether `[DONE]` has been read.
    pub(super) fn is_done(&self) -> bool {
        self.done && self.parts.is_empty()
    }

    /// The next part that is complete.
    ///
    /// # Errors
    /// When an event is not what it should be, or carries an error.
    pub(super) fn next_part(&mut self) -> anyhow::Result<Option<Part>> {
        loop {
            if let Some(part) = self.parts.pop_front() {
                return Ok(Some(part));
            }
            let Some(line) = self.lines.pop_front() else { return Ok(None) };
            self.line(&line)?;
        }
    }

    fn line(&mut self, line: &[u8]) -> anyhow::Result<()> {
        // Comments keep the connection alive; other fields are not used.
        let Some(data) = line.strip_prefix(b"data:") else { return Ok(()) };
        let data = data.trim_ascii();
        if data == b"[DONE]" {
            self.done = true;
            return Ok(());
        }
        let chunk: Chunk =
            serde_json::from_slice(data).context("the gateway sent an event that is not JSON")?;
        if let Some(error) = chunk.error {
            let message = error.get("message").and_then(Value::as_str).unwrap_or("no reason given");
            bail!("the answer failed: {message}");
        }
        for choice in chunk.choices {
            if let Some(text) = choice.delta.content.filter(|text| !text.is_empty()) {
                self.parts.push_back(Part::Text(text));
            }
            self.parts.extend(choice.finish_reason.map(Part::Finish));
        }
        self.parts.extend(chunk.usage.map(Part::Usage));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &str = ": keep-alive\n\n\
        data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
        data: {\"choices\":[{\"delta\":{\"content\":\"h\\u00e9 🙂\"}}]}\r\n\r\n\
        data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,\"total_tokens\":5}}\n\n\
        data: [DONE]\n\n";

    fn parts(cuts: &[usize]) -> Vec<Part> {
        let mut events = Events::default();
        let mut parts = Vec::new();
        let mut start = 0;
        for &end in cuts.iter().chain([&STREAM.len()]) {
            events.push(&STREAM.as_bytes()[start..end]);
            start = end;
            while let Some(part) = events.next_part().expect("good stream") {
                parts.push(part);
            }
        }
        assert!(events.is_done());
        parts
    }

    proptest! {
        #[test]
        fn the_cuts_do_not_matter(mut cuts in prop::collection::vec(0..STREAM.len(), 0..20)) {
            cuts.sort_unstable();
            let usage =
                Usage { prompt_tokens: 3, completion_tokens: 2, prompt_tokens_details: None };
            let expected = [
                Part::Text("hé 🙂".to_owned()),
                Part::Finish("stop".to_owned()),
                Part::Usage(usage),
            ];
            prop_assert_eq!(parts(&cuts), expected);
        }
    }

    #[test]
    fn an_error_event_is_an_error() {
        let mut events = Events::default();
        events.push(b"data: {\"error\":{\"message\":\"worker lost\"}}\n\n");
        let error = events.next_part().expect_err("must fail");
        assert!(error.to_string().contains("worker lost"), "{error}");
        assert!(!events.is_done());
    }
}
