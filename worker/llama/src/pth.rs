//! Files that `torch.save` wrote, read without Python and without trust.
//!
//! Such a file is a zip archive with a pickle that describes
//! a dictionary of tensors, and the tensors' values in entries of their own.
//! The pickle is read by a machine that has no way to call anything; what it
//! does not know is refused by name. Values stay in the file until they are
//! read, by position.
//!
//! Read here: what torch 1.6 and later write for dictionaries, lists and plain
//! dense tensors on any device, in its default pickle protocol. Not read: the
//! formats before that, TorchScript archives, sparse and quantized tensors.

mod archive;
mod arena;
mod error;
mod opcode;
mod pickle;
mod tensor;
mod value;
mod writer;

use std::collections::BTreeMap;
use std::path::Path;

pub use error::PthError;
pub use tensor::{PthDtype, PthTensor};
pub use value::Value;
pub use writer::{PthStorage, PthWriteError, PthWriter};

use crate::checkpoint::{CheckpointError, WeightFile};
use archive::{Archive, Entry};

const MAX_PICKLE_BYTES: u64 = 16 << 20;
/// Integers that are read at once; reference files have some thousands.
const MAX_INTEGERS: u64 = 1 << 24;

/// An opened file: what it describes is known, values are not read yet.
#[derive(Debug)]
pub struct PthFile {
    file: WeightFile,
    value: Value,
    tensors: BTreeMap<String, PthTensor>,
}

impl PthFile {
    /// Opens the file and reads its directory and its pickle.
    ///
    /// # Errors
    /// [`CheckpointError::Pth`] says what was found that is not allowed;
    /// [`CheckpointError::Io`] when the file cannot be read.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let file = WeightFile::open(path)?;
        let refuse = |source| CheckpointError::Pth { path: path.to_owned(), source };
        let archive = Archive::read(&file)?;
        check_notes(&file, &archive)?;
        let pickle = match archive.entry("data.pkl") {
            Some(entry) if entry.num_bytes <= MAX_PICKLE_BYTES => read_entry(&file, entry)?,
            Some(_) => {
                let what = "bytes of data.pkl";
                return Err(refuse(PthError::Limit { what, max: MAX_PICKLE_BYTES }));
            }
            None => return Err(refuse(PthError::Archive("data.pkl is missing".to_owned()))),
        };
        let value = pickle::read(&pickle, &archive.storages()).map_err(refuse)?;
        let tensors = match &value {
            Value::Dict(entries) => entries
                .iter()
                .filter_map(|(name, value)| Some((name.clone(), value.as_tensor()?.clone())))
                .collect(),
            _ => BTreeMap::new(),
        };
        Ok(Self { file, value, tensors })
    }

    /// The tensors of the dictionary that the file holds, by name.
    pub fn tensors(&self) -> &BTreeMap<String, PthTensor> {
        &self.tensors
    }

    /// Everything that the file holds.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The name of a value that is no tensor; of the whole, if that is no
    /// dictionary.
    pub(crate) fn first_other_value(&self) -> Option<&str> {
        match &self.value {
            Value::Dict(entries) => {
                let mut others = entries.iter().filter(|(_, value)| value.as_tensor().is_none());
                others.next().map(|(name, _)| name.as_str())
            }
            _ => Some("the file's value"),
        }
    }

    pub(crate) fn into_parts(self) -> (WeightFile, BTreeMap<String, PthTensor>) {
        (self.file, self.tensors)
    }

    /// Reads bytes at a position of the file, such as [`PthTensor::offset`].
    ///
    /// # Errors
    /// [`CheckpointError::Changed`] when the file has become shorter.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), CheckpointError> {
        self.file.read_at(offset, out)
    }

    /// Checks that neither the file's size nor its time has moved since it was
    /// opened.
    ///
    /// # Errors
    /// [`CheckpointError::Changed`].
    pub fn verify_unchanged(&self) -> Result<(), CheckpointError> {
        self.file.verify_unchanged()
    }

    /// The values of a tensor of integers, row-major.
    ///
    /// # Errors
    /// When the tensor is of floating point, or has more than 2²⁴ values, or
    /// the file cannot be read.
    pub fn read_integers(&self, tensor: &PthTensor) -> Result<Vec<i64>, CheckpointError> {
        let refuse = |message: String| {
            let source = PthError::View { storage: tensor.storage.clone(), message };
            CheckpointError::Pth { path: self.path().to_owned(), source }
        };
        let num_elements = tensor.num_elements();
        if num_elements > MAX_INTEGERS {
            return Err(refuse(format!("{num_elements} values, at most {MAX_INTEGERS} are read")));
        }
        let width = tensor.dtype.num_bytes();
        if tensor.dtype.integer(&[0; 8]).is_none() {
            return Err(refuse(format!("has type {}, which is no integer", tensor.dtype)));
        }
        let integer = |bytes: &[u8]| tensor.dtype.integer(bytes).unwrap_or_default();
        if tensor.is_contiguous() {
            let mut bytes = vec![0; (num_elements * width) as usize];
            self.read_at(tensor.offset, &mut bytes)?;
            return Ok(bytes.chunks_exact(width as usize).map(integer).collect());
        }
        let mut at = vec![0; tensor.shape.len()];
        let mut values = Vec::with_capacity(num_elements as usize);
        for _ in 0..num_elements {
            let element: u64 = at.iter().zip(&tensor.strides).map(|(i, stride)| i * stride).sum();
            let mut bytes = [0; 8];
            let bytes = &mut bytes[..width as usize];
            self.read_at(tensor.offset + element * width, bytes)?;
            values.push(integer(bytes));
            for (index, size) in at.iter_mut().zip(&tensor.shape).rev() {
                *index += 1;
                if *index < *size {
                    break;
                }
                *index = 0;
            }
        }
        Ok(values)
    }
}

/// The entries in which torch says how it wrote the others.
fn check_notes(file: &WeightFile, archive: &Archive) -> Result<(), CheckpointError> {
    for (name, wanted) in [("byteorder", "little"), ("version", "3")] {
        let Some(entry) = archive.entry(name) else { continue };
        let short = Entry { num_bytes: entry.num_bytes.min(16), ..entry };
        let found = read_entry(file, short)?;
        if found.trim_ascii() != wanted.as_bytes() {
            let found = String::from_utf8_lossy(&found).into_owned();
            let message = format!("{name} is {found:?}, must be {wanted:?}");
            let source = PthError::Archive(message);
            return Err(CheckpointError::Pth { path: file.path().to_owned(), source });
        }
    }
    Ok(())
}

fn read_entry(file: &WeightFile, entry: Entry) -> Result<Vec<u8>, CheckpointError> {
    let mut bytes = vec![0; entry.num_bytes as usize];
    file.read_at(entry.offset, &mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod crafted;
#[cfg(test)]
mod tests;
