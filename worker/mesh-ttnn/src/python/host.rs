//! Tensors between the host and the chips.

use std::path::Path;

use pyo3::buffer::{Element, PyBuffer};
use pyo3::prelude::*;

use super::dlpack::HostBuffer;
use super::interpreter::keywords;
use super::objects::Objects;
use super::options::Options;
use super::{HostTensor, Tensor, TtnnOps, open_device};
use crate::ops::Result;
use crate::spec::{DataType, HostMatrix, Layout, MemoryConfig, Shape, Spread};
use mesh::MeshError;

impl TtnnOps {
    pub(super) fn pack_matrix(&mut self, matrix: HostMatrix) -> Result<HostTensor> {
        let HostMatrix { shape, rank, data, dtype, layout, spread } = matrix;
        let volume = shape.iter().try_fold(1usize, |n, axis| n.checked_mul(*axis));
        if volume != Some(data.len()) {
            return Err(MeshError::Device(format!(
                "packing a tensor of shape {shape:?}: it needs another number of \
                 elements than the {} given",
                data.len()
            )));
        }
        let dropped = 4usize
            .checked_sub(rank)
            .filter(|dropped| rank > 0 && shape[..*dropped].iter().all(|axis| *axis == 1));
        let Some(dropped) = dropped else {
            return Err(MeshError::Device(format!(
                "packing a tensor of shape {shape:?}: it has no rank {rank}"
            )));
        };
        self.attached("Tensor", |ops, py| {
            let ttnn = ops.ttnn.bind(py);
            let device = open_device(&ops.device, py)?;
            let objects = Objects { ttnn, device };
            let mapper = match spread {
                Spread::Replicated => {
                    ttnn.call_method1("replicate_tensor_to_mesh_mapper", (device,))?
                }
                Spread::Cut(axis) => {
                    let axis = axis.saturating_sub(dropped);
                    ttnn.call_method1("shard_tensor_to_mesh_mapper", (device, axis))?
                }
            };
            let options =
                keywords(py, [("layout", objects.layout(layout)?), ("mesh_mapper", mapper)])?;
            let buffer = Bound::new(py, HostBuffer::new(&shape[dropped..], data))?;
            let tensor =
                ttnn.getattr("Tensor")?.call((buffer, objects.dtype(dtype)?), Some(&options))?;
            Ok(HostTensor(tensor.unbind()))
        })
    }

    pub(super) fn dump_tensor(&mut self, tensor: &HostTensor, path: &Path) -> Result<()> {
        self.attached("dump_tensor", |ops, py| {
            let tensor = tensor.0.bind(py);
            ops.call(py, "dump_tensor", (path, tensor), Options::None)?;
            Ok(())
        })
    }

    pub(super) fn load_tensor(&mut self, path: &Path) -> Result<HostTensor> {
        self.attached("load_tensor", |ops, py| {
            let tensor = ops.call(py, "load_tensor", (path,), Options::None)?;
            Ok(HostTensor(tensor.unbind()))
        })
    }

    pub(super) fn send(&mut self, tensor: &HostTensor, memory: MemoryConfig) -> Result<Tensor> {
        self.attached("to_device", |ops, py| {
            let device = open_device(&ops.device, py)?.clone();
            let arguments = (tensor.0.bind(py), device);
            let sent = ops.call(py, "to_device", arguments, Options::Memory(memory))?;
            Ok(Tensor::new(sent))
        })
    }

    /// Zeros of a large cache are written by the chips: made on the host they
    /// would take a third of a second for 9 MB. The memory's old content may be
    /// anything, NaN as well, which is why it is filled and not multiplied by 0.
    pub(super) fn make_zeros(
        &mut self,
        shape: Shape,
        dtype: DataType,
        layout: Layout,
        memory: MemoryConfig,
    ) -> Result<Tensor> {
        self.attached("zeros", |ops, py| {
            let device = open_device(&ops.device, py)?.clone();
            let objects = Objects { ttnn: ops.ttnn.bind(py), device: &device };
            let (kind, order) = (objects.dtype(dtype)?, objects.layout(layout)?);
            let place = objects.memory(memory)?;
            let arguments = (shape, kind, order, &device, place);
            let fills = layout == Layout::Tile
                && matches!(dtype, DataType::BFloat16 | DataType::BFloat8B | DataType::Float32);
            if !fills {
                let zeros = ops.call(py, "zeros", arguments, Options::None)?;
                return Ok(Tensor::new(zeros));
            }
            let empty = ops.call(py, "empty", arguments, Options::None)?;
            let into = [("output_tensor", &empty)];
            ops.call_with(py, "fill", (&empty, 0.0), Options::Memory(memory), &into)?;
            Ok(Tensor::new(empty))
        })
    }

    pub(super) fn make_empty(
        &mut self,
        shape: Shape,
        dtype: DataType,
        layout: Layout,
        memory: MemoryConfig,
    ) -> Result<Tensor> {
        self.attached("empty", |ops, py| {
            let device = open_device(&ops.device, py)?.clone();
            let objects = Objects { ttnn: ops.ttnn.bind(py), device: &device };
            let (kind, order) = (objects.dtype(dtype)?, objects.layout(layout)?);
            let arguments = (shape, kind, order, &device, objects.memory(memory)?);
            Ok(Tensor::new(ops.call(py, "empty", arguments, Options::None)?))
        })
    }

    pub(super) fn overwrite(&mut self, tensor: &HostTensor, into: &Tensor) -> Result<()> {
        const PATH: &str = "copy_host_to_device_tensor";
        self.attached(PATH, |ops, py| {
            let arguments = (tensor.0.bind(py), into.of(py));
            ops.call(py, PATH, arguments, Options::None)?;
            Ok(())
        })
    }

    /// What chip `chip` holds, as elements of numpy's type `kind`.
    pub(super) fn fetch<T: Element>(
        &mut self,
        tensor: &Tensor,
        chip: usize,
        kind: &str,
    ) -> Result<Vec<T>> {
        self.attached("get_device_tensors", |ops, py| {
            let parts = ops.call(py, "get_device_tensors", (tensor.of(py),), Options::None)?;
            let part = parts.get_item(chip)?.call_method0("cpu")?;
            let objects =
                Objects { ttnn: ops.ttnn.bind(py), device: open_device(&ops.device, py)? };
            // numpy has no bf16. Block floats become exact float32 of their own.
            let bf16 = objects.dtype(DataType::BFloat16)?;
            let part = if part.getattr("dtype")?.eq(bf16)? {
                let float32 = objects.dtype(DataType::Float32)?;
                ops.call(py, "to_dtype", (part, float32), Options::None)?
            } else {
                part
            };
            let array = part.call_method0("to_numpy")?.call_method(
                "astype",
                (kind,),
                Some(&keywords(py, [("copy", false)])?),
            )?;
            PyBuffer::<T>::get(&array)?.to_vec(py)
        })
    }
}
