//! Tensors of a `.pth` file: views of its storages.

use super::PthError;
use super::archive::Entry;

/// More dimensions than any weight has.
const MAX_DIMENSIONS: usize = 8;

/// Type of a tensor's values, little endian in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PthDtype {
    /// bfloat16
    Bf16,
    /// IEEE half precision
    F16,
    /// IEEE single precision
    F32,
    /// IEEE double precision
    F64,
    /// Signed, 64 bits
    I64,
    /// Signed, 32 bits
    I32,
    /// Signed, 16 bits
    I16,
    /// Signed, 8 bits
    I8,
    /// Unsigned, 8 bits
    U8,
    /// 0 or 1 in 8 bits
    Bool,
}

impl PthDtype {
    /// Bytes of a value.
    pub const fn num_bytes(self) -> u64 {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::Bf16 | Self::F16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Of the storage class that torch names in a pickle.
    pub(super) fn of_storage(module: &str, class: &str) -> Option<Self> {
        Some(match (module, class) {
            ("torch", "BFloat16Storage") => Self::Bf16,
            ("torch", "HalfStorage") => Self::F16,
            ("torch", "FloatStorage") => Self::F32,
            ("torch", "DoubleStorage") => Self::F64,
            ("torch", "LongStorage") => Self::I64,
            ("torch", "IntStorage") => Self::I32,
            ("torch", "ShortStorage") => Self::I16,
            ("torch", "CharStorage") => Self::I8,
            // An untyped storage is one of bytes.
            ("torch", "ByteStorage") | ("torch.storage", "UntypedStorage") => Self::U8,
            ("torch", "BoolStorage") => Self::Bool,
            _ => return None,
        })
    }

    /// An integer from its bytes; `None` for types that are none.
    pub(super) fn integer(self, bytes: &[u8]) -> Option<i64> {
        Some(match self {
            Self::I64 => i64::from_le_bytes(*bytes.first_chunk()?),
            Self::I32 => i32::from_le_bytes(*bytes.first_chunk()?).into(),
            Self::I16 => i16::from_le_bytes(*bytes.first_chunk()?).into(),
            Self::I8 => i8::from_le_bytes(*bytes.first_chunk()?).into(),
            Self::U8 | Self::Bool => (*bytes.first()?).into(),
            Self::Bf16 | Self::F16 | Self::F32 | Self::F64 => return None,
        })
    }
}

impl std::fmt::Display for PthDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bf16 => "BF16",
            Self::F16 => "F16",
            Self::F32 => "F32",
            Self::F64 => "F64",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
        })
    }
}

/// A tensor: every element that its shape and strides reach lies in its
/// storage, and it has no more elements than that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PthTensor {
    /// Type of the values.
    pub dtype: PthDtype,
    /// First byte of the first element, in the file.
    pub offset: u64,
    /// Sizes, outermost first; empty for a single value.
    pub shape: Vec<u64>,
    /// Elements from one index to the next, per dimension.
    pub strides: Vec<u64>,
    /// Key of the storage in the file; tied tensors share it.
    pub storage: String,
}

impl PthTensor {
    /// True when the elements lie in the file in row-major order.
    pub fn is_contiguous(&self) -> bool {
        let mut step = 1;
        self.num_elements() == 0
            || self.shape.iter().zip(&self.strides).rev().all(|(&size, &stride)| {
                let expected = step;
                step *= size;
                size == 1 || stride == expected
            })
    }

    /// Product of the sizes.
    pub fn num_elements(&self) -> u64 {
        // Without a zero among them, checked against the storage at parsing.
        if self.shape.contains(&0) { 0 } else { self.shape.iter().product() }
    }
}

/// A storage as a pickle declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Storage {
    pub(super) key: String,
    pub(super) dtype: PthDtype,
    pub(super) num_elements: u64,
    pub(super) entry: Entry,
}

impl Storage {
    /// Checks that the declared elements are in the archive.
    pub(super) fn check(&self) -> Result<(), PthError> {
        let needed = self.num_elements.checked_mul(self.dtype.num_bytes());
        if needed.is_none_or(|needed| needed > self.entry.num_bytes) {
            return Err(self.refuse(format!(
                "{} values of {} do not fit the {} bytes of data/{}",
                self.num_elements, self.dtype, self.entry.num_bytes, self.key
            )));
        }
        Ok(())
    }

    /// The view with these numbers, as the pickle has them.
    pub(super) fn view(
        &self,
        first: i64,
        shape: &[i64],
        strides: &[i64],
    ) -> Result<PthTensor, PthError> {
        let refuse = |message: String| Err(self.refuse(message));
        if shape.len() != strides.len() || shape.len() > MAX_DIMENSIONS {
            return refuse(format!("{} sizes and {} strides", shape.len(), strides.len()));
        }
        let unsigned = |numbers: &[i64]| -> Option<Vec<u64>> {
            numbers.iter().map(|&number| u64::try_from(number).ok()).collect()
        };
        let (Ok(first), Some(sizes), Some(steps)) =
            (u64::try_from(first), unsigned(shape), unsigned(strides))
        else {
            return refuse(format!(
                "negative number in offset {first}, shape {shape:?} or strides {strides:?}"
            ));
        };
        let elements = if sizes.contains(&0) {
            Some(0)
        } else {
            sizes.iter().try_fold(1_u64, |product, &size| product.checked_mul(size))
        };
        let end = match elements {
            Some(0) => Some(first),
            _ => sizes
                .iter()
                .zip(&steps)
                .try_fold(first, |last, (size, step)| {
                    last.checked_add((size - 1).checked_mul(*step)?)
                })
                .and_then(|last| last.checked_add(1)),
        };
        let within = |count: Option<u64>| count.is_some_and(|count| count <= self.num_elements);
        if !within(end) || !within(elements) {
            return refuse(format!(
                "offset {first}, shape {shape:?} and strides {strides:?} do not fit its {} values",
                self.num_elements
            ));
        }
        Ok(PthTensor {
            dtype: self.dtype,
            // Within the archive, as checked above.
            offset: self.entry.offset + first * self.dtype.num_bytes(),
            shape: sizes,
            strides: steps,
            storage: self.key.clone(),
        })
    }

    fn refuse(&self, message: String) -> PthError {
        PthError::View { storage: self.key.clone(), message }
    }
}
