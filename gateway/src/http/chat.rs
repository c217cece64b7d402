//! `POST /v1/chat/completions`.

use axum::extract::{Extension, Request, State};
use axum::response::Response;

use super::answers::{Answer, gather};
use super::door::{Arrival, HttpState};
use super::reply::{event_stream, json_with_timing};
use super::sse::{Format, write_event};
use super::wire::chat::parse_chat;
use super::wire::options::ReplyOptions;
use super::wire::render::{chat_logprobs, stop_reason, usage_body};
use super::wire::reply::{
    AssistantMessage, ChatChoice, ChatChunkChoice, ChatDelta, Identity, Reply, SYSTEM_FINGERPRINT,
    UsageBody,
};
use crate::error::GatewayError;
use crate::text_stream::{Delta, Usage};

const CHUNK: &str = "chat.completion.chunk";

pub(super) async fn chat_completions(
    State(state): State<HttpState>,
    Extension(arrival): Extension<Arrival>,
    request: Request,
) -> Result<Response, GatewayError> {
    let (valid, options) = state.valid_request(&arrival, request, parse_chat).await?;
    let identity = Identity::new("chatcmpl", valid.model());
    let num_answers = valid.prompts().len() * valid.n() as usize;
    let wants_logprobs = valid.logprobs().is_some();
    let events = state.spine.generate(valid, arrival.context()).await?;
    if options.stream {
        let format = ChatEvents::new(identity, options, num_answers);
        return event_stream(events, format).await;
    }
    let (answers, usage) = gather(events, num_answers).await?;
    let mut answers = answers;
    let prompt_token_ids = answers.first_mut().and_then(|answer| answer.prompt_token_ids.take());
    let choice =
        |(i, answer): (usize, Answer)| whole_choice(i as u32, answer, &options, wants_logprobs);
    let reply = Reply {
        id: &identity.id,
        object: "chat.completion",
        created: identity.created,
        model: &identity.model,
        system_fingerprint: SYSTEM_FINGERPRINT,
        choices: answers.into_iter().enumerate().map(choice).collect(),
        usage: Some(usage_body(&usage)),
        prompt_token_ids,
    };
    Ok(json_with_timing(&reply, &usage))
}

fn whole_choice(
    index: u32,
    answer: Answer,
    options: &ReplyOptions,
    wants_logprobs: bool,
) -> ChatChoice {
    ChatChoice {
        index,
        logprobs: wants_logprobs.then(|| chat_logprobs(&answer.logprobs, options)),
        finish_reason: answer.finish_reason(),
        stop_reason: answer.stop_reason(),
        token_ids: options.return_token_ids.then_some(answer.token_ids),
        message: AssistantMessage { role: "assistant", content: answer.text, refusal: None },
    }
}

/// Writes a chat's deltas as chunks.
struct ChatEvents {
    identity: Identity,
    options: ReplyOptions,
    /// Whether each answer's role has been written.
    begun: Vec<bool>,
}

impl ChatEvents {
    fn new(identity: Identity, options: ReplyOptions, num_answers: usize) -> Self {
        Self { identity, options, begun: vec![false; num_answers] }
    }

    fn chunk(
        &self,
        choice: Option<ChatChunkChoice>,
        usage: Option<UsageBody>,
        prompt_token_ids: Option<Vec<u32>>,
    ) -> Reply<'_, ChatChunkChoice> {
        Reply {
            id: &self.identity.id,
            object: CHUNK,
            created: self.identity.created,
            model: &self.identity.model,
            system_fingerprint: SYSTEM_FINGERPRINT,
            choices: choice.into_iter().collect(),
            usage,
            prompt_token_ids,
        }
    }

    /// The first chunk of an answer: its role.
    fn begin(&mut self, delta: &mut Delta, out: &mut Vec<u8>) {
        let Some(begun) = self.begun.get_mut(delta.choice as usize) else { return };
        if std::mem::replace(begun, true) {
            return;
        }
        let role = ChatDelta { role: Some("assistant"), content: Some(String::new()) };
        let choice = ChatChunkChoice::new(delta.choice, role);
        let chunk = self.chunk(Some(choice), None, delta.prompt_token_ids.take());
        write_event(&chunk, out);
    }
}

impl Format for ChatEvents {
    fn delta(&mut self, mut delta: Delta, out: &mut Vec<u8>) {
        self.begin(&mut delta, out);
        let token_ids = (self.options.return_token_ids && !delta.token_ids.is_empty())
            .then_some(delta.token_ids);
        let says_nothing = delta.text.is_empty()
            && delta.finish.is_none()
            && delta.logprobs.is_empty()
            && token_ids.is_none();
        if says_nothing {
            return;
        }
        let content = (!delta.text.is_empty()).then_some(delta.text);
        let logprobs =
            (!delta.logprobs.is_empty()).then(|| chat_logprobs(&delta.logprobs, &self.options));
        let choice = ChatChunkChoice {
            logprobs,
            finish_reason: delta.finish.as_ref().map(|finish| finish.reason.as_str()),
            stop_reason: delta
                .finish
                .as_ref()
                .and_then(|finish| finish.stop_reason.as_ref())
                .map(stop_reason),
            token_ids,
            ..ChatChunkChoice::new(delta.choice, ChatDelta { role: None, content })
        };
        write_event(&self.chunk(Some(choice), None, None), out);
    }

    fn done(&mut self, usage: Usage, out: &mut Vec<u8>) {
        if self.options.include_usage {
            write_event(&self.chunk(None, Some(usage_body(&usage)), None), out);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::text_stream::{Finish, FinishReason, StopReason, TokenLogprob, TopLogprob};

    /// Each event's JSON without what all have in common.
    fn events(options: &ReplyOptions, num_answers: usize, deltas: Vec<Delta>) -> Vec<Value> {
        let identity = Identity::new("chatcmpl", "tiny");
        let mut format = ChatEvents::new(identity.clone(), options.clone(), num_answers);
        let mut out = Vec::new();
        for delta in deltas {
            format.delta(delta, &mut out);
        }
        let usage = Usage { prompt_tokens: 5, completion_tokens: 2, ..Default::default() };
        format.done(usage, &mut out);
        let text = String::from_utf8(out).unwrap();
        let event = |event: &str| {
            let mut json: Value = serde_json::from_str(event.strip_prefix("data: ")?).unwrap();
            let object = json.as_object_mut().unwrap();
            assert_eq!(object.remove("id").unwrap(), identity.id);
            assert_eq!(object.remove("object").unwrap(), "chat.completion.chunk");
            assert_eq!(object.remove("model").unwrap(), "tiny");
            assert!(object.remove("created").unwrap().is_u64());
            assert!(object.remove("system_fingerprint").unwrap().is_string());
            Some(json)
        };
        text.split("\n\n").filter_map(event).collect()
    }

    fn delta(choice: u32, text: &str) -> Delta {
        Delta { choice, text: text.into(), token_ids: vec![7], ..Default::default() }
    }

    fn finish(reason: FinishReason, stop: Option<StopReason>) -> Option<Finish> {
        Some(Finish { reason, stop_reason: stop })
    }

    #[test]
    fn each_answer_begins_with_its_role_and_ends_with_its_reason() {
        let last = Delta { finish: finish(FinishReason::Length, None), ..delta(0, "b") };
        let deltas = vec![delta(0, "a"), delta(1, "x"), delta(0, ""), last];
        let chunk = |index: u32, delta: Value, reason: Value| {
            let choice = json!({
                "index": index, "delta": delta, "logprobs": null, "finish_reason": reason,
            });
            json!({"choices": [choice]})
        };
        let role = json!({"role": "assistant", "content": ""});
        let wanted = vec![
            chunk(0, role.clone(), Value::Null),
            chunk(0, json!({"content": "a"}), Value::Null),
            chunk(1, role, Value::Null),
            chunk(1, json!({"content": "x"}), Value::Null),
            chunk(0, json!({"content": "b"}), json!("length")),
        ];
        assert_eq!(events(&ReplyOptions::default(), 2, deltas), wanted);
    }

    #[test]
    fn usage_comes_last_and_only_if_asked_for() {
        let options = ReplyOptions { include_usage: true, ..Default::default() };
        let events = events(&options, 1, vec![delta(0, "a")]);
        let last = events.last().unwrap();
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"]["total_tokens"], 7);
        assert_eq!(last["usage"]["prompt_tokens_details"], json!({"cached_tokens": 0}));
        assert!(last["usage"]["timings"]["ttft_ms"].is_f64());
        assert!(events[..events.len() - 1].iter().all(|event| event.get("usage").is_none()));
    }

    #[test]
    fn ids_and_stop_reasons_are_passed_on() {
        let options = ReplyOptions { return_token_ids: true, ..Default::default() };
        let first = Delta { prompt_token_ids: Some(vec![1, 2]), ..delta(0, "") };
        let stop = Some(StopReason::Text("END".into()));
        let last = Delta { finish: finish(FinishReason::Stop, stop), ..delta(0, "") };
        let events = events(&options, 1, vec![first, last]);
        assert_eq!(events[0]["prompt_token_ids"], json!([1, 2]));
        assert_eq!(events[1]["choices"][0]["token_ids"], json!([7]), "a token without text counts");
        assert_eq!(events[2]["choices"][0]["stop_reason"], "END");
        assert_eq!(events[2]["choices"][0]["delta"], json!({}));
    }

    #[test]
    fn logprobs_have_bytes_and_alternatives() {
        let top = |token_id, token: &str, logprob| TopLogprob {
            token_id,
            token: token.into(),
            bytes: token.as_bytes().to_vec(),
            logprob,
        };
        let token = TokenLogprob {
            token_id: 7,
            token: "\u{fffd}".into(),
            bytes: vec![0xf0],
            logprob: Some(-0.5),
            top: vec![top(7, "a", -0.5), top(8, "b", f32::NEG_INFINITY)],
            text_offset: 0,
        };
        let options = ReplyOptions::default();
        let with = Delta { logprobs: vec![token], ..delta(0, "") };
        let logprobs = &events(&options, 1, vec![with.clone()])[1]["choices"][0]["logprobs"];
        assert_eq!(
            *logprobs,
            json!({"content": [{
                "token": "\u{fffd}", "logprob": -0.5, "bytes": [240],
                "top_logprobs": [
                    {"token": "a", "logprob": -0.5, "bytes": [97]},
                    {"token": "b", "logprob": -9999.0, "bytes": [98]},
                ],
            }], "refusal": null}),
        );
        let options = ReplyOptions { tokens_as_ids: true, ..Default::default() };
        let logprobs = &events(&options, 1, vec![with])[1]["choices"][0]["logprobs"];
        assert_eq!(logprobs["content"][0]["token"], "token_id:7");
    }
}
