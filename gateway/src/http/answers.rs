//! Gathering a whole reply: the deltas of each answer put together.

use futures::{Stream, StreamExt as _};

use super::wire::render::stop_reason;
use crate::error::GatewayError;
use crate::text_stream::{Delta, Finish, TextEvent, TokenLogprob, Usage};

/// One complete answer.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Answer {
    /// With the echoed prompt in front.
    pub(crate) text: String,
    /// Of the answer alone.
    pub(crate) token_ids: Vec<u32>,
    pub(crate) prompt_token_ids: Option<Vec<u32>>,
    /// With the echoed prompt's in front.
    pub(crate) logprobs: Vec<TokenLogprob>,
    pub(crate) finish: Option<Finish>,
}

impl Answer {
    fn add(&mut self, delta: Delta) {
        self.text.push_str(&delta.text);
        self.logprobs.extend(delta.logprobs);
        if !delta.prompt {
            self.token_ids.extend(delta.token_ids);
        }
        if delta.prompt_token_ids.is_some() {
            self.prompt_token_ids = delta.prompt_token_ids;
        }
        if delta.finish.is_some() {
            self.finish = delta.finish;
        }
    }

    /// As OpenAI spells it.
    pub(crate) fn finish_reason(&self) -> &'static str {
        // `gather` returns no answer without one.
        self.finish.as_ref().map_or("stop", |finish| finish.reason.as_str())
    }

    /// What made it stop, in vLLM's field.
    pub(crate) fn stop_reason(&self) -> Option<serde_json::Value> {
        self.finish.as_ref()?.stop_reason.as_ref().map(stop_reason)
    }
}

/// All `num_answers` answers of a request.
///
/// # Errors
/// The stream's error, or that it ended before its answers did.
pub(crate) async fn gather<S>(
    mut events: S,
    num_answers: usize,
) -> Result<(Vec<Answer>, Usage), GatewayError>
where
    S: Stream<Item = Result<TextEvent, GatewayError>> + Unpin,
{
    let mut answers: Vec<Answer> = Vec::new();
    answers.resize_with(num_answers, Answer::default);
    while let Some(event) = events.next().await {
        match event? {
            TextEvent::Delta(delta) => match answers.get_mut(delta.choice as usize) {
                Some(answer) => answer.add(delta),
                None => return Err(GatewayError::Internal("an answer too many".into())),
            },
            TextEvent::Done(usage) if answers.iter().all(|answer| answer.finish.is_some()) => {
                return Ok((answers, usage));
            }
            TextEvent::Done(_) => break,
        }
    }
    Err(GatewayError::Internal("the answer broke off".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text_stream::FinishReason;

    fn delta(choice: u32, text: &str, finish: bool) -> Result<TextEvent, GatewayError> {
        let finish = finish.then_some(Finish { reason: FinishReason::Length, stop_reason: None });
        let token_ids = vec![choice];
        Ok(TextEvent::Delta(Delta {
            choice,
            text: text.into(),
            token_ids,
            finish,
            ..Default::default()
        }))
    }

    fn done() -> Result<TextEvent, GatewayError> {
        Ok(TextEvent::Done(Usage::default()))
    }

    #[tokio::test]
    async fn interleaved_deltas_are_put_together_by_answer() {
        let prompt =
            Delta { prompt: true, text: "p".into(), token_ids: vec![9], ..Default::default() };
        let events = vec![
            Ok(TextEvent::Delta(prompt)),
            delta(1, "x", false),
            delta(0, "a", false),
            delta(1, "y", true),
            delta(0, "b", true),
            done(),
        ];
        let (answers, _) = gather(futures::stream::iter(events), 2).await.unwrap();
        assert_eq!((answers[0].text.as_str(), answers[1].text.as_str()), ("pab", "xy"));
        assert_eq!(answers[0].token_ids, [0, 0], "the echoed prompt's ids are not the answer's");
        assert_eq!(answers[0].finish_reason(), "length");
    }

    #[tokio::test]
    async fn an_incomplete_stream_is_an_error() {
        let cases = [
            vec![],
            vec![delta(0, "a", false)],
            vec![delta(0, "a", false), done()],
            vec![delta(1, "a", true), done()],
            vec![delta(0, "a", true), Err(GatewayError::WorkerLost)],
        ];
        for events in cases {
            gather(futures::stream::iter(events), 1).await.unwrap_err();
        }
    }
}
