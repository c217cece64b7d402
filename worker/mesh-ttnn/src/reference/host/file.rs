//! Host tensors in files, in the place of `.tensorbin`.
//!
//! A header of ten little-endian u64 (magic, dtype, layout, axis + 1 of the cut or
//! 0, shape over all chips, rank, chips), then one chip's elements after another: f32,
//! or i64 for integers. What is replicated is there once.

use std::path::Path;
use std::sync::Arc;

use mesh::MeshError;

use super::super::refusal::Op;
use super::super::rounding::is_whole;
use super::super::tensor::{Data, HostTensor, TensorSpec, Values};
use super::shape_of_chip;
use crate::ops::Result;
use crate::spec::{DataType, Layout, MemoryConfig, Shape, Spread};

const MAGIC: u64 = u64::from_le_bytes(*b"refttnn1");
const DTYPES: [DataType; 7] = [
    DataType::Float32,
    DataType::BFloat16,
    DataType::BFloat8B,
    DataType::BFloat4B,
    DataType::UInt32,
    DataType::Int32,
    DataType::UInt16,
];
const LAYOUTS: [Layout; 2] = [Layout::RowMajor, Layout::Tile];
/// Bytes of a word of the header.
const WORD: usize = 8;
const HEADER_WORDS: usize = 10;
/// More chips than any mesh has.
const MAX_CHIPS: usize = 1024;

pub(super) fn write(op: Op, tensor: &HostTensor, path: &Path) -> Result<()> {
    let HostTensor { spec, shape, spread, chips } = tensor;
    let index = |found: Option<usize>| found.unwrap_or_default() as u64;
    let axis = match spread {
        Spread::Replicated => 0,
        Spread::Cut(axis) => axis + 1,
    };
    let mut header = vec![
        MAGIC,
        index(DTYPES.iter().position(|dtype| *dtype == spec.dtype)),
        index(LAYOUTS.iter().position(|layout| *layout == spec.layout)),
        axis as u64,
    ];
    header.extend(shape.iter().map(|axis| *axis as u64));
    header.extend([spec.rank as u64, chips.len() as u64]);
    let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    for chip in &chips[..stored_chips(*spread, chips.len())] {
        match chip.data() {
            Data::Real(values) => bytes.extend(values.iter().flat_map(|v| v.to_le_bytes())),
            Data::Whole(values) => bytes.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        }
    }
    std::fs::write(path, bytes).map_err(|error| failed(op, path, error))
}

pub(super) fn read(op: Op, path: &Path) -> Result<HostTensor> {
    let bytes = std::fs::read(path).map_err(|error| failed(op, path, error))?;
    let header = Header::parse(&bytes).ok_or_else(|| failed(op, path, "not a dumped tensor"))?;
    let Header { dtype, layout, spread, shape, rank, num_chips } = header;
    let part = shape_of_chip(op, shape, spread, num_chips)?;
    let spec = TensorSpec { shape: part, rank, dtype, layout, memory: MemoryConfig::DRAM };
    let stored = stored_chips(spread, num_chips);
    let element = if is_whole(dtype) { size_of::<i64>() } else { size_of::<f32>() };
    let elements = &bytes[HEADER_WORDS * WORD..];
    let needed = part.iter().try_fold(element * stored, |product, axis| product.checked_mul(*axis));
    if needed != Some(elements.len()) {
        return Err(failed(
            op,
            path,
            format_args!("{} bytes of elements where {needed:?} belong", elements.len()),
        ));
    }
    let chip_bytes = elements.len() / stored;
    let mut chips: Vec<Arc<Values>> = (0..stored)
        .map(|chip| {
            let chip = &elements[chip * chip_bytes..(chip + 1) * chip_bytes];
            Arc::new(Values::new(decode(chip, dtype)))
        })
        .collect();
    while chips.len() < num_chips {
        chips.push(Arc::clone(&chips[0]));
    }
    Ok(HostTensor { spec, shape, spread, chips })
}

struct Header {
    dtype: DataType,
    layout: Layout,
    spread: Spread,
    shape: Shape,
    rank: usize,
    num_chips: usize,
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let words = bytes.get(..HEADER_WORDS * WORD)?.as_chunks::<WORD>().0;
        let word = |n: usize| u64::from_le_bytes(words[n]);
        let size = |n: usize| usize::try_from(word(n)).ok();
        let shape = [size(4)?, size(5)?, size(6)?, size(7)?];
        let (rank, num_chips) = (size(8)?, size(9)?);
        if word(0) != MAGIC || num_chips == 0 || num_chips > MAX_CHIPS || !(1..=4).contains(&rank) {
            return None;
        }
        let spread = match size(3)? {
            0 => Spread::Replicated,
            axis => Spread::Cut(axis - 1),
        };
        let dtype = *DTYPES.get(size(1)?)?;
        let layout = *LAYOUTS.get(size(2)?)?;
        Some(Self { dtype, layout, spread, shape, rank, num_chips })
    }
}

fn decode(bytes: &[u8], dtype: DataType) -> Data {
    if is_whole(dtype) {
        Data::Whole(bytes.as_chunks().0.iter().map(|word| i64::from_le_bytes(*word)).collect())
    } else {
        Data::Real(bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect())
    }
}

fn stored_chips(spread: Spread, num_chips: usize) -> usize {
    match spread {
        Spread::Replicated => 1,
        Spread::Cut(_) => num_chips,
    }
}

fn failed(op: Op, path: &Path, what: impl std::fmt::Display) -> MeshError {
    MeshError::Device(format!("{} of {}: {what}", op.0, path.display()))
}
