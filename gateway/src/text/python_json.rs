//! JSON as Python's `json.dumps` writes it: a blank after commas and colons, and
//! other spellings of large and small numbers. Models were trained on it.

use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, PrettyFormatter};
use std::io::{self, Write};

/// Which characters strings may have in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Characters {
    /// All, `ensure_ascii=False` there.
    Any,
    /// ASCII, the others as `\u` escapes: the default there.
    Ascii,
}

/// The JSON text of a value, on one line or indented by so many blanks.
///
/// # Errors
/// The value has a map whose keys are no strings.
pub(super) fn to_string(
    value: &impl Serialize,
    characters: Characters,
    indent: Option<usize>,
) -> serde_json::Result<String> {
    let blanks = " ".repeat(indent.unwrap_or_default());
    let pretty = indent.map(|_| PrettyFormatter::with_indent(blanks.as_bytes()));
    let mut text = Vec::new();
    let formatter = PythonFormatter { characters, pretty };
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))?;
    // A serializer of texts writes text.
    String::from_utf8(text).map_err(serde::ser::Error::custom)
}

struct PythonFormatter<'i> {
    characters: Characters,
    pretty: Option<PrettyFormatter<'i>>,
}

/// The same call on the indenting formatter if there is one, else these bytes.
macro_rules! indented {
    ($($method:ident($($is_first:ident)?) else $plain:expr;)*) => {$(
        fn $method<W: ?Sized + Write>(&mut self, out: &mut W $(, $is_first: bool)?) -> io::Result<()> {
            match &mut self.pretty {
                Some(pretty) => pretty.$method(out $(, $is_first)?),
                None => out.write_all($plain),
            }
        }
    )*};
}

impl Formatter for PythonFormatter<'_> {
    indented! {
        begin_array() else b"[";
        end_array() else b"]";
        begin_array_value(is_first) else if is_first { b"" } else { b", " };
        end_array_value() else b"";
        begin_object() else b"{";
        end_object() else b"}";
        begin_object_key(is_first) else if is_first { b"" } else { b", " };
        begin_object_value() else b": ";
        end_object_value() else b"";
    }

    fn write_f64<W: ?Sized + Write>(&mut self, out: &mut W, value: f64) -> io::Result<()> {
        out.write_all(float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if self.characters == Characters::Any {
            return out.write_all(fragment.as_bytes());
        }
        for char in fragment.chars() {
            if matches!(char, ' '..='~') {
                out.write_all(&[char as u8])?;
                continue;
            }
            for unit in char.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        match escape {
            CharEscape::AsciiControl(byte) => write!(out, "\\u{byte:04x}"),
            CharEscape::Quote => out.write_all(b"\\\""),
            CharEscape::ReverseSolidus => out.write_all(b"\\\\"),
            CharEscape::Solidus => out.write_all(b"/"),
            CharEscape::Backspace => out.write_all(b"\\b"),
            CharEscape::FormFeed => out.write_all(b"\\f"),
            CharEscape::LineFeed => out.write_all(b"\\n"),
            CharEscape::CarriageReturn => out.write_all(b"\\r"),
            CharEscape::Tab => out.write_all(b"\\t"),
        }
    }
}

/// Python's `repr`: the shortest digits that give the number, with an exponent
/// of at least two digits and its sign, from 1e16 and below 1e-4.
fn float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    match exponent.parse::<i32>() {
        Ok(exponent) if value != 0.0 && !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => format!("{value:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// What Python 3.11 writes for the same values.
    #[test]
    fn text_is_pythons() {
        let value = json!({"a": [1, 2.0, -0.5, true, null, [], {}], "b": "é\u{7f}\u{1f}\n\"\\/😀"});
        assert_eq!(
            to_string(&value, Characters::Ascii, None).unwrap(),
            r#"{"a": [1, 2.0, -0.5, true, null, [], {}], "b": "\u00e9\u007f\u001f\n\"\\/\ud83d\ude00"}"#
        );
        assert_eq!(
            to_string(&value, Characters::Any, None).unwrap(),
            "{\"a\": [1, 2.0, -0.5, true, null, [], {}], \"b\": \"é\u{7f}\\u001f\\n\\\"\\\\/😀\"}"
        );
        assert_eq!(
            to_string(&json!({"a": [1, []], "b": {}}), Characters::Any, Some(2)).unwrap(),
            "{\n  \"a\": [\n    1,\n    []\n  ],\n  \"b\": {}\n}"
        );
        assert_eq!(
            to_string(&json!([1, [2]]), Characters::Any, Some(0)).unwrap(),
            "[\n1,\n[\n2\n]\n]"
        );
    }

    #[test]
    fn floats_are_pythons() {
        for (number, wanted) in [
            ("1e16", "1e+16"),
            ("123456789012345680.0", "1.2345678901234568e+17"),
            ("1e15", "1000000000000000.0"),
            ("0.0001", "0.0001"),
            ("0.00001", "1e-05"),
            ("-2.5e-300", "-2.5e-300"),
            ("0.0", "0.0"),
            ("-0.0", "-0.0"),
            ("1e22", "1e+22"),
            ("0.1", "0.1"),
        ] {
            let value: Value = serde_json::from_str(number).unwrap();
            assert_eq!(to_string(&value, Characters::Any, None).unwrap(), wanted, "{number}");
        }
    }
}
