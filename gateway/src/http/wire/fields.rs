//! Reading JSON objects strictly: every field is taken by name and type, what
//! is left over is refused by name, and a wrong type says what is wanted.
//!
//! Derived deserializers would name neither the path nor the wanted type of a
//! nested field, keep the last of two equal keys, and let a small body become
//! a large tree; this reads once into a bounded [`Value`] and then by name.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::GatewayError;

/// Deepest nesting of a body.
pub(crate) const MAX_DEPTH: u32 = 64;
/// Most values in a body: a [`Value`] is 16 times the two bytes it may take on
/// the wire, so memory would otherwise be far from proportional to the body.
pub(crate) const MAX_VALUES: u32 = 1 << 20;
/// Longest part of a client's string that an error repeats.
const MAX_QUOTED_CHARS: usize = 64;

/// The unread fields of one JSON object.
#[derive(Debug)]
pub(crate) struct Fields {
    /// Path of the object with a separator after it; empty for the body.
    prefix: String,
    map: Map<String, Value>,
}

/// Parses a whole body, which must be one object.
///
/// # Errors
/// Text that is not JSON, is not an object, repeats a key, nests deeper than
/// [`MAX_DEPTH`] or holds more than [`MAX_VALUES`] values.
pub(crate) fn parse_object(body: &[u8]) -> Result<Fields, GatewayError> {
    let refuse = |message: String| GatewayError::InvalidValue { param: None, message };
    let mut values_left = MAX_VALUES;
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let seed = Strict { depth_left: MAX_DEPTH, values_left: &mut values_left };
    let value = seed
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|error| refuse(format!("body is not acceptable JSON: {error}")))?;
    match value {
        Value::Object(map) => Ok(Fields { prefix: String::new(), map }),
        other => Err(refuse(format!("body must be an object, it is {}", kind(&other)))),
    }
}

impl Fields {
    /// `value` as an object at `path`.
    ///
    /// # Errors
    /// It is something else.
    pub(crate) fn from_value(path: String, value: Value) -> Result<Self, GatewayError> {
        match value {
            Value::Object(map) => Ok(Self { prefix: format!("{path}."), map }),
            other => Err(wrong_type(path, "an object", &other)),
        }
    }

    /// Full path of the field `name`.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Takes the field; `null` is the same as absent, as in OpenAI's API.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a string.
    ///
    /// # Errors
    /// It is something else.
    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, GatewayError> {
        self.take(name).map(|value| string_at(self.path(name), value)).transpose()
    }

    /// Takes a string that must be there.
    ///
    /// # Errors
    /// It is absent, or something else.
    pub(crate) fn required_string(&mut self, name: &str) -> Result<String, GatewayError> {
        self.string(name)?.ok_or_else(|| self.missing(name))
    }

    /// Takes a boolean.
    ///
    /// # Errors
    /// It is something else.
    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>, GatewayError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(self.path(name), "a boolean", &other)),
        }
    }

    /// Takes an integer.
    ///
    /// # Errors
    /// It is something else (5.0 and "5" are), or needs more than 64 bits.
    pub(crate) fn integer(&mut self, name: &str) -> Result<Option<i64>, GatewayError> {
        self.take(name).map(|value| integer_at(self.path(name), &value)).transpose()
    }

    /// Takes a number.
    ///
    /// # Errors
    /// It is something else.
    pub(crate) fn number(&mut self, name: &str) -> Result<Option<f64>, GatewayError> {
        self.take(name).map(|value| number_at(self.path(name), &value)).transpose()
    }

    /// Takes an array.
    ///
    /// # Errors
    /// It is something else.
    pub(crate) fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>, GatewayError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(wrong_type(self.path(name), "an array", &other)),
        }
    }

    /// Takes an array of integers.
    ///
    /// # Errors
    /// It, or an element, is something else.
    pub(crate) fn integers(&mut self, name: &str) -> Result<Vec<i64>, GatewayError> {
        let path = self.path(name);
        integers_at(&path, self.array(name)?.unwrap_or_default())
    }

    /// Takes an object.
    ///
    /// # Errors
    /// It is something else.
    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Self>, GatewayError> {
        let path = self.path(name);
        self.take(name).map(|value| Self::from_value(path, value)).transpose()
    }

    /// Takes a field that is understood but not supported: absent, empty, or
    /// one of `neutral` (values that ask for nothing) is fine.
    ///
    /// # Errors
    /// Any other value.
    pub(crate) fn unsupported(
        &mut self,
        name: &str,
        neutral: &[Value],
    ) -> Result<(), GatewayError> {
        let Some(value) = self.take(name) else { return Ok(()) };
        let empty = match &value {
            Value::Array(values) => values.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if empty || neutral.contains(&value) {
            return Ok(());
        }
        let path = self.path(name);
        let message = match neutral {
            [] => format!("{path} is not supported"),
            [only] => format!("{path} is not supported other than as {only}"),
            several => format!("{path} is not supported other than as one of {several:?}"),
        };
        Err(GatewayError::invalid(path, message))
    }

    /// That `name` is absent and must not be.
    pub(crate) fn missing(&self, name: &str) -> GatewayError {
        let path = self.path(name);
        let message = format!("{path} is missing");
        GatewayError::invalid(path, message)
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// A field is left that nobody knows.
    pub(crate) fn finish(self) -> Result<(), GatewayError> {
        let Some(name) = self.map.keys().next() else { return Ok(()) };
        let path = quote(&format!("{}{name}", self.prefix));
        let message = format!("unrecognized request argument supplied: {path}");
        Err(GatewayError::invalid(path, message))
    }

    /// The fields that are left, with their values.
    pub(crate) fn into_entries(self) -> impl Iterator<Item = (String, Value)> {
        self.map.into_iter()
    }
}

/// `value` at `path` as a string.
pub(crate) fn string_at(path: String, value: Value) -> Result<String, GatewayError> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(path, "a string", &other)),
    }
}

/// `value` at `path` as an integer.
pub(crate) fn integer_at(path: String, value: &Value) -> Result<i64, GatewayError> {
    if let Some(integer) = value.as_i64() {
        return Ok(integer);
    }
    if value.is_u64() {
        let message = format!("{path} is {value}, it must be at most {}", i64::MAX);
        return Err(GatewayError::invalid(path, message));
    }
    Err(wrong_type(path, "an integer", value))
}

/// `value` at `path` as a number.
pub(crate) fn number_at(path: String, value: &Value) -> Result<f64, GatewayError> {
    value.as_f64().ok_or_else(|| wrong_type(path, "a number", value))
}

/// The elements of the array at `path` as integers.
pub(crate) fn integers_at(path: &str, values: Vec<Value>) -> Result<Vec<i64>, GatewayError> {
    let read = |(i, value): (usize, Value)| match value.as_i64() {
        // The usual case makes no path: prompts have many tokens.
        Some(integer) => Ok(integer),
        None => integer_at(format!("{path}[{i}]"), &value),
    };
    values.into_iter().enumerate().map(read).collect()
}

/// That `path` has a value of another type than `wanted`.
pub(crate) fn wrong_type(path: String, wanted: &str, value: &Value) -> GatewayError {
    let message = format!("{path} must be {wanted}, it is {}", kind(value));
    GatewayError::invalid(path, message)
}

/// A client's string, short enough for an error.
pub(crate) fn quote(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Reads one value within bounds.
struct Strict<'a> {
    depth_left: u32,
    values_left: &'a mut u32,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let Some(left) = self.values_left.checked_sub(1) else {
            return Err(D::Error::custom(format!("more than {MAX_VALUES} values")));
        };
        *self.values_left = left;
        deserializer.deserialize_any(self)
    }
}

impl Strict<'_> {
    fn deeper<E: serde::de::Error>(&self) -> Result<u32, E> {
        let left = self.depth_left.checked_sub(1);
        left.ok_or_else(|| E::custom(format!("nested deeper than {MAX_DEPTH}")))
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value);
        number.map(Value::Number).ok_or_else(|| E::custom("number is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let depth_left = self.deeper()?;
        let mut values = Vec::new();
        let values_left = self.values_left;
        while let Some(value) =
            sequence.next_element_seed(Strict { depth_left, values_left: &mut *values_left })?
        {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let depth_left = self.deeper()?;
        let values_left = self.values_left;
        let mut map = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            let value =
                entries.next_value_seed(Strict { depth_left, values_left: &mut *values_left })?;
            if map.contains_key(&name) {
                return Err(A::Error::custom(format!("duplicate key {:?}", quote(&name))));
            }
            map.insert(name, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &str) -> String {
        let error = parse_object(body.as_bytes()).expect_err(body);
        assert_eq!(error.code(), "invalid_value");
        error.to_string()
    }

    #[test]
    fn bodies_that_are_not_one_bounded_object_are_refused() {
        for body in
            ["", "{", "[]", "1", "null", "\"x\"", "{} {}", "{\"a\":1,}", "{'a':1}", "\u{feff}{}"]
        {
            message(body);
        }
        assert!(message("{\"a\":1,\"a\":1}").contains("duplicate key \"a\""));
        assert!(message("{\"o\":{\"b\":1,\"b\":null}}").contains("duplicate key \"b\""));
        assert!(message("{\"a\":1e999}").contains("out of range"));
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        parse_object(nested(63).as_bytes()).unwrap();
        assert!(message(&nested(64)).contains("nested deeper than 64"));
        message(&format!("{{\"a\":{}", "[".repeat(100_000)));
        let many = format!("{{\"a\":[{}1]}}", "1,".repeat(MAX_VALUES as usize));
        assert!(message(&many).contains("more than 1048576 values"));
    }

    #[test]
    fn invalid_utf8_and_lone_surrogates_are_refused() {
        assert!(parse_object(b"{\"a\":\"\xff\"}").is_err());
        message("{\"a\":\"\\ud800\"}");
        parse_object("{\"a\":\"\\ud83d\\ude00\"}".as_bytes()).unwrap();
    }

    #[test]
    fn fields_are_taken_by_type_and_named_when_wrong() {
        let mut fields = parse_object(
            br#"{"s":"x","i":5,"f":0.5,"b":true,"n":null,"a":[1],"o":{"k":"v"},"wrong":"5"}"#,
        )
        .unwrap();
        assert_eq!(fields.string("s").unwrap().as_deref(), Some("x"));
        assert_eq!(fields.integer("i").unwrap(), Some(5));
        assert_eq!(fields.number("f").unwrap(), Some(0.5));
        assert_eq!(fields.boolean("b").unwrap(), Some(true));
        assert_eq!(fields.integer("n").unwrap(), None);
        assert_eq!(fields.integers("a").unwrap(), [1]);
        let mut inner = fields.object("o").unwrap().unwrap();
        let error = inner.integer("k").unwrap_err();
        assert_eq!(error.param(), Some("o.k"));
        let error = fields.integer("wrong").unwrap_err();
        assert_eq!(error.param(), Some("wrong"));
        assert_eq!(error.to_string(), "wrong must be an integer, it is a string");
        fields.finish().unwrap();
    }

    #[test]
    fn integers_are_integers() {
        for (body, wanted) in [
            (r#"{"n":5.0}"#, "n must be an integer, it is a number"),
            (r#"{"n":1e3}"#, "n must be an integer, it is a number"),
            (r#"{"n":true}"#, "n must be an integer, it is a boolean"),
            (
                r#"{"n":18446744073709551615}"#,
                "n is 18446744073709551615, it must be at most 9223372036854775807",
            ),
        ] {
            let error = parse_object(body.as_bytes()).unwrap().integer("n").unwrap_err();
            assert_eq!(error.to_string(), wanted);
        }
        let error = parse_object(br#"{"a":[1,"x"]}"#).unwrap().integers("a").unwrap_err();
        assert_eq!(error.param(), Some("a[1]"));
    }

    #[test]
    fn leftovers_are_refused_by_a_name_of_bounded_length() {
        let name = "x".repeat(10_000);
        let fields = parse_object(format!("{{\"{name}\":1}}").as_bytes()).unwrap();
        let error = fields.finish().unwrap_err();
        assert!(error.param().is_some_and(|param| param.len() < 100));
        assert!(error.to_string().starts_with("unrecognized request argument supplied: xxx"));
    }

    #[test]
    fn unsupported_fields_may_ask_for_nothing() {
        let body = br#"{"tools":[],"format":{"type":"text"},"kwargs":{},"store":true}"#;
        let mut fields = parse_object(body).unwrap();
        fields.unsupported("tools", &[]).unwrap();
        fields.unsupported("format", &[serde_json::json!({"type": "text"})]).unwrap();
        fields.unsupported("kwargs", &[]).unwrap();
        let error = fields.unsupported("store", &[false.into()]).unwrap_err();
        assert_eq!(error.param(), Some("store"));
    }
}
