//! Prompts to ids: on blocking threads, a bounded number at a time.

use std::sync::Arc;

use super::Spine;
use crate::error::GatewayError;
use crate::request::{ChatMessage, PromptInput, ToolCall, ValidPrompt};
use crate::request::{check_prompt, check_prompt_ids};
use crate::text::chat_template::{ChatMessage as TemplateMessage, ToolCall as TemplateCall};
use crate::text::{TextError, TextModel};

/// Which ids go in front of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// As the model was trained: text gets its beginning-of-text id, a
    /// conversation what its template says.
    AsTrained,
    /// The beginning-of-text id, unless it is there already.
    Bos,
    /// Nothing.
    Bare,
}

impl Spine {
    /// The ids of every prompt of a request.
    pub(super) async fn encode_all(
        &self,
        prompts: Vec<ValidPrompt>,
    ) -> Result<Vec<Arc<[u32]>>, GatewayError> {
        let text = Arc::clone(&self.inner.text);
        self.off_thread(move || {
            prompts
                .into_iter()
                .map(|prompt| Ok(encode(&text, prompt, Start::AsTrained)?.into()))
                .collect()
        })
        .await
    }

    pub(super) async fn tokenize_prompt(
        &self,
        input: PromptInput,
        add_special_tokens: Option<bool>,
    ) -> Result<Vec<u32>, GatewayError> {
        if input == PromptInput::Text(String::new()) && add_special_tokens == Some(false) {
            return Ok(Vec::new());
        }
        let is_text = matches!(input, PromptInput::Text(_));
        let start = match add_special_tokens {
            None => Start::AsTrained,
            Some(true) if is_text => Start::AsTrained,
            Some(false) if !is_text => Start::AsTrained,
            Some(true) => Start::Bos,
            Some(false) => Start::Bare,
        };
        let prompt = check_prompt(input, &self.inner.limits)?;
        let text = Arc::clone(&self.inner.text);
        self.off_thread(move || encode(&text, prompt, start)).await
    }

    /// Ids for `detokenize`: inside the vocabulary, no more than the context.
    pub(super) fn check_ids(&self, ids: Vec<i64>) -> Result<Vec<u32>, GatewayError> {
        let most = self.inner.limits.max_model_len;
        if ids.len() as u64 > u64::from(most) {
            let message = format!("tokens has {} ids, max_model_len is {most}", ids.len());
            return Err(GatewayError::invalid("tokens", message));
        }
        check_prompt_ids("tokens", ids, &self.inner.limits)
    }

    /// Runs text work on a blocking thread, when it is its turn. The turn goes
    /// with the work: a client that leaves does not let another one in early.
    pub(super) async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, GatewayError> + Send + 'static,
    ) -> Result<T, GatewayError> {
        let internal = |what: &str| GatewayError::Internal(what.to_owned());
        let turn = Arc::clone(&self.inner.tokenizing).acquire_owned().await;
        let turn = turn.map_err(|_| internal("tokenizing has been closed"))?;
        let task = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        task.await.map_err(|_| internal("tokenizing failed"))?
    }
}

fn encode(text: &TextModel, prompt: ValidPrompt, start: Start) -> Result<Vec<u32>, GatewayError> {
    let tokenizer = &text.tokenizer;
    let mut ids = match prompt {
        ValidPrompt::TokenIds(ids) => ids,
        ValidPrompt::Messages(messages) => {
            let messages = messages.into_iter().enumerate().map(template_message);
            let messages = messages.collect::<Result<Vec<_>, _>>()?;
            text.encode_chat(&messages, &[], true).map_err(|error| refuse("messages", &error))?
        }
        ValidPrompt::Text(prompt) => {
            let ids = match start {
                Start::Bare => tokenizer.encode_text(&prompt).map_err(TextError::from),
                Start::AsTrained | Start::Bos => text.encode_completion(&prompt),
            };
            ids.map_err(|error| refuse("prompt", &error))?
        }
    };
    if let Some(bos) = tokenizer.bos() {
        let wants_bos = start == Start::Bos && ids.first() != Some(&bos);
        if wants_bos || (ids.is_empty() && start != Start::Bare) {
            ids.insert(0, bos);
        }
    }
    if ids.is_empty() && start == Start::AsTrained {
        return Err(GatewayError::invalid("prompt", "prompt is empty"));
    }
    Ok(ids)
}

/// OpenAI renamed `system` to `developer`; templates know the older name.
fn template_message((i, message): (usize, ChatMessage)) -> Result<TemplateMessage, GatewayError> {
    let ChatMessage { role, content, tool_calls, .. } = message;
    let role = if role == "developer" { "system".to_owned() } else { role };
    let call = |(j, call): (usize, ToolCall)| {
        let call = TemplateCall::new(call.id, call.name, &call.arguments);
        call.map_err(|error| {
            refuse(&format!("messages[{i}].tool_calls[{j}].function"), &error.into())
        })
    };
    let tool_calls = tool_calls.into_iter().enumerate().map(call).collect::<Result<_, _>>()?;
    Ok(TemplateMessage { role, content, tool_calls })
}

fn refuse(param: &str, error: &TextError) -> GatewayError {
    GatewayError::invalid(param, error.to_string())
}
