//! The tensor directory: names, shapes, types, and where each tensor's bytes lie.

use crate::GgufError;
use crate::reader::Reader;
use std::fmt;

/// The fewest bytes a directory entry has: a name of one byte, one dimension, type, offset.
const MIN_ENTRY_BYTES: usize = 8 + 1 + 4 + 8 + 4 + 8;

/// The most dimensions a tensor has.
const MAX_DIMS: usize = 4;

/// A tensor type whose layout this crate knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, non_camel_case_types, reason = "the names are ggml's own")]
pub enum GgmlType {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl GgmlType {
    /// Values that one block holds.
    #[must_use]
    pub fn block_size(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 => 32,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
        }
    }

    /// Bytes that one block takes.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            // A half-precision scale and 32 bytes.
            Self::Q8_0 => 2 + 32,
            // A half-precision scale (and, for Q4_1, a minimum) and 32 nibbles.
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 4 + 16,
            // Two half-precision scales, 8 six-bit scales and minima, then 4 or 5 bits a value.
            Self::Q4_K => 4 + 12 + 128,
            Self::Q5_K => 4 + 12 + 32 + 128,
            // Low 4 bits, high 2 bits, 16 eight-bit scales, one half-precision scale.
            Self::Q6_K => 128 + 64 + 16 + 2,
        }
    }
}

/// A tensor type as the file has it, known or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorType(u32);

impl TensorType {
    /// The known type that this is, if it is one.
    #[must_use]
    pub fn known(self) -> Option<GgmlType> {
        Some(match self.0 {
            0 => GgmlType::F32,
            1 => GgmlType::F16,
            2 => GgmlType::Q4_0,
            3 => GgmlType::Q4_1,
            8 => GgmlType::Q8_0,
            12 => GgmlType::Q4_K,
            13 => GgmlType::Q5_K,
            14 => GgmlType::Q6_K,
            30 => GgmlType::BF16,
            _ => return None,
        })
    }

    fn unknown_name(self) -> Option<&'static str> {
        Some(match self.0 {
            6 => "Q5_0",
            7 => "Q5_1",
            9 => "Q8_1",
            10 => "Q2_K",
            11 => "Q3_K",
            15 => "Q8_K",
            16 => "IQ2_XXS",
            17 => "IQ2_XS",
            18 => "IQ3_XXS",
            19 => "IQ1_S",
            20 => "IQ4_NL",
            21 => "IQ3_S",
            22 => "IQ2_S",
            23 => "IQ4_XS",
            24 => "I8",
            25 => "I16",
            26 => "I32",
            27 => "I64",
            28 => "F64",
            29 => "IQ1_M",
            34 => "TQ1_0",
            35 => "TQ2_0",
            39 => "MXFP4",
            _ => return None,
        })
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.known(), self.unknown_name()) {
            (Some(known), _) => known.fmt(f),
            (None, Some(name)) => f.write_str(name),
            (None, None) => write!(f, "number {}", self.0),
        }
    }
}

/// One tensor: its description and its bytes, still packed.
#[derive(Debug, Clone, Copy)]
pub struct TensorInfo<'a> {
    /// The name, such as `blk.0.attn_q.weight`.
    pub name: &'a str,
    /// How the values are packed.
    pub ggml_type: GgmlType,
    /// The packed values: whole rows, one after the other.
    pub data: &'a [u8],
    dims: [u64; MAX_DIMS],
    num_dims: usize,
}

impl TensorInfo<'_> {
    /// The dimensions, fastest first: a matrix `[out, in]` of a paper is `[in, out]` here.
    #[must_use]
    pub fn dims(&self) -> &[u64] {
        &self.dims[..self.num_dims]
    }

    /// How many values the tensor has.
    #[must_use]
    pub fn num_values(&self) -> usize {
        self.data.len() / self.ggml_type.block_bytes() * self.ggml_type.block_size()
    }
}

/// The tensors of a file.
#[derive(Debug, Clone)]
pub struct Tensors<'a> {
    file: &'a [u8],
    data: &'a [u8],
    /// Where each entry starts in the file, in the order of the file.
    entries: Vec<usize>,
    /// The same, sorted by name.
    by_name: Vec<usize>,
}

impl<'a> Tensors<'a> {
    /// Reads the directory and checks it against the data that follows it.
    pub(crate) fn read(
        reader: &mut Reader<'a>,
        num_tensors: u64,
        alignment: u32,
    ) -> Result<Self, GgufError> {
        let num_tensors = reader.count(num_tensors, MIN_ENTRY_BYTES, "the tensor directory")?;
        let file = reader.bytes();
        let mut entries = Vec::with_capacity(num_tensors);
        for _ in 0..num_tensors {
            entries.push(reader.at());
            Entry::read(reader)?;
        }
        // Without tensors a file may end before the padding that nothing follows.
        let start = reader.at().next_multiple_of(alignment as usize).min(file.len());
        let data = &file[start..];
        let by_name = sorted_by_name(file, &entries)?;
        check_extents(file, data.len(), &entries, alignment)?;
        Ok(Self { file, data, entries, by_name })
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.entries.iter().filter_map(|&at| Some(entry_at(self.file, at).ok()?.name))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Result<TensorInfo<'a>, GgufError>> + '_ {
        self.entries.iter().map(|&at| self.info(at))
    }

    pub(crate) fn get(&self, name: &str) -> Result<Option<TensorInfo<'a>>, GgufError> {
        let found = self.by_name.binary_search_by(|&at| name_at(self.file, at).cmp(name));
        found.ok().map(|index| self.info(self.by_name[index])).transpose()
    }

    fn info(&self, at: usize) -> Result<TensorInfo<'a>, GgufError> {
        let entry = entry_at(self.file, at)?;
        let Some(ggml_type) = entry.tensor_type.known() else {
            let name = entry.name.to_owned();
            return Err(GgufError::UnsupportedTensorType { name, found: entry.tensor_type });
        };
        let (start, end) = entry.extent(self.data.len())?;
        Ok(TensorInfo {
            name: entry.name,
            ggml_type,
            data: &self.data[start..end],
            dims: entry.dims,
            num_dims: entry.num_dims,
        })
    }
}

/// One entry of the directory, as it lies in the file.
struct Entry<'a> {
    name: &'a str,
    dims: [u64; MAX_DIMS],
    num_dims: usize,
    tensor_type: TensorType,
    /// Bytes from the start of the data.
    offset: u64,
}

impl<'a> Entry<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, GgufError> {
        let name = reader.name("a tensor name")?;
        let found = reader.u32("a tensor's number of dimensions")?;
        let num_dims = match found {
            1..=4 => found as usize,
            _ => return Err(GgufError::Dimensions { name: name.to_owned(), found }),
        };
        let mut dims = [1; MAX_DIMS];
        for dim in &mut dims[..num_dims] {
            *dim = reader.u64("a tensor's dimension")?;
        }
        let tensor_type = TensorType(reader.u32("a tensor's type")?);
        let offset = reader.u64("a tensor's offset")?;
        Ok(Self { name, dims, num_dims, tensor_type, offset })
    }

    /// Where the tensor's bytes start and end in `available` bytes of data. One
    /// of unknown type has a start only: its size cannot be known.
    fn extent(&self, available: usize) -> Result<(usize, usize), GgufError> {
        let bytes = match self.tensor_type.known() {
            Some(known) => self.bytes(known)?,
            None => 0,
        };
        let end = u128::from(self.offset) + bytes;
        match (usize::try_from(self.offset), usize::try_from(end)) {
            (Ok(start), Ok(end)) if end <= available => Ok((start, end)),
            _ => {
                let (name, offset) = (self.name.to_owned(), self.offset);
                Err(GgufError::OutOfFile { name, offset, end, available })
            }
        }
    }

    fn bytes(&self, of: GgmlType) -> Result<u128, GgufError> {
        let shape = || GgufError::Shape {
            name: self.name.to_owned(),
            dims: self.dims[..self.num_dims].to_vec(),
        };
        let block = of.block_size() as u64;
        if !self.dims[0].is_multiple_of(block) {
            return Err(GgufError::Row {
                name: self.name.to_owned(),
                row: self.dims[0],
                ggml_type: self.tensor_type,
                block,
            });
        }
        let mut values: u128 = 1;
        for &dim in &self.dims {
            values = values.checked_mul(u128::from(dim)).ok_or_else(shape)?;
        }
        if values == 0 {
            return Err(shape());
        }
        (values / u128::from(block)).checked_mul(of.block_bytes() as u128).ok_or_else(shape)
    }
}

fn entry_at(file: &[u8], at: usize) -> Result<Entry<'_>, GgufError> {
    Entry::read(&mut Reader::starting_at(file, at))
}

/// The name of the entry at `at`. The entry was read once before its offset was
/// kept, so this reading cannot fail either; the empty string is no name.
fn name_at(file: &[u8], at: usize) -> &str {
    Reader::starting_at(file, at).name("a tensor name").unwrap_or_default()
}

fn sorted_by_name(file: &[u8], entries: &[usize]) -> Result<Vec<usize>, GgufError> {
    let mut by_name = entries.to_vec();
    by_name.sort_unstable_by(|&a, &b| name_at(file, a).cmp(name_at(file, b)));
    for pair in by_name.windows(2) {
        let name = name_at(file, pair[0]);
        if name == name_at(file, pair[1]) {
            return Err(GgufError::DuplicateTensor { name: name.to_owned() });
        }
    }
    Ok(by_name)
}

/// Every tensor is aligned, inside the data, and over no other.
fn check_extents(
    file: &[u8],
    available: usize,
    entries: &[usize],
    alignment: u32,
) -> Result<(), GgufError> {
    for &at in entries {
        let entry = entry_at(file, at)?;
        if !entry.offset.is_multiple_of(u64::from(alignment)) {
            let (name, offset) = (entry.name.to_owned(), entry.offset);
            return Err(GgufError::Misaligned { name, offset, alignment });
        }
        entry.extent(available)?;
    }
    let mut by_offset = entries.to_vec();
    by_offset.sort_unstable_by_key(|&at| {
        entry_at(file, at).ok().and_then(|entry| entry.extent(available).ok())
    });
    for pair in by_offset.windows(2) {
        let (first, second) = (entry_at(file, pair[0])?, entry_at(file, pair[1])?);
        if first.extent(available)?.1 > second.extent(available)?.0 {
            let (first, second) = (first.name.to_owned(), second.name.to_owned());
            return Err(GgufError::Overlap { first, second });
        }
    }
    Ok(())
}
