//! The types a metadata value can have, and the values while they are still bytes.

use crate::GgufError;
use crate::reader::Reader;
use std::fmt;

/// The type of a metadata value or of an array's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the number type it names")]
pub enum Type {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    U64,
    I64,
    F64,
}

impl Type {
    /// Bytes of one value, or for a string the fewest that one can have.
    pub(crate) fn min_bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }
}

/// What a metadata value is: one value, or an array of values of one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One value.
    One(Type),
    /// An array of them.
    ArrayOf(Type),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(of) => f.write_str(of.name()),
            Self::ArrayOf(of) => write!(f, "array of {}", of.name()),
        }
    }
}

/// The number that stands for an array in a file; every other is a [`Type`].
const ARRAY: u32 = 9;

fn type_from_number(number: u32) -> Option<Type> {
    Some(match number {
        0 => Type::U8,
        1 => Type::I8,
        2 => Type::U16,
        3 => Type::I16,
        4 => Type::U32,
        5 => Type::I32,
        6 => Type::F32,
        7 => Type::Bool,
        8 => Type::String,
        10 => Type::U64,
        11 => Type::I64,
        12 => Type::F64,
        _ => return None,
    })
}

/// A value as it lies in the file, with its extent checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Value<'a> {
    pub(crate) kind: Kind,
    /// Elements of an array; 1 for anything else.
    pub(crate) count: usize,
    /// The elements' bytes, without the array's header; a string with its length.
    pub(crate) bytes: &'a [u8],
}

impl<'a> Value<'a> {
    /// Reads the value of `key` and leaves the reader after it.
    pub(crate) fn read(reader: &mut Reader<'a>, key: &str) -> Result<Self, GgufError> {
        let number = reader.u32("a metadata value's type")?;
        let (kind, of, count) = if number == ARRAY {
            let number = reader.u32("an array's element type")?;
            if number == ARRAY {
                return Err(GgufError::NestedArray { key: key.to_owned() });
            }
            let of = known(number, key)?;
            let count = reader.u64("an array's length")?;
            (Kind::ArrayOf(of), of, reader.count(count, of.min_bytes(), "a metadata array")?)
        } else {
            let of = known(number, key)?;
            (Kind::One(of), of, 1)
        };
        let start = reader.at();
        if of == Type::String {
            for _ in 0..count {
                reader.string("a metadata string")?;
            }
        } else {
            // The count was checked against this size, so the product fits.
            reader.take((count * of.min_bytes()) as u64, "a metadata value")?;
        }
        let bytes = &reader.bytes()[start..reader.at()];
        if of == Type::Bool
            && let Some(&found) = bytes.iter().find(|&&byte| byte > 1)
        {
            return Err(GgufError::Bool { key: key.to_owned(), found });
        }
        Ok(Self { kind, count, bytes })
    }

    /// The elements of a value of fixed-size type, `N` bytes each.
    pub(crate) fn elements<const N: usize>(self) -> impl Iterator<Item = [u8; N]> + 'a {
        self.bytes.as_chunks::<N>().0.iter().copied()
    }
}

fn known(number: u32, key: &str) -> Result<Type, GgufError> {
    type_from_number(number)
        .ok_or_else(|| GgufError::ValueType { key: key.to_owned(), found: number })
}

/// The strings of an array, read from the file as they are asked for.
#[derive(Debug, Clone)]
pub struct Strings<'a> {
    reader: Reader<'a>,
    left: usize,
}

impl<'a> Strings<'a> {
    /// Checks that all strings of the value are UTF-8.
    pub(crate) fn new(value: Value<'a>) -> Result<Self, GgufError> {
        let strings = Self { reader: Reader::new(value.bytes), left: value.count };
        let mut reader = strings.reader.clone();
        for _ in 0..value.count {
            let at = reader.at();
            if std::str::from_utf8(reader.string("a metadata string")?).is_err() {
                return Err(GgufError::NotUtf8 { what: "a string of a metadata array", at });
            }
        }
        Ok(strings)
    }
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        self.left = self.left.checked_sub(1)?;
        let bytes = self.reader.string("a metadata string").ok()?;
        std::str::from_utf8(bytes).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Strings<'_> {}
