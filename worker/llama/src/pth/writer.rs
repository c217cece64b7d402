//! Writing `.pth` files that PyTorch loads, tensor by tensor.
//!
//! The bytes are those of `torch.save` on a dictionary of contiguous tensors,
//! so that whatever reads one reads the other: the same records in the same
//! order, the same pickle, the same padding. `byteorder` is written as torch 2
//! writes it.

mod archive;
mod pickle;

use std::io::{self, BufWriter, Write};

use super::PthDtype;
use archive::ArchiveWriter;

/// Longest name of a tensor or top directory.
const MAX_NAME_BYTES: usize = 4096;

/// A dictionary of tensors to be written; its values come while it is written.
///
/// ```
/// use std::io::Write as _;
/// use llama::pth::{PthDtype, PthWriteError, PthWriter};
///
/// let mut writer = PthWriter::new("consolidated.00")?;
/// writer.tensor("norm.weight", PthDtype::F32, &[2])?;
/// let file = writer.write(Vec::new(), |_name, storage| {
///     storage.write_all(&1.0_f32.to_le_bytes())?;
///     storage.write_all(&2.0_f32.to_le_bytes())?;
///     Ok::<_, PthWriteError>(())
/// })?;
/// assert_eq!(file.len() as u64, writer.num_bytes());
/// # Ok::<_, PthWriteError>(())
/// ```
#[derive(Debug, Clone)]
pub struct PthWriter {
    top: String,
    tensors: Vec<Declared>,
}

/// Writes the bytes, so many, of the tensor of this name.
type Fill<'a, W, E> = dyn FnMut(&mut ArchiveWriter<W>, &str, u64) -> Result<(), E> + 'a;

/// A name of the dictionary.
#[derive(Debug, Clone)]
struct Declared {
    name: String,
    value: Value,
}

#[derive(Debug, Clone)]
enum Value {
    /// A tensor that fills a storage of its own.
    Tensor { dtype: PthDtype, shape: Vec<u64>, num_values: u64 },
    /// The tensor at this index, under another name.
    Alias(usize),
}

/// Why a `.pth` file cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum PthWriteError {
    /// The file cannot be written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A name that no file or dictionary can hold.
    #[error("{name:?} cannot be the name of a {what}")]
    Name {
        /// The name.
        name: String,
        /// What it was to name.
        what: &'static str,
    },
    /// Two tensors of one name.
    #[error("tensor {name} is declared twice")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// An alias of a tensor that was not declared before it.
    #[error("tensor {name} is to be the same as {of}, which is not declared")]
    NoSuchTensor {
        /// The alias.
        name: String,
        /// The tensor.
        of: String,
    },
    /// More bytes than fit in 63 bits.
    #[error("tensor {name} of shape {shape:?} is too large")]
    TooLarge {
        /// Name of the tensor.
        name: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// A tensor got fewer values than its shape has.
    #[error("tensor {name} has {expected} bytes, of which {found} were written")]
    Incomplete {
        /// Name of the tensor.
        name: String,
        /// Bytes of its shape.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },
}

impl PthWriter {
    /// An empty dictionary in a file whose records lie below `top`; torch uses
    /// the name of the file, without `.pth`.
    ///
    /// # Errors
    /// [`PthWriteError::Name`] when `top` is no name of a directory.
    pub fn new(top: &str) -> Result<Self, PthWriteError> {
        if top.contains('/') {
            return Err(PthWriteError::Name { name: top.to_owned(), what: "top directory" });
        }
        check_name(top, "top directory")?;
        Ok(Self { top: top.to_owned(), tensors: Vec::new() })
    }

    /// Declares the next tensor. An empty `shape` is a single value.
    ///
    /// # Errors
    /// When the name is taken or the tensor is too large for any file.
    pub fn tensor(
        &mut self,
        name: &str,
        dtype: PthDtype,
        shape: &[u64],
    ) -> Result<(), PthWriteError> {
        let num_values = shape.iter().try_fold(1_u64, |product, &size| product.checked_mul(size));
        let fits = |values: &u64| {
            values.checked_mul(dtype.num_bytes()).is_some_and(|bytes| bytes <= i64::MAX as u64)
        };
        let Some(num_values) = num_values.filter(fits) else {
            let (name, shape) = (name.to_owned(), shape.to_vec());
            return Err(PthWriteError::TooLarge { name, shape });
        };
        self.declare(name, Value::Tensor { dtype, shape: shape.to_vec(), num_values })
    }

    /// Declares `name` to be the tensor `of`, which is stored once: such as the
    /// LM head of a model with tied embeddings.
    ///
    /// # Errors
    /// When the name is taken or there is no tensor `of`.
    pub fn alias(&mut self, name: &str, of: &str) -> Result<(), PthWriteError> {
        let Some(index) = self.tensors.iter().position(|declared| declared.name == of) else {
            let (name, of) = (name.to_owned(), of.to_owned());
            return Err(PthWriteError::NoSuchTensor { name, of });
        };
        let index = match self.tensors[index].value {
            Value::Alias(index) => index,
            Value::Tensor { .. } => index,
        };
        self.declare(name, Value::Alias(index))
    }

    /// Bytes of the whole file, exactly.
    pub fn num_bytes(&self) -> u64 {
        let mut archive = ArchiveWriter::new(io::sink(), &self.top);
        let measure = |archive: &mut ArchiveWriter<io::Sink>| {
            self.write_records(archive, true, &mut |archive, _, num_bytes| {
                archive.skip(num_bytes);
                Ok::<_, PthWriteError>(())
            })?;
            archive.finish()
        };
        match measure(&mut archive) {
            Ok(()) => archive.position(),
            Err(_) => unreachable!("a sink takes everything"),
        }
    }

    /// Writes the file. `fill` is called once for every tensor that is no alias,
    /// in torch's order, which is not that of declaration; it writes the values
    /// to the storage, row-major and little endian, in pieces of any size.
    ///
    /// # Errors
    /// What `fill` returns; [`PthWriteError`] when `out` cannot be written or a
    /// tensor gets fewer or more values than it has.
    pub fn write<W, E>(
        &self,
        out: W,
        mut fill: impl FnMut(&str, &mut PthStorage<'_>) -> Result<(), E>,
    ) -> Result<W, E>
    where
        W: Write,
        E: From<PthWriteError>,
    {
        let mut archive = ArchiveWriter::new(BufWriter::new(out), &self.top);
        self.write_records(&mut archive, true, &mut |archive, name, num_bytes| {
            let mut storage = PthStorage { sink: archive, remaining: num_bytes };
            fill(name, &mut storage)?;
            let remaining = storage.remaining;
            if remaining > 0 {
                let (name, found) = (name.to_owned(), num_bytes - remaining);
                return Err(PthWriteError::Incomplete { name, expected: num_bytes, found }.into());
            }
            Ok::<_, E>(())
        })?;
        archive.finish().map_err(E::from)?;
        archive
            .into_inner()
            .into_inner()
            .map_err(|error| E::from(PthWriteError::Io(error.into_error())))
    }

    /// All records; `fill` writes the bytes of one tensor.
    fn write_records<W: Write, E: From<PthWriteError>>(
        &self,
        archive: &mut ArchiveWriter<W>,
        with_byteorder: bool,
        fill: &mut Fill<'_, W, E>,
    ) -> Result<(), E> {
        archive.record("data.pkl", &pickle::dictionary(&self.tensors))?;
        if with_byteorder {
            archive.record("byteorder", b"little")?;
        }
        let stored = self.tensors.iter().filter_map(|declared| match declared.value {
            Value::Tensor { dtype, num_values, .. } => {
                Some((declared.name.as_str(), num_values * dtype.num_bytes()))
            }
            Value::Alias(_) => None,
        });
        let mut stored: Vec<_> =
            stored.enumerate().map(|(key, tensor)| (key.to_string(), tensor)).collect();
        // As text, so that 10 comes before 2: torch does it so.
        stored.sort_unstable();
        for (key, (name, num_bytes)) in stored {
            archive.begin(&format!("data/{key}"), num_bytes)?;
            fill(archive, name, num_bytes)?;
            archive.end()?;
        }
        archive.record("version", b"3\n").map_err(E::from)
    }

    fn declare(&mut self, name: &str, value: Value) -> Result<(), PthWriteError> {
        check_name(name, "tensor")?;
        if self.tensors.iter().any(|declared| declared.name == name) {
            return Err(PthWriteError::Duplicate { name: name.to_owned() });
        }
        self.tensors.push(Declared { name: name.to_owned(), value });
        Ok(())
    }
}

fn check_name(name: &str, what: &'static str) -> Result<(), PthWriteError> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(PthWriteError::Name { name: name.to_owned(), what });
    }
    Ok(())
}

/// Takes the values of one tensor.
pub struct PthStorage<'a> {
    sink: &'a mut dyn Write,
    remaining: u64,
}

impl Write for PthStorage<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.remaining {
            let message =
                format!("{} bytes for a tensor that has room for {}", bytes.len(), self.remaining);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let written = self.sink.write(bytes)?;
        self.remaining -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

impl std::fmt::Debug for PthStorage<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PthStorage").field("remaining", &self.remaining).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
