//! One call of `ttnn` for each method of [`Ops`].

use std::path::Path;

use pyo3::prelude::*;

use super::calls::tensors;
use super::options::{Attention, Options};
use super::{HostTensor, Tensor, TtnnOps, open_device};
use crate::ops::{
    Ops, PagedAttention, ProgramCounts, Result, RopeTensors, SamplingTensors, TraceId,
};
use crate::spec::{
    ComputeConfig, DataType, HostMatrix, Layout, LinearConfig, MemoryConfig, NormConfig,
    SdpaConfig, Shape, Spread,
};

/// Candidates of each chip that sampling chooses from.
const NUM_CANDIDATES: usize = 32;

impl Ops for TtnnOps {
    type Tensor = Tensor;
    type HostTensor = HostTensor;

    fn num_chips(&self) -> usize {
        self.num_chips
    }

    fn can_trace(&self) -> bool {
        !self.is_mock()
    }

    fn program_counts(&self) -> ProgramCounts {
        let programs = self.device.as_ref().map(|device| {
            Python::attach(|py| {
                let count = device.call_method0(py, "num_program_cache_entries")?;
                count.extract::<usize>(py)
            })
        });
        let programs = programs.and_then(PyResult::ok).unwrap_or_default();
        // Kernels are compiled for programs: without a new one the folders need
        // not be read again, which is asked after every step.
        if programs != self.counted.get().programs {
            self.counted.set(ProgramCounts { programs, kernels: self.num_kernels() });
        }
        self.counted.get()
    }

    fn synchronize(&mut self) -> Result<()> {
        self.attached("synchronize_device", |ops, py| {
            let device = open_device(&ops.device, py)?.clone();
            ops.call(py, "synchronize_device", (device,), Options::None)?;
            Ok(())
        })
    }

    fn pack(&mut self, matrix: HostMatrix) -> Result<HostTensor> {
        self.pack_matrix(matrix)
    }

    fn dump(&mut self, tensor: &HostTensor, path: &Path) -> Result<()> {
        self.dump_tensor(tensor, path)
    }

    fn file_header(
        &mut self,
        shape: Shape,
        dtype: DataType,
        spread: Spread,
        scratch: &Path,
    ) -> Result<Option<Vec<u8>>> {
        self.header_of_file(shape, dtype, spread, scratch)
    }

    fn load(&mut self, path: &Path) -> Result<HostTensor> {
        self.load_tensor(path)
    }

    fn to_device(&mut self, tensor: &HostTensor, memory: &MemoryConfig) -> Result<Tensor> {
        self.send(tensor, *memory)
    }

    fn zeros(
        &mut self,
        shape: Shape,
        dtype: DataType,
        layout: Layout,
        memory: &MemoryConfig,
    ) -> Result<Tensor> {
        self.make_zeros(shape, dtype, layout, *memory)
    }

    fn empty(
        &mut self,
        shape: Shape,
        dtype: DataType,
        layout: Layout,
        memory: &MemoryConfig,
    ) -> Result<Tensor> {
        self.make_empty(shape, dtype, layout, *memory)
    }

    fn write(&mut self, tensor: &HostTensor, into: &Tensor) -> Result<()> {
        self.overwrite(tensor, into)
    }

    fn read(&mut self, tensor: &Tensor, chip: usize) -> Result<Vec<f32>> {
        self.fetch(tensor, chip, "float32")
    }

    fn read_ids(&mut self, tensor: &Tensor, chip: usize) -> Result<Vec<u32>> {
        self.fetch(tensor, chip, "uint32")
    }

    fn shape(&self, tensor: &Tensor) -> Shape {
        Python::attach(|py| tensor.shape(py)).expect("every tensor of ttnn has a shape")
    }

    fn to_memory_config(&mut self, x: &Tensor, memory: &MemoryConfig) -> Result<Tensor> {
        self.unary("to_memory_config", x, Options::Memory(*memory))
    }

    fn typecast(&mut self, x: &Tensor, dtype: DataType) -> Result<Tensor> {
        self.unary("typecast", x, Options::Dtype(dtype))
    }

    fn slice(&mut self, x: &Tensor, start: Shape, end: Shape) -> Result<Tensor> {
        self.attached("slice", |ops, py| {
            let arguments = (x.of(py), start, end);
            Ok(Tensor::new(ops.call(py, "slice", arguments, Options::None)?))
        })
    }

    fn reshape(&mut self, x: &Tensor, shape: Shape) -> Result<Tensor> {
        self.attached("reshape", |ops, py| {
            let arguments = (x.of(py), shape);
            Ok(Tensor::new(ops.call(py, "reshape", arguments, Options::None)?))
        })
    }

    fn concat(&mut self, parts: &[Tensor]) -> Result<Tensor> {
        self.attached("concat", |ops, py| {
            let parts: Vec<_> = parts.iter().map(|part| part.of(py)).collect();
            Ok(Tensor::new(ops.call(py, "concat", (parts,), Options::Concat)?))
        })
    }

    fn transpose_1_2(&mut self, x: &Tensor) -> Result<Tensor> {
        self.attached("transpose", |ops, py| {
            let arguments = (x.of(py), 1, 2);
            Ok(Tensor::new(ops.call(py, "transpose", arguments, Options::None)?))
        })
    }

    fn untilize(&mut self, x: &Tensor) -> Result<Tensor> {
        self.unary("untilize", x, Options::None)
    }

    fn all_gather(&mut self, x: &Tensor, memory: &MemoryConfig) -> Result<Tensor> {
        self.unary("all_gather", x, Options::AllGather(*memory))
    }

    fn reduce_scatter(&mut self, x: &Tensor, memory: &MemoryConfig) -> Result<Tensor> {
        self.unary("reduce_scatter", x, Options::ReduceScatter(*memory))
    }

    fn embedding(&mut self, ids: &Tensor, table: &Tensor, memory: &MemoryConfig) -> Result<Tensor> {
        self.attached("embedding", |ops, py| {
            let options = Options::Embedding(*memory);
            // [1, rows, width]
            let rows = ops.call(py, "embedding", (ids.of(py), table.of(py)), options)?;
            let rows = ops.call(py, "unsqueeze_to_4D", (rows,), Options::None)?;
            Ok(Tensor::new(rows))
        })
    }

    fn rms_norm(&mut self, x: &Tensor, gain: &Tensor, config: &NormConfig) -> Result<Tensor> {
        self.attached("rms_norm", |ops, py| {
            let weight = [("weight", gain.of(py))];
            let options = Options::norm(config);
            let normed = ops.call_with(py, "rms_norm", (x.of(py),), options, &weight)?;
            Ok(Tensor::new(normed))
        })
    }

    fn rms_norm_pre_all_gather(&mut self, x: &Tensor, compute: ComputeConfig) -> Result<Tensor> {
        self.unary("rms_norm_pre_all_gather", x, Options::NormStatistics(compute))
    }

    fn rms_norm_post_all_gather(
        &mut self,
        x: &Tensor,
        statistics: &Tensor,
        gain: &Tensor,
        eps: f32,
        compute: ComputeConfig,
    ) -> Result<Tensor> {
        const PATH: &str = "rms_norm_post_all_gather";
        self.attached(PATH, |ops, py| {
            let options = Options::NormFromStatistics { eps: eps.to_bits(), compute };
            let weight = [("weight", gain.of(py))];
            let operands = (x.of(py), statistics.of(py));
            let normed = ops.call_with(py, PATH, operands, options, &weight)?;
            Ok(Tensor::new(normed))
        })
    }

    fn linear(&mut self, x: &Tensor, weight: &Tensor, config: &LinearConfig) -> Result<Tensor> {
        self.binary("linear", [x, weight], Options::Linear(*config))
    }

    fn add(&mut self, x: &Tensor, y: &Tensor, memory: &MemoryConfig) -> Result<Tensor> {
        self.binary("add", [x, y], Options::Memory(*memory))
    }

    fn silu_mul(
        &mut self,
        gate: &Tensor,
        up: &Tensor,
        dtype: DataType,
        memory: &MemoryConfig,
    ) -> Result<Tensor> {
        self.binary("mul", [gate, up], Options::SiluMul(dtype, *memory))
    }

    fn nlp_create_qkv_heads_decode(
        &mut self,
        qkv: &Tensor,
        num_heads: usize,
        num_kv_heads: usize,
    ) -> Result<[Tensor; 3]> {
        let options = Options::Heads { num_heads, num_kv_heads, is_decode: true };
        self.split("experimental.nlp_create_qkv_heads_decode", qkv, options)
    }

    fn nlp_create_qkv_heads(
        &mut self,
        qkv: &Tensor,
        num_heads: usize,
        num_kv_heads: usize,
    ) -> Result<[Tensor; 3]> {
        let options = Options::Heads { num_heads, num_kv_heads, is_decode: false };
        self.split("experimental.nlp_create_qkv_heads", qkv, options)
    }

    fn rotary_embedding_llama(
        &mut self,
        x: &Tensor,
        rope: &RopeTensors<'_, Tensor>,
        is_decode: bool,
    ) -> Result<Tensor> {
        const PATH: &str = "experimental.rotary_embedding_llama";
        self.attached(PATH, |ops, py| {
            let operands = (x.of(py), rope.cos.of(py), rope.sin.of(py), rope.transformation.of(py));
            let rotated = ops.call(py, PATH, operands, Options::Rope { is_decode })?;
            Ok(Tensor::new(rotated))
        })
    }

    fn paged_update_cache(
        &mut self,
        cache: &Tensor,
        x: &Tensor,
        positions: &Tensor,
        page_table: &Tensor,
    ) -> Result<()> {
        const PATH: &str = "experimental.paged_update_cache";
        self.attached(PATH, |ops, py| {
            let operands =
                [("update_idxs_tensor", positions.of(py)), ("page_table", page_table.of(py))];
            let arguments = (cache.of(py), x.of(py));
            ops.call_with(py, PATH, arguments, Options::None, &operands)?;
            Ok(())
        })
    }

    fn paged_fill_cache(&mut self, cache: &Tensor, x: &Tensor, page_table: &Tensor) -> Result<()> {
        const PATH: &str = "experimental.paged_fill_cache";
        self.attached(PATH, |ops, py| {
            let pages = page_table.of(py);
            let arguments = (cache.of(py), x.of(py), pages);
            ops.call(py, PATH, arguments, Options::FirstRow)?;
            Ok(())
        })
    }

    fn paged_sdpa_decode(
        &mut self,
        attention: &PagedAttention<'_, Tensor>,
        config: &SdpaConfig,
        memory: &MemoryConfig,
    ) -> Result<Tensor> {
        const PATH: &str = "transformer.paged_scaled_dot_product_attention_decode";
        self.attached(PATH, |ops, py| {
            let operands = [
                ("page_table_tensor", attention.page_table.of(py)),
                ("cur_pos_tensor", attention.positions.of(py)),
            ];
            let arguments =
                (attention.q.of(py), attention.k_cache.of(py), attention.v_cache.of(py));
            let options = Options::attention(config, Attention::Decode(*memory));
            let attended = ops.call_with(py, PATH, arguments, options, &operands)?;
            Ok(Tensor::new(attended))
        })
    }

    fn sdpa(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, config: &SdpaConfig) -> Result<Tensor> {
        const PATH: &str = "transformer.scaled_dot_product_attention";
        self.attached(PATH, |ops, py| {
            let options = Options::attention(config, Attention::Prefill);
            let arguments = (q.of(py), k.of(py), v.of(py));
            Ok(Tensor::new(ops.call(py, PATH, arguments, options)?))
        })
    }

    fn chunked_sdpa(
        &mut self,
        attention: &PagedAttention<'_, Tensor>,
        config: &SdpaConfig,
    ) -> Result<Tensor> {
        const PATH: &str = "transformer.chunked_scaled_dot_product_attention";
        self.attached(PATH, |ops, py| {
            let start = attention.positions.of(py);
            let arguments = (
                attention.q.of(py),
                attention.k_cache.of(py),
                attention.v_cache.of(py),
                attention.page_table.of(py),
            );
            let options = Options::attention(config, Attention::Chunk);
            let start = [("chunk_start_idx_tensor", start)];
            let attended = ops.call_with(py, PATH, arguments, options, &start)?;
            Ok(Tensor::new(attended))
        })
    }

    fn nlp_concat_heads_decode(&mut self, x: &Tensor, num_heads: usize) -> Result<Tensor> {
        let options = Options::NumHeads(num_heads);
        self.unary("experimental.nlp_concat_heads_decode", x, options)
    }

    fn nlp_concat_heads(&mut self, x: &Tensor) -> Result<Tensor> {
        let options = Options::Memory(MemoryConfig::DRAM);
        self.unary("experimental.nlp_concat_heads", x, options)
    }

    fn argmax(&mut self, x: &Tensor) -> Result<Tensor> {
        self.unary("argmax", x, Options::Argmax)
    }

    fn topk_32(&mut self, x: &Tensor) -> Result<[Tensor; 2]> {
        self.attached("topk", |ops, py| {
            let arguments = (x.of(py), NUM_CANDIDATES, -1);
            tensors(&ops.call(py, "topk", arguments, Options::None)?)
        })
    }

    fn offset_indices(&mut self, indices: &Tensor, offsets: &Tensor) -> Result<Tensor> {
        let int32 = Options::Dtype(DataType::Int32);
        let indices = self.unary("typecast", indices, int32)?;
        self.binary("add", [&indices, offsets], int32)
    }

    fn sampling(
        &mut self,
        values: &Tensor,
        indices: &Tensor,
        parameters: &SamplingTensors<'_, Tensor>,
    ) -> Result<Tensor> {
        let user_ids = self.user_ids()?;
        self.attached("sampling", |ops, py| {
            let seeds = [("seeds", parameters.seeds.of(py)), ("user_ids", user_ids.of(py))];
            ops.call_with(py, "manual_seed", (), Options::None, &seeds)?;
            let operands = [
                ("k", parameters.top_k.of(py)),
                ("p", parameters.top_p.of(py)),
                ("temp", parameters.inverse_temperature.of(py)),
            ];
            // Seed 0, which it is unless said: the state that was just set.
            let arguments = (values.of(py), indices.of(py));
            let ids = ops.call_with(py, "sampling", arguments, Options::None, &operands)?;
            Ok(Tensor::new(ids))
        })
    }

    fn begin_trace(&mut self) -> Result<TraceId> {
        self.record()
    }

    fn end_trace(&mut self, trace: TraceId) -> Result<()> {
        self.with_trace("end_trace_capture", trace, &[])
    }

    fn execute_trace(&mut self, trace: TraceId) -> Result<()> {
        self.with_trace("execute_trace", trace, &[("blocking", false)])
    }

    fn release_trace(&mut self, trace: TraceId) -> Result<()> {
        self.with_trace("release_trace", trace, &[])
    }
}
