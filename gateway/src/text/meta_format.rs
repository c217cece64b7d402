//! Llama 3's chat format as Meta's own package writes it, straight to ids.
//!
//! A conversation is the token that starts a text, then the turns, then the
//! header of the assistant's next turn. A turn is a header (the role between two
//! control tokens, and two newlines), a body and the token that ends it. The
//! parts are encoded one by one, so that no merge crosses the border between
//! what a user wrote and what stands around it; a body is taken as it is, and
//! nothing is added that nobody wrote. This is where it differs from templates,
//! which trim and tell the date.

use super::TextError;
use super::chat_template::{ChatMessage, TemplateError, ToolCall};
use super::python_json::{self, Characters};
use super::tokenizer::{Tokenizer, TokenizerError};
use minijinja::Value;
use serde::Serialize;

/// Encodes conversations with a tokenizer that has Llama 3's control tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetaChatFormat {
    bos: u32,
    start_header: u32,
    end_header: u32,
    end_of_turn: u32,
    /// Llama 3.0 calls these two reserved.
    end_of_message: Option<u32>,
    python_tag: Option<u32>,
}

impl MetaChatFormat {
    /// The format with this tokenizer's ids; none if it lacks one.
    #[must_use]
    pub fn new(tokenizer: &Tokenizer) -> Option<Self> {
        let id = |name| tokenizer.special_id(name);
        Some(Self {
            bos: id("<|begin_of_text|>")?,
            start_header: id("<|start_header_id|>")?,
            end_header: id("<|end_header_id|>")?,
            end_of_turn: id("<|eot_id|>")?,
            end_of_message: id("<|eom_id|>"),
            python_tag: id("<|python_tag|>"),
        })
    }

    /// The ids of a conversation, with the header of the assistant's next turn
    /// if `add_generation_prompt`.
    ///
    /// # Errors
    /// [`TemplateError::Refused`] for a role or a tool call that has no place in
    /// the format; [`TextError::Tokenizer`] as [`Tokenizer::encode_text`].
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>, TextError> {
        let mut prompt = Prompt { format: self, tokenizer, ids: vec![self.bos] };
        for message in messages {
            prompt.push_message(message)?;
        }
        if add_generation_prompt {
            prompt.push_header("assistant")?;
        }
        Ok(prompt.ids)
    }
}

/// The ids of a conversation so far.
struct Prompt<'t> {
    format: &'t MetaChatFormat,
    tokenizer: &'t Tokenizer,
    ids: Vec<u32>,
}

impl Prompt<'_> {
    fn push_message(&mut self, message: &ChatMessage) -> Result<(), TextError> {
        let ChatMessage { role, content, tool_calls } = message;
        self.push_header(written_role(role)?)?;
        let calls = tool_calls.iter().map(call).collect::<Result<Vec<_>, _>>()?;
        if calls.is_empty() {
            self.push_text(content)?;
            self.ids.push(self.format.end_of_turn);
            return Ok(());
        }
        if role != "assistant" {
            return Err(refused(format!("a {role} message has tool calls, only assistants call")));
        }
        if tool_calls[0].name() == CODE_INTERPRETER {
            self.push_control(self.format.python_tag, "<|python_tag|>")?;
        }
        self.push_text(content)?;
        for call in calls {
            self.push_text(&call)?;
        }
        self.push_control(self.format.end_of_message, "<|eom_id|>")
    }

    fn push_header(&mut self, role: &str) -> Result<(), TextError> {
        self.ids.push(self.format.start_header);
        self.push_text(role)?;
        self.ids.push(self.format.end_header);
        Ok(self.push_text("\n\n")?)
    }

    fn push_text(&mut self, text: &str) -> Result<(), TokenizerError> {
        self.tokenizer.encode_into(text, &mut self.ids)
    }

    fn push_control(&mut self, id: Option<u32>, name: &str) -> Result<(), TextError> {
        let id =
            id.ok_or_else(|| refused(format!("tool calls need {name}, the model has none")))?;
        self.ids.push(id);
        Ok(())
    }
}

/// What a role is called in a header: a tool's result is `ipython`.
fn written_role(role: &str) -> Result<&str, TextError> {
    match role {
        "system" | "user" | "assistant" | "ipython" => Ok(role),
        "tool" => Ok("ipython"),
        other => {
            let other: String = other.chars().take(64).collect();
            Err(refused(format!(
                "role {other:?} is not one of system, user, assistant and tool (or ipython)"
            )))
        }
    }
}

/// The built-in tool whose calls are code.
const CODE_INTERPRETER: &str = "code_interpreter";

/// A tool call as the model writes it.
fn call(call: &ToolCall) -> Result<String, TextError> {
    let argument = |name: &str| {
        let value = call.arguments().get_attr(name).unwrap_or_default();
        value.as_str().map(str::to_owned).ok_or_else(|| {
            let tool = call.name();
            refused(format!("a call of {tool} needs an argument {name:?} that is a string"))
        })
    };
    match call.name() {
        tool @ ("brave_search" | "wolfram_alpha" | "photogen") => {
            Ok(format!("{tool}.call(query=\"{}\")", argument("query")?))
        }
        CODE_INTERPRETER => argument("code"),
        name => {
            let call = FunctionCall { kind: "function", name, parameters: call.arguments() };
            let text = python_json::to_string(&call, Characters::Ascii, None);
            text.map_err(|error| TemplateError::Json(error).into())
        }
    }
}

/// A call of a tool that is not built in; Meta's default among three spellings.
#[derive(Serialize)]
struct FunctionCall<'c> {
    #[serde(rename = "type")]
    kind: &'static str,
    name: &'c str,
    parameters: &'c Value,
}

fn refused(what: String) -> TextError {
    TemplateError::Refused(what).into()
}
