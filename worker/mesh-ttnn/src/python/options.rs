//! What an operation is told beside its operands, made once for each value.

use std::collections::HashMap;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::objects::Objects;
use crate::spec::{
    ComputeConfig, DataType, Layout, LinearConfig, MemoryConfig, NormConfig, NormProgram,
    SdpaConfig, SdpaProgram,
};

/// Axis of columns.
const LAST_AXIS: usize = 3;

/// Keyword arguments of a call, as plain data. Floats are kept by their bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Options {
    None,
    Memory(MemoryConfig),
    Dtype(DataType),
    Embedding(MemoryConfig),
    Norm {
        eps: u32,
        program: Option<NormProgram>,
        compute: ComputeConfig,
        memory: MemoryConfig,
    },
    NormStatistics(ComputeConfig),
    NormFromStatistics {
        eps: u32,
        compute: ComputeConfig,
    },
    Linear(LinearConfig),
    SiluMul(DataType, MemoryConfig),
    /// Heads of queries and of keys and values, and where they go.
    Heads {
        num_heads: usize,
        num_kv_heads: usize,
        is_decode: bool,
    },
    NumHeads(usize),
    Rope {
        is_decode: bool,
    },
    /// Of the page table.
    FirstRow,
    Attention {
        scale: u32,
        program: SdpaProgram,
        compute: ComputeConfig,
        kind: Attention,
    },
    AllGather(MemoryConfig),
    ReduceScatter(MemoryConfig),
    Concat,
    Argmax,
}

/// Which attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Attention {
    Decode(MemoryConfig),
    Prefill,
    Chunk,
}

impl Options {
    pub(super) fn norm(config: &NormConfig) -> Self {
        Self::Norm {
            eps: config.eps.to_bits(),
            program: config.program,
            compute: config.compute,
            memory: config.memory,
        }
    }

    pub(super) fn attention(config: &SdpaConfig, kind: Attention) -> Self {
        Self::Attention {
            scale: config.scale.to_bits(),
            program: config.program,
            compute: config.compute,
            kind,
        }
    }
}

/// Keyword arguments that were made.
#[derive(Default)]
pub(super) struct OptionsCache(HashMap<Options, Py<PyDict>>);

impl OptionsCache {
    /// Of `options`: shared, not to be changed.
    pub(super) fn get<'py>(
        &mut self,
        objects: Objects<'_, 'py>,
        options: Options,
    ) -> PyResult<Bound<'py, PyDict>> {
        let py = objects.ttnn.py();
        if let Some(dict) = self.0.get(&options) {
            return Ok(dict.bind(py).clone());
        }
        let dict = PyDict::new(py);
        fill(objects, options, &dict)?;
        self.0.insert(options, dict.clone().unbind());
        Ok(dict)
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Floats go as the nearest `double`, which `ttnn` turns back without loss; it
/// refuses one that is not exactly a `float`.
fn float(bits: u32) -> f64 {
    f64::from(f32::from_bits(bits))
}

fn fill(objects: Objects<'_, '_>, options: Options, dict: &Bound<'_, PyDict>) -> PyResult<()> {
    let memory = |memory| dict.set_item("memory_config", objects.memory(memory)?);
    let compute = |compute| dict.set_item("compute_kernel_config", objects.compute(compute)?);
    let dtype = |dtype| dict.set_item("dtype", objects.dtype(dtype)?);
    match options {
        Options::None => Ok(()),
        Options::Memory(place) => memory(place),
        Options::Dtype(kind) => dtype(kind),
        Options::Embedding(place) => {
            dict.set_item("layout", objects.layout(Layout::Tile)?)?;
            dtype(DataType::BFloat16)?;
            memory(place)
        }
        Options::Norm { eps, program, compute: precision, memory: place } => {
            dict.set_item("epsilon", float(eps))?;
            if let Some(program) = program {
                dict.set_item("program_config", objects.norm(program)?)?;
            }
            compute(precision)?;
            memory(place)
        }
        Options::NormStatistics(precision) => {
            dtype(DataType::BFloat16)?;
            compute(precision)
        }
        Options::NormFromStatistics { eps, compute: precision } => {
            dict.set_item("epsilon", float(eps))?;
            compute(precision)
        }
        Options::Linear(config) => {
            dict.set_item("program_config", objects.matmul(config.program)?)?;
            compute(config.compute)?;
            memory(config.memory)?;
            dtype(config.dtype)
        }
        Options::SiluMul(kind, place) => {
            dict.set_item("input_tensor_a_activations", objects.silu()?)?;
            dtype(kind)?;
            memory(place)
        }
        Options::FirstRow => dict.set_item("batch_idx", 0),
        Options::Concat => {
            dict.set_item("dim", LAST_AXIS)?;
            memory(MemoryConfig::DRAM)
        }
        Options::AllGather(place) => {
            dict.set_item("dim", LAST_AXIS)?;
            memory(place)
        }
        Options::ReduceScatter(place) => {
            dict.set_item("dim", LAST_AXIS)?;
            dict.set_item("topology", objects.topology()?)?;
            memory(place)
        }
        Options::Argmax => {
            dict.set_item("dim", LAST_AXIS)?;
            dict.set_item("keepdim", true)
        }
        _ => fill_attention(objects, options, dict),
    }
}

/// Options of what is done with heads.
fn fill_attention(
    objects: Objects<'_, '_>,
    options: Options,
    dict: &Bound<'_, PyDict>,
) -> PyResult<()> {
    let memory = |memory| dict.set_item("memory_config", objects.memory(memory)?);
    match options {
        Options::Heads { num_heads, num_kv_heads, is_decode } => {
            dict.set_item("num_heads", num_heads)?;
            dict.set_item("num_kv_heads", num_kv_heads)?;
            if is_decode {
                return memory(MemoryConfig::HeightShardedByOp);
            }
            dict.set_item("transpose_k_heads", false)?;
            memory(MemoryConfig::DRAM)
        }
        Options::NumHeads(num_heads) => dict.set_item("num_heads", num_heads),
        Options::Rope { is_decode } => dict.set_item("is_decode_mode", is_decode),
        Options::Attention { scale, program, compute, kind } => {
            dict.set_item("scale", float(scale))?;
            dict.set_item("program_config", objects.sdpa(program)?)?;
            dict.set_item("compute_kernel_config", objects.compute(compute)?)?;
            match kind {
                Attention::Decode(place) => memory(place),
                Attention::Prefill => dict.set_item("is_causal", true),
                Attention::Chunk => Ok(()),
            }
        }
        _ => Ok(()),
    }
}
