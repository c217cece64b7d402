//! What a conversation has beside text: tools, and calls of them.

use super::TemplateError;
use minijinja::Value;
use minijinja::value::ValueKind;

/// A call of a tool in an assistant's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    id: Option<String>,
    name: String,
    arguments: Value,
}

impl ToolCall {
    /// A call with its arguments as a JSON object, whose order counts. `id` is
    /// the caller's name for it; few templates write it.
    ///
    /// # Errors
    /// [`TemplateError::ToolName`] or [`TemplateError::Json`].
    pub fn new(id: Option<String>, name: String, arguments: &str) -> Result<Self, TemplateError> {
        if !super::is_word(&name) {
            return Err(TemplateError::ToolName(name.chars().take(64).collect()));
        }
        Ok(Self { id, name, arguments: object(arguments)? })
    }

    /// The name of the tool.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(in super::super) fn arguments(&self) -> &Value {
        &self.arguments
    }

    /// As templates know it, with every text of the arguments changed by `mark`.
    pub(super) fn value(&self, mark: &dyn Fn(&str) -> String) -> Value {
        let function = [
            ("name", Value::from(self.name.as_str())),
            ("arguments", with_texts(&self.arguments, mark)),
        ];
        let call = [("type", Value::from("function")), ("function", Value::from_pairs(function))];
        let id = self.id.as_deref().map(|id| ("id", Value::from(mark(id))));
        Value::from_pairs(id.into_iter().chain(call))
    }
}

/// A tool that the model may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool(Value);

impl Tool {
    /// A tool as OpenAI's API describes it, a JSON object, whose order counts.
    ///
    /// # Errors
    /// [`TemplateError::Json`].
    pub fn new(json: &str) -> Result<Self, TemplateError> {
        Ok(Self(object(json)?))
    }

    /// As templates know it, with every text of it changed by `mark`.
    pub(super) fn value(&self, mark: &dyn Fn(&str) -> String) -> Value {
        with_texts(&self.0, mark)
    }
}

fn object(json: &str) -> Result<Value, TemplateError> {
    let value: Value = serde_json::from_str(json).map_err(TemplateError::Json)?;
    if value.kind() == ValueKind::Map {
        return Ok(value);
    }
    let found = format!("it is a {}, not an object", value.kind());
    Err(TemplateError::Json(serde::de::Error::custom(found)))
}

/// The value with every string in it, also those that are keys, changed. The
/// JSON that values come from nests at most 128 deep.
fn with_texts(value: &Value, mark: &dyn Fn(&str) -> String) -> Value {
    if let Some(text) = value.as_str() {
        return Value::from(mark(text));
    }
    let items = || value.try_iter().into_iter().flatten();
    match value.kind() {
        ValueKind::Map => Value::from_pairs(items().map(|key| {
            let item = value.get_item(&key).unwrap_or_default();
            (with_texts(&key, mark), with_texts(&item, mark))
        })),
        ValueKind::Seq => items().map(|item| with_texts(&item, mark)).collect(),
        _ => value.clone(),
    }
}
