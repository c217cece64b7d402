//! `POST /v1/completions`.

use axum::extract::{Extension, Request, State};
use axum::response::Response;

use super::answers::{Answer, gather};
use super::door::{Arrival, HttpState};
use super::reply::{event_stream, json_with_timing};
use super::sse::{Format, write_event};
use super::wire::completions::parse_completion;
use super::wire::options::ReplyOptions;
use super::wire::render::{add_completion_logprobs, stop_reason, usage_body};
use super::wire::reply::{
    CompletionChoice, CompletionLogprobs, Identity, Reply, SYSTEM_FINGERPRINT, UsageBody,
};
use crate::error::GatewayError;
use crate::text_stream::{Delta, TokenLogprob, Usage};

pub(super) async fn completions(
    State(state): State<HttpState>,
    Extension(arrival): Extension<Arrival>,
    request: Request,
) -> Result<Response, GatewayError> {
    let (valid, options) = state.valid_request(&arrival, request, parse_completion).await?;
    let identity = Identity::new("cmpl", valid.model());
    let num_answers = valid.prompts().len() * valid.n() as usize;
    let wants_logprobs = valid.logprobs().is_some();
    let events = state.spine.generate(valid, arrival.context()).await?;
    if options.stream {
        return event_stream(events, CompletionEvents { identity, options }).await;
    }
    let (answers, usage) = gather(events, num_answers).await?;
    let choice =
        |(i, answer): (usize, Answer)| whole_choice(i as u32, answer, &options, wants_logprobs);
    let choices = answers.into_iter().enumerate().map(choice).collect();
    let reply = reply(&identity, choices, Some(usage_body(&usage)));
    Ok(json_with_timing(&reply, &usage))
}

fn reply(
    identity: &Identity,
    choices: Vec<CompletionChoice>,
    usage: Option<UsageBody>,
) -> Reply<'_, CompletionChoice> {
    Reply {
        id: &identity.id,
        object: "text_completion",
        created: identity.created,
        model: &identity.model,
        system_fingerprint: SYSTEM_FINGERPRINT,
        choices,
        usage,
        prompt_token_ids: None,
    }
}

fn whole_choice(
    index: u32,
    answer: Answer,
    options: &ReplyOptions,
    wants_logprobs: bool,
) -> CompletionChoice {
    CompletionChoice {
        index,
        logprobs: wants_logprobs.then(|| columns(&answer.logprobs, options)),
        finish_reason: Some(answer.finish_reason()),
        stop_reason: answer.stop_reason(),
        token_ids: options.return_token_ids.then_some(answer.token_ids),
        prompt_token_ids: answer.prompt_token_ids,
        text: answer.text,
    }
}

fn columns(tokens: &[TokenLogprob], options: &ReplyOptions) -> CompletionLogprobs {
    let mut columns = CompletionLogprobs::default();
    add_completion_logprobs(&mut columns, tokens, options);
    columns
}

/// Writes a completion's deltas as events.
struct CompletionEvents {
    identity: Identity,
    options: ReplyOptions,
}

impl Format for CompletionEvents {
    fn delta(&mut self, delta: Delta, out: &mut Vec<u8>) {
        let with_ids =
            self.options.return_token_ids && !delta.prompt && !delta.token_ids.is_empty();
        let says_nothing = delta.text.is_empty()
            && delta.finish.is_none()
            && delta.logprobs.is_empty()
            && delta.prompt_token_ids.is_none()
            && !with_ids;
        if says_nothing {
            return;
        }
        let finish = delta.finish.as_ref();
        let choice = CompletionChoice {
            index: delta.choice,
            text: delta.text,
            logprobs: (!delta.logprobs.is_empty()).then(|| columns(&delta.logprobs, &self.options)),
            finish_reason: finish.map(|finish| finish.reason.as_str()),
            stop_reason: finish.and_then(|finish| finish.stop_reason.as_ref()).map(stop_reason),
            token_ids: with_ids.then_some(delta.token_ids),
            prompt_token_ids: delta.prompt_token_ids,
        };
        write_event(&reply(&self.identity, vec![choice], None), out);
    }

    fn done(&mut self, usage: Usage, out: &mut Vec<u8>) {
        if self.options.include_usage {
            write_event(&reply(&self.identity, Vec::new(), Some(usage_body(&usage))), out);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::text_stream::{Finish, FinishReason, TopLogprob};

    fn token(token_id: u32, token: &str, logprob: Option<f32>, text_offset: u32) -> TokenLogprob {
        let top = |(token_id, token, logprob): (u32, &str, f32)| TopLogprob {
            token_id,
            token: token.into(),
            bytes: Vec::new(),
            logprob,
        };
        let top = [(1, "the", -0.25), (2, "the", -3.0)].map(top).into();
        TokenLogprob { token_id, token: token.into(), bytes: Vec::new(), logprob, top, text_offset }
    }

    #[test]
    fn an_echoed_and_scored_prompt_stands_in_front() {
        let tokens = vec![token(5, "He", None, 0), token(6, "llo", Some(-1.5), 2)];
        let answer = Answer {
            text: "Hello".into(),
            logprobs: tokens,
            finish: Some(Finish { reason: FinishReason::Length, stop_reason: None }),
            ..Default::default()
        };
        let choice = whole_choice(3, answer, &ReplyOptions::default(), true);
        assert_eq!(
            serde_json::to_value(choice).unwrap(),
            json!({
                "index": 3, "text": "Hello", "finish_reason": "length", "stop_reason": null,
                "logprobs": {
                    "tokens": ["He", "llo"],
                    "token_logprobs": [null, -1.5],
                    "top_logprobs": [null, {"the": -0.25, "llo": -1.5}],
                    "text_offset": [0, 2],
                },
            }),
            "the likelier of two tokens that look the same is kept, the chosen one is added"
        );
    }

    #[test]
    fn logprobs_are_null_unless_asked_for_and_empty_if_there_is_no_token() {
        let choice = |wanted| {
            let choice = whole_choice(0, Answer::default(), &ReplyOptions::default(), wanted);
            serde_json::to_value(choice).unwrap()["logprobs"].clone()
        };
        assert_eq!(choice(false), Value::Null);
        assert_eq!(choice(true)["tokens"], json!([]));
    }

    #[test]
    fn a_streams_events_carry_what_is_new() {
        let options =
            ReplyOptions { return_token_ids: true, include_usage: true, ..Default::default() };
        let mut format = CompletionEvents { identity: Identity::new("cmpl", "tiny"), options };
        let mut out = Vec::new();
        let prompt = Delta {
            prompt: true,
            text: "He".into(),
            token_ids: vec![5],
            prompt_token_ids: Some(vec![5]),
            ..Default::default()
        };
        let held_back = Delta::default();
        let rest = Delta { text: "llo".into(), token_ids: vec![6], ..Default::default() };
        for delta in [prompt, held_back, rest] {
            format.delta(delta, &mut out);
        }
        format.done(Usage::default(), &mut out);
        let text = String::from_utf8(out).unwrap();
        let events: Vec<Value> = text
            .split("\n\n")
            .filter_map(|event| event.strip_prefix("data: "))
            .map(|event| serde_json::from_str(event).unwrap())
            .collect();
        assert_eq!(events.len(), 3, "a delta that says nothing is no event");
        assert_eq!(events[0]["object"], "text_completion");
        assert_eq!(events[0]["choices"][0]["text"], "He");
        assert_eq!(events[0]["choices"][0]["prompt_token_ids"], json!([5]));
        assert_eq!(events[0]["choices"][0].get("token_ids"), None, "the prompt is no answer");
        assert_eq!(events[1]["choices"][0]["token_ids"], json!([6]));
        assert_eq!(events[2]["choices"], json!([]));
        assert!(events[2]["usage"].is_object());
    }
}
