//! A conversation to the text that the model was trained on, by the model's own
//! Jinja template.
//!
//! The template comes with the model, so it is run within bounds: fuel in
//! proportion to the conversation, a limit on output and on recursion, no files
//! and no other templates. What users wrote is known in the result by its byte
//! ranges, which is how the tokenizer tells a template's control tokens from
//! ones that a user typed.
//!
//! The settings are those of `transformers`, whose output is the reference.

mod date;
mod marks;
#[cfg(test)]
mod tests;
mod tools;

pub use tools::{Tool, ToolCall};

use super::python_json::{self, Characters};
use marks::Marks;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value, context};
use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

/// The most bytes a rendered conversation may have.
const MAX_OUTPUT_BYTES: usize = 4 << 20;

/// The same while marks are in it: a mark makes four bytes of one.
const MAX_MARKED_BYTES: usize = 4 * MAX_OUTPUT_BYTES;

/// The most bytes a template may have; the largest of known models have 20 KiB.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;

/// How deep macros and includes may nest; templates of known models need 3.
const MAX_RECURSION: usize = 64;

/// Steps that a render may take whatever it renders.
const BASE_FUEL: u64 = 200_000;

/// Steps that each message adds, for the body of the template's loops.
const FUEL_PER_MESSAGE: u64 = 2_000;

/// One step is charged for 64 bytes that are made; this allows a template to
/// build its text 16 times over, piece by piece.
const BYTES_PER_FUEL: u64 = 4;

/// The most blanks that a template may indent JSON by.
const MAX_INDENT: usize = 16;

/// The name under which the environment keeps the template.
const NAME: &str = "chat";

/// One message of a conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, or another role that the template knows.
    pub role: String,
    /// What was written; none of it can become a control token.
    pub content: String,
    /// The tools that an assistant's message called; none of their arguments
    /// can become a control token either.
    pub tool_calls: Vec<ToolCall>,
}

/// A conversation as the model is to read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text, control tokens written by name.
    pub text: String,
    /// The byte ranges of `text` that messages' contents became, in order.
    pub content: Vec<Range<usize>>,
}

/// A template that was compiled once and renders any number of conversations.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    tokens: TemplateTokens,
}

/// The texts that a template knows by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TemplateTokens {
    /// The token that starts a text, or nothing.
    pub bos: String,
    /// The token that ends a turn, or nothing.
    pub eos: String,
    /// The names of all control tokens.
    pub control: Vec<String>,
}

/// Why a template cannot be used, or does not render a conversation.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template itself is wrong.
    #[error("the chat template ({origin}) is not valid")]
    Invalid {
        /// Where the template came from.
        origin: String,
        /// What is wrong, and where.
        #[source]
        cause: Error,
    },
    /// The template is larger than any of its kind.
    #[error("the chat template has {found} bytes, the limit is {max}")]
    TooLarge {
        /// Its size.
        found: usize,
        /// The most it may have.
        max: usize,
    },
    /// The template refused the conversation: the caller's mistake, in its words.
    #[error("the chat template refused the messages: {0}")]
    Refused(String),
    /// The messages use so many private characters that none is left for marks.
    #[error("the messages use all of Unicode's supplementary private-use characters")]
    PrivateUse,
    /// A role that cannot be a role.
    #[error("role {0:?} is not a word of at most 64 letters, digits, '_' and '-'")]
    Role(String),
    /// A tool's name that cannot be one.
    #[error("tool name {0:?} is not a word of at most 64 letters, digits, '_' and '-'")]
    ToolName(String),
    /// A tool or a call's arguments are no JSON object.
    #[error("a tool, and the arguments of a call of one, must be a JSON object")]
    Json(#[source] serde_json::Error),
    /// The rendered conversation is too long.
    #[error("the rendered messages have more than {max} bytes")]
    Output {
        /// The limit.
        max: usize,
    },
    /// The template takes too many steps.
    #[error("the chat template takes more than {fuel} steps on these messages")]
    Fuel {
        /// The limit.
        fuel: u64,
    },
    /// Something else went wrong while rendering.
    #[error("the chat template failed")]
    Failed(#[source] Error),
}

impl ChatTemplate {
    /// Compiles a template. `source` says where it is from, for people.
    ///
    /// # Errors
    /// [`TemplateError::Invalid`] or [`TemplateError::TooLarge`].
    pub fn new(
        template: &str,
        source: &str,
        tokens: TemplateTokens,
    ) -> Result<Self, TemplateError> {
        if template.len() > MAX_TEMPLATE_BYTES {
            let found = template.len();
            return Err(TemplateError::TooLarge { found, max: MAX_TEMPLATE_BYTES });
        }
        let invalid = |cause| TemplateError::Invalid { origin: source.to_owned(), cause };
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(invalid)?);
        environment.set_recursion_limit(MAX_RECURSION);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(NAME, template.to_owned()).map_err(invalid)?;
        Ok(Self { environment, source: source.to_owned(), tokens })
    }

    /// Where the template came from, such as "gguf metadata".
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation about these tools, with the start of the
    /// assistant's turn after it if `add_generation_prompt`.
    ///
    /// # Errors
    /// [`TemplateError::Refused`] and [`TemplateError::Role`] are the caller's
    /// mistakes, [`TemplateError::Output`] too; the others are the template's.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        tools: &[Tool],
        add_generation_prompt: bool,
    ) -> Result<Rendered, TemplateError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.render_at(messages, tools, add_generation_prompt, now)
    }

    /// As [`ChatTemplate::render`], at a time in seconds since 1970 (UTC).
    fn render_at(
        &self,
        messages: &[ChatMessage],
        tools: &[Tool],
        add_generation_prompt: bool,
        now: u64,
    ) -> Result<Rendered, TemplateError> {
        if let Some(message) = messages.iter().find(|message| !is_word(&message.role)) {
            return Err(TemplateError::Role(message.role.chars().take(64).collect()));
        }
        let template = self.environment.get_template(NAME).map_err(TemplateError::Failed)?;
        let texts = texts(messages, tools);
        let source = template.source();
        let marks = Marks::unused_in(texts.iter().map(String::as_str).chain([source]))
            .ok_or(TemplateError::PrivateUse)?;
        let bytes: usize = texts.iter().map(String::len).sum();
        let fuel = BASE_FUEL
            + (messages.len() + tools.len()) as u64 * FUEL_PER_MESSAGE
            + bytes as u64 / BYTES_PER_FUEL;
        let run = |mark: &dyn Fn(&str) -> String| {
            let messages = messages.iter().map(|message| message.value(mark)).collect();
            let tools = tools.iter().map(|tool| tool.value(mark)).collect();
            self.run(Input { messages, tools, add_generation_prompt, now, fuel })
        };
        let text = run(&str::to_owned)?;
        if text.len() > MAX_OUTPUT_BYTES {
            return Err(TemplateError::Output { max: MAX_OUTPUT_BYTES });
        }
        // Marks at both ends show a content's place unless the template looks
        // into the content, and then they may have changed what it does.
        let rendered = run(&|content| marks.enclose(content)).ok();
        if let Some(rendered) = rendered.and_then(|marked| marks.remove_enclosing(&marked))
            && rendered.text == text
        {
            return Ok(rendered);
        }
        // Without a control token's name in them, contents need no place; two that
        // a template puts one after the other may make up one.
        let joined = texts.concat();
        if !self.tokens.control.iter().any(|name| joined.contains(name)) {
            return Ok(Rendered { text, content: Vec::new() });
        }
        // Content that names control tokens to a template that looks into it:
        // what is safe comes before what the template would have done.
        Ok(marks.remove_all(&run(&|content| marks.mark_all(content))?))
    }

    fn run(&self, input: Input) -> Result<String, TemplateError> {
        let Input { messages, tools, add_generation_prompt, now, fuel } = input;
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        environment.add_function("strftime_now", move |format: &str| date::format(format, now));
        let template = environment.get_template(NAME).map_err(TemplateError::Failed)?;
        let mut output = BoundedOutput::default();
        let context = context! {
            messages,
            add_generation_prompt,
            bos_token => self.tokens.bos.as_str(),
            eos_token => self.tokens.eos.as_str(),
            // As transformers: none, not an empty list.
            tools => Some(tools).filter(|tools| !tools.is_empty()),
            documents => (),
        };
        let result = template.render_captured_to(context, &mut output).map(drop);
        result.map_err(|error| classify(error, output.is_full, fuel))?;
        // Marks are made of characters and templates of text, so this cannot fail.
        String::from_utf8(output.bytes).map_err(|error| {
            TemplateError::Failed(Error::new(ErrorKind::WriteFailure, error.to_string()))
        })
    }
}

/// What one run of a template works on.
struct Input {
    messages: Vec<Value>,
    tools: Vec<Value>,
    add_generation_prompt: bool,
    now: u64,
    fuel: u64,
}

impl ChatMessage {
    /// As templates know it, with what was written changed by `mark`.
    fn value(&self, mark: &dyn Fn(&str) -> String) -> Value {
        let text = [
            ("role", Value::from(self.role.as_str())),
            ("content", Value::from(mark(&self.content))),
        ];
        let calls: Vec<Value> = self.tool_calls.iter().map(|call| call.value(mark)).collect();
        // Templates ask whether it is there.
        let calls = (!calls.is_empty()).then(|| ("tool_calls", Value::from(calls)));
        Value::from_pairs(text.into_iter().chain(calls))
    }
}

/// Everything that was written by others than the template's author.
fn texts(messages: &[ChatMessage], tools: &[Tool]) -> Vec<String> {
    let texts = RefCell::new(Vec::new());
    let note = |text: &str| {
        texts.borrow_mut().push(text.to_owned());
        String::new()
    };
    for message in messages {
        message.value(&note);
    }
    for tool in tools {
        tool.value(&note);
    }
    texts.into_inner()
}

/// `tojson` as transformers has it: Python's `json.dumps`, all characters kept.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let is_ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let indent = indent.map(|indent| indent.min(MAX_INDENT));
    let characters = if is_ascii == Some(true) { Characters::Ascii } else { Characters::Any };
    let text = python_json::to_string(value, characters, indent).map_err(|error| {
        Error::new(ErrorKind::BadSerialization, "tojson failed").with_source(error)
    })?;
    Ok(Value::from(text))
}

/// What a role or the name of a tool may be.
fn is_word(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    (1..=64).contains(&text.len()) && text.bytes().all(is_word)
}

/// What `raise_exception` in a template throws.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, "raise_exception was called");
    Err(error.with_source(Raised(message)))
}

fn classify(error: Error, is_full: bool, fuel: u64) -> TemplateError {
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref() {
            return TemplateError::Refused(message.clone());
        }
        cause = current.source();
    }
    match error.kind() {
        _ if is_full => TemplateError::Output { max: MAX_OUTPUT_BYTES },
        ErrorKind::OutOfFuel => TemplateError::Fuel { fuel },
        _ => TemplateError::Failed(error),
    }
}

/// Collects output up to the limit.
#[derive(Default)]
struct BoundedOutput {
    bytes: Vec<u8>,
    is_full: bool,
}

impl io::Write for BoundedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > MAX_MARKED_BYTES - self.bytes.len() {
            self.is_full = true;
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
