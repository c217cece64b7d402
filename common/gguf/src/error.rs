//! Everything that can be wrong with a GGUF file, named for the person who has the file.

use crate::tensor::TensorType;
use crate::value::Kind;

/// Why a file was refused, or why a value could not be had from it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GgufError {
    /// The file is something else.
    #[error("not a GGUF file: it begins with {found:02x?}, not with \"GGUF\"")]
    NotGguf {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// A version of the container that is not read.
    #[error("GGUF version {found} is not supported, only 2 and 3 are")]
    Version {
        /// The file's version.
        found: u32,
    },
    /// The file was written for a big-endian machine.
    #[error("big-endian GGUF files are not supported")]
    BigEndian,
    /// The file ends before what it announces.
    #[error("{what} at byte {at} needs {needed} bytes, the file has {remaining} left")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Offset from the start of the file.
        at: usize,
        /// Bytes that it announces; wide, because a count times a size may not fit 64 bits.
        needed: u128,
        /// Bytes that are there.
        remaining: usize,
    },
    /// A string is longer than the format allows.
    #[error("{what} at byte {at} has {found} bytes, the limit is {limit}")]
    TooLong {
        /// What was being read.
        what: &'static str,
        /// Offset from the start of the file.
        at: usize,
        /// The length found.
        found: u64,
        /// The most it may be.
        limit: u64,
    },
    /// A key or a tensor's name that is empty.
    #[error("{what} at byte {at} is empty")]
    Empty {
        /// What was being read.
        what: &'static str,
        /// Offset from the start of the file.
        at: usize,
    },
    /// A string is not UTF-8.
    #[error("{what} at byte {at} is not UTF-8")]
    NotUtf8 {
        /// What was being read.
        what: &'static str,
        /// Offset from the start of the file.
        at: usize,
    },
    /// A metadata value of a type that the format does not have.
    #[error("metadata key {key:?} has the unknown value type {found}")]
    ValueType {
        /// The metadata key.
        key: String,
        /// The type's number in the file.
        found: u32,
    },
    /// An array of arrays.
    #[error("metadata key {key:?} is an array of arrays, which is not supported")]
    NestedArray {
        /// The metadata key.
        key: String,
    },
    /// A boolean that is neither 0 nor 1.
    #[error("metadata key {key:?} is a boolean with the value {found}, neither 0 nor 1")]
    Bool {
        /// The metadata key.
        key: String,
        /// The byte found.
        found: u8,
    },
    /// A key that is there twice.
    #[error("metadata key {key:?} appears more than once")]
    DuplicateKey {
        /// The metadata key.
        key: String,
    },
    /// A key that a caller needs and the file lacks.
    #[error("metadata key {key:?} is missing")]
    MissingKey {
        /// The metadata key.
        key: String,
    },
    /// A value of another type than its reader needs.
    #[error("metadata key {key:?} is {found}, expected {expected}")]
    WrongType {
        /// The metadata key.
        key: String,
        /// The type in the file.
        found: Kind,
        /// The type asked for.
        expected: Kind,
    },
    /// An alignment that is no power of two, or is too large.
    #[error("alignment {found} is not a power of two of at most 65536")]
    Alignment {
        /// The file's `general.alignment`.
        found: u32,
    },
    /// A tensor with no dimension, or with more than the format has.
    #[error("tensor {name:?} has {found} dimensions, it may have 1 to 4")]
    Dimensions {
        /// The tensor's name.
        name: String,
        /// The number of dimensions found.
        found: u32,
    },
    /// A tensor with nothing in it, or with more in it than any file holds.
    #[error("tensor {name:?} has the shape {dims:?}, whose size is zero or does not fit the file")]
    Shape {
        /// The tensor's name.
        name: String,
        /// Its dimensions, fastest first.
        dims: Vec<u64>,
    },
    /// A row that is not a whole number of blocks.
    #[error("tensor {name:?} has rows of {row} values, {ggml_type} packs {block} at a time")]
    Row {
        /// The tensor's name.
        name: String,
        /// Values in one row.
        row: u64,
        /// The tensor's type.
        ggml_type: TensorType,
        /// Values in one block.
        block: u64,
    },
    /// A tensor's data does not start at a multiple of the alignment.
    #[error("tensor {name:?} starts at {offset}, which is not a multiple of {alignment}")]
    Misaligned {
        /// The tensor's name.
        name: String,
        /// Offset from the start of the data.
        offset: u64,
        /// The file's alignment.
        alignment: u32,
    },
    /// A tensor's data reaches past the end of the file.
    #[error("tensor {name:?} is bytes {offset} to {end} of the data, which has {available}")]
    OutOfFile {
        /// The tensor's name.
        name: String,
        /// Offset from the start of the data.
        offset: u64,
        /// Offset of the first byte after it.
        end: u128,
        /// Bytes of data in the file.
        available: usize,
    },
    /// Two tensors share bytes.
    #[error("tensors {first:?} and {second:?} overlap")]
    Overlap {
        /// The one that starts first.
        first: String,
        /// The one that starts inside it.
        second: String,
    },
    /// A tensor name that is there twice.
    #[error("tensor {name:?} appears more than once")]
    DuplicateTensor {
        /// The tensor's name.
        name: String,
    },
    /// A tensor that a caller needs and the file lacks.
    #[error("tensor {name:?} is missing")]
    MissingTensor {
        /// The tensor's name.
        name: String,
    },
    /// A tensor of a type this build cannot read.
    #[error(
        "tensor {name:?} has type {found}, supported are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q5_K and Q6_K"
    )]
    UnsupportedTensorType {
        /// The tensor's name.
        name: String,
        /// Its type.
        found: TensorType,
    },
}
