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
use crate::request::ValidRequest;
use crate::text_stream::{Delta, Usage};

const CHUNK: &str = "chat.completion.chunk";

pub(super) async fn chat_completions(
    State(state): State<HttpState>,
    Extension(arrival): Extension<Arrival>,
    request: Request,
) -> Result<Response, GatewayError> {
    let body = state.body(request).await?;
    let (mut generate, options) = parse_chat(&body)?;
    drop(body);
    arrival.complete(&mut generate)?;
    let valid = ValidRequest::new(generate, state.spine.limits())?;
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
