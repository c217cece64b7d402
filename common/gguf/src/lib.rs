//! The GGUF container: metadata and tensor directory over bytes that the caller has mapped.
//!
//! It is here, and not in a room of the gateway or of the worker, because both
//! read the same file: the gateway its tokenizer, the worker its weights.
//!
//! A model file comes from elsewhere, so it is judged before it is believed:
//! every count is checked against the bytes that are left before anything is
//! reserved for it, and no input makes this crate panic or allocate more than
//! the input's own size. The indexes are offsets into the input for that
//! reason: one offset is smaller than the smallest entry it stands for.
//!
//! This crate does not know what a tensor means: it gives a tensor's type and
//! its bytes, and leaves arithmetic (dequantization) to the model's loader. It
//! also does not open files.
//!
//! Read [`Gguf::parse`] first.
#![forbid(unsafe_code)]

mod error;
mod metadata;
mod reader;
mod tensor;
mod value;

#[cfg(test)]
mod tests;

pub use error::GgufError;
pub use metadata::{Metadata, RawEntry};
pub use tensor::{GgmlType, TensorInfo, TensorType, Tensors};
pub use value::{Kind, Strings, Type};

use reader::Reader;

/// The four bytes every GGUF file begins with.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// Where tensor data is aligned to when the file does not say.
pub const DEFAULT_ALIGNMENT: u32 = 32;

/// The largest alignment that a file may ask for, in bytes.
pub const MAX_ALIGNMENT: u32 = 64 * 1024;

/// A parsed GGUF file, borrowing its bytes.
#[derive(Debug, Clone)]
pub struct Gguf<'a> {
    version: u32,
    metadata: Metadata<'a>,
    tensors: Tensors<'a>,
}

impl<'a> Gguf<'a> {
    /// Reads the header, the metadata and the tensor directory of a whole file
    /// (version 2 or 3, little endian), and checks that every tensor lies
    /// inside the file and over no other.
    ///
    /// # Errors
    /// [`GgufError`] says what is wrong, where, and what the limit is.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, GgufError> {
        let mut reader = Reader::new(bytes);
        let Header { version, num_tensors, num_entries } = Header::read(&mut reader)?;
        let metadata = Metadata::read(&mut reader, num_entries)?;
        let alignment = alignment(&metadata)?;
        let tensors = Tensors::read(&mut reader, num_tensors, alignment)?;
        Ok(Self { version, metadata, tensors })
    }

    /// Reads only the metadata, for which the beginning of a file is enough: how
    /// much of it is known by trying, and [`GgufError::Truncated`] asks for more.
    ///
    /// # Errors
    /// [`GgufError`] says what is wrong, where, and what the limit is.
    pub fn parse_metadata(bytes: &'a [u8]) -> Result<Metadata<'a>, GgufError> {
        let mut reader = Reader::new(bytes);
        let header = Header::read(&mut reader)?;
        Metadata::read(&mut reader, header.num_entries)
    }

    /// The version of the container: 2 or 3.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The metadata, with typed getters.
    #[must_use]
    pub fn metadata(&self) -> &Metadata<'a> {
        &self.metadata
    }

    /// [`Metadata::entries_with_prefix`] of this file's metadata.
    #[must_use]
    pub fn metadata_bytes_with_prefix(&self, prefix: &str) -> Vec<RawEntry<'a>> {
        self.metadata.entries_with_prefix(prefix)
    }

    /// How many tensors the file has.
    #[must_use]
    pub fn num_tensors(&self) -> usize {
        self.tensors.len()
    }

    /// The names of all tensors, in the order of the file.
    pub fn tensor_names(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.tensors.names()
    }

    /// All tensors, in the order of the file; an item is an error if its type
    /// is not one this build reads.
    pub fn tensors(&self) -> impl Iterator<Item = Result<TensorInfo<'a>, GgufError>> + '_ {
        self.tensors.iter()
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// [`GgufError::MissingTensor`], or [`GgufError::UnsupportedTensorType`] if
    /// its type is not one this build reads.
    pub fn tensor(&self, name: &str) -> Result<TensorInfo<'a>, GgufError> {
        self.tensors.get(name)?.ok_or_else(|| GgufError::MissingTensor { name: name.to_owned() })
    }

    /// The tensor of that name, or `None` if the file has none.
    ///
    /// # Errors
    /// [`GgufError::UnsupportedTensorType`] if its type is not one this build reads.
    pub fn optional_tensor(&self, name: &str) -> Result<Option<TensorInfo<'a>>, GgufError> {
        self.tensors.get(name)
    }
}

/// What every file starts with.
struct Header {
    version: u32,
    num_tensors: u64,
    num_entries: u64,
}

impl Header {
    fn read(reader: &mut Reader<'_>) -> Result<Self, GgufError> {
        let magic = reader.array::<4>("the magic number")?;
        if magic != MAGIC {
            return Err(GgufError::NotGguf { found: magic });
        }
        let version = reader.u32("the version")?;
        match version {
            2 | 3 => {}
            _ if matches!(version.swap_bytes(), 1..=3) => return Err(GgufError::BigEndian),
            _ => return Err(GgufError::Version { found: version }),
        }
        let num_tensors = reader.u64("the number of tensors")?;
        let num_entries = reader.u64("the number of metadata entries")?;
        Ok(Self { version, num_tensors, num_entries })
    }
}

fn alignment(metadata: &Metadata<'_>) -> Result<u32, GgufError> {
    let alignment = metadata.optional_u32("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        return Err(GgufError::Alignment { found: alignment });
    }
    Ok(alignment)
}
