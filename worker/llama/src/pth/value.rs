//! What a `.pth` file holds: plain values and tensors.

use std::collections::BTreeMap;

use super::PthTensor;

/// A value of the pickle. Tuples are lists, and dictionaries have text as keys.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Python's `None`
    None,
    /// True or false
    Bool(bool),
    /// Up to 64 bits, signed
    Int(i64),
    /// Double precision
    Float(f64),
    /// Text
    Str(String),
    /// A list or a tuple
    List(Vec<Self>),
    /// A dictionary
    Dict(BTreeMap<String, Self>),
    /// A tensor, whose values stay in the file
    Tensor(PthTensor),
}

impl Value {
    /// The value under `key` of a dictionary.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Dict(entries) => entries.get(key),
            _ => None,
        }
    }

    /// The tensor that this is.
    pub fn as_tensor(&self) -> Option<&PthTensor> {
        match self {
            Self::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }
}
