//! Between the host and the chips: packing, files, transfers.

mod file;

use std::path::Path;
use std::sync::Arc;

use super::commands::Commands;
use super::refusal::Op;
use super::rounding::{is_block_float, is_whole, stored};
use super::tensor::{Chips, Data, HostTensor, Tensor, TensorSpec, Values, replicated};
use crate::ops::Result;
use crate::spec::{DataType, HostData, HostMatrix, Layout, MemoryConfig, Shape, Spread};

pub(super) fn pack(commands: &mut Commands, matrix: HostMatrix) -> Result<HostTensor> {
    let op = Op("Tensor");
    commands.log(op);
    let HostMatrix { shape, rank, data, dtype, layout, spread } = matrix;
    let elements = shape.iter().try_fold(1usize, |product, axis| product.checked_mul(*axis));
    op.needs(
        elements == Some(data.len()),
        format_args!("as many elements as shape {shape:?} has"),
        data.len(),
    )?;
    check_kind(op, &data, dtype)?;
    let dropped = (1..=4).contains(&rank) && shape[..4 - rank].iter().all(|axis| *axis == 1);
    op.needs(dropped, format_args!("a rank from 1 to 4 that holds {shape:?}"), rank)?;
    let tiles = layout == Layout::Tile || !is_block_float(dtype);
    op.needs(tiles, format_args!("layout Tile for {dtype:?}"), format_args!("{layout:?}"))?;
    let chip_shape = shape_of_chip(op, shape, spread, commands.num_chips)?;
    let spec = TensorSpec { shape: chip_shape, rank, dtype, layout, memory: MemoryConfig::DRAM };
    let data = match data {
        HostData::BFloat16(values) => Data::Real(values.iter().map(|v| v.to_f32()).collect()),
        HostData::UInt32(ids) => Data::Whole(ids.into_iter().map(i64::from).collect()),
        HostData::Int32(values) => Data::Whole(values.into_iter().map(i64::from).collect()),
    };
    let chips = match spread {
        Spread::Replicated => replicated(stored(&spec, data), commands.num_chips),
        Spread::Cut(axis) => (0..commands.num_chips)
            .map(|chip| {
                let part = match &data {
                    Data::Real(values) => Data::Real(cut(values, shape, axis, &spec, chip)),
                    Data::Whole(values) => Data::Whole(cut(values, shape, axis, &spec, chip)),
                };
                Arc::new(Values::new(stored(&spec, part)))
            })
            .collect(),
    };
    Ok(HostTensor { spec, shape, spread, chips })
}

fn check_kind(op: Op, data: &HostData, dtype: DataType) -> Result<()> {
    let (name, matches) = match data {
        HostData::BFloat16(_) => ("BFloat16", !is_whole(dtype)),
        HostData::UInt32(_) => ("UInt32", dtype == DataType::UInt32),
        HostData::Int32(_) => ("Int32", dtype == DataType::Int32),
    };
    op.needs(matches, format_args!("data of the kind of {dtype:?}"), name)
}

/// Shape of one chip's part.
fn shape_of_chip(op: Op, shape: Shape, spread: Spread, num_chips: usize) -> Result<Shape> {
    let mut part = shape;
    if let Spread::Cut(axis) = spread {
        op.needs(axis < 4, "an axis below 4 to cut along", axis)?;
        op.needs(
            shape[axis].is_multiple_of(num_chips),
            format_args!("axis {axis} to divide by {num_chips} chips"),
            format_args!("{shape:?}"),
        )?;
        part[axis] /= num_chips;
    }
    Ok(part)
}

/// The `chip`-th slice of `shape` along `axis`.
fn cut<T: Copy>(values: &[T], shape: Shape, axis: usize, part: &TensorSpec, chip: usize) -> Vec<T> {
    let inner: usize = shape[axis + 1..].iter().product();
    let (stride, len) = (shape[axis] * inner, part.shape[axis] * inner);
    values
        .chunks_exact(stride.max(1))
        .flat_map(|outer| &outer[chip * len..(chip + 1) * len])
        .copied()
        .collect()
}

pub(super) fn dump(commands: &mut Commands, tensor: &HostTensor, path: &Path) -> Result<()> {
    let op = Op("dump_tensor");
    commands.log(op);
    file::write(op, tensor, path)
}

pub(super) fn load(commands: &mut Commands, path: &Path) -> Result<HostTensor> {
    let op = Op("load_tensor");
    commands.log(op);
    let tensor = file::read(op, path)?;
    let (needed, found) = (commands.num_chips, tensor.chips.len());
    op.needs(found == needed, format_args!("a tensor of {needed} chips"), found)?;
    Ok(tensor)
}

pub(super) fn to_device(
    commands: &mut Commands,
    tensor: &HostTensor,
    memory: &MemoryConfig,
) -> Result<Tensor> {
    let op = Op("to_device");
    commands.host_access(op)?;
    let spec = TensorSpec { memory: *memory, ..tensor.spec };
    place(commands, op, spec, tensor.chips.clone())
}

pub(super) fn zeros(commands: &mut Commands, spec: TensorSpec) -> Result<Tensor> {
    let op = Op("zeros");
    commands.host_access(op)?;
    let len = spec.num_elements();
    let data =
        if is_whole(spec.dtype) { Data::Whole(vec![0; len]) } else { Data::Real(vec![0.0; len]) };
    let chips = replicated(data, commands.num_chips);
    place(commands, op, spec, chips)
}

fn place(commands: &mut Commands, op: Op, spec: TensorSpec, chips: Chips) -> Result<Tensor> {
    let tensor = commands.allocate(op, spec)?;
    tensor.store(chips);
    Ok(tensor)
}

pub(super) fn write(commands: &mut Commands, tensor: &HostTensor, into: &Tensor) -> Result<()> {
    let op = Op("copy_host_to_device_tensor");
    commands.host_access(op)?;
    let there = TensorSpec { memory: tensor.spec.memory, ..*into.spec() };
    op.needs(
        there == tensor.spec,
        format_args!("memory of the same shape, type and layout as {tensor:?}"),
        format_args!("{:?}", into.spec()),
    )?;
    into.store(tensor.chips.clone());
    Ok(())
}

pub(super) fn read(commands: &mut Commands, tensor: &Tensor, chip: usize) -> Result<Vec<f32>> {
    let op = Op("to_torch");
    match chip_values(commands, op, tensor, chip)?.data() {
        Data::Real(values) => Ok(values.clone()),
        Data::Whole(_) => Err(op.refusal("reals", format_args!("{:?}", tensor.spec().dtype))),
    }
}

pub(super) fn read_ids(commands: &mut Commands, tensor: &Tensor, chip: usize) -> Result<Vec<u32>> {
    let op = Op("to_torch");
    match chip_values(commands, op, tensor, chip)?.data() {
        Data::Whole(values) => values
            .iter()
            .map(|id| u32::try_from(*id).map_err(|_| op.refusal("ids from 0 to 2^32", id)))
            .collect(),
        Data::Real(_) => Err(op.refusal("integers", format_args!("{:?}", tensor.spec().dtype))),
    }
}

fn chip_values(
    commands: &mut Commands,
    op: Op,
    tensor: &Tensor,
    chip: usize,
) -> Result<Arc<Values>> {
    commands.host_access(op)?;
    let num_chips = commands.num_chips;
    op.needs(chip < num_chips, format_args!("a chip below {num_chips}"), chip)?;
    Ok(Arc::clone(&tensor.chips(op)?[chip]))
}
