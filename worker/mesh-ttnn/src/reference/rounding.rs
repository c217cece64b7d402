//! Rounding to what a chip stores.
//!
//! Block floats group 16 consecutive columns of a row. Padding is zero, so that a
//! group at the edge is what its inner columns make it.

use half::bf16;
use kernels::Format;
use kernels::bfp::{GROUP, decode_group, encode_group};

use super::tensor::{Data, TensorSpec};
use crate::spec::DataType;

/// `data` as a tensor of `spec` stores it.
///
/// # Panics
/// If `data` has not the elements of `spec`, or not of its kind: the operation
/// that computed it is wrong.
pub(super) fn stored(spec: &TensorSpec, mut data: Data) -> Data {
    let len = match &mut data {
        Data::Real(values) => {
            round(values, spec.width(), spec.dtype);
            values.len()
        }
        Data::Whole(values) => {
            assert!(is_whole(spec.dtype), "integers as {:?}", spec.dtype);
            values.len()
        }
    };
    assert_eq!(len, spec.num_elements(), "elements of {:?}", spec.shape);
    data
}

/// Rounds rows of `width` columns.
///
/// # Panics
/// If `dtype` is an integer.
pub(super) fn round(values: &mut [f32], width: usize, dtype: DataType) {
    match dtype {
        DataType::Float32 => {}
        DataType::BFloat16 => {
            for value in values {
                *value = bf16::from_f32(*value).to_f32();
            }
        }
        DataType::BFloat8B => round_blocks(values, width, Format::Bfp8),
        DataType::BFloat4B => round_blocks(values, width, Format::Bfp4),
        DataType::UInt32 | DataType::Int32 | DataType::UInt16 => panic!("reals as {dtype:?}"),
    }
}

fn round_blocks(values: &mut [f32], width: usize, format: Format) {
    for row in values.chunks_mut(width.max(1)) {
        for columns in row.chunks_mut(GROUP) {
            let mut group = [0.0; GROUP];
            group[..columns.len()].copy_from_slice(columns);
            let rounded = decode_group(format, &encode_group(format, &group));
            columns.copy_from_slice(&rounded[..columns.len()]);
        }
    }
}

/// Whether elements are integers.
pub(super) fn is_whole(dtype: DataType) -> bool {
    matches!(dtype, DataType::UInt32 | DataType::Int32 | DataType::UInt16)
}

/// Whether 16 values share an exponent.
pub(super) fn is_block_float(dtype: DataType) -> bool {
    matches!(dtype, DataType::BFloat8B | DataType::BFloat4B)
}
