//! The operations of `ttnn` that Llama uses, one method each.
//!
//! Two implementations stand behind them: the real package, on cards or on its
//! own mock devices, and plain Rust, which computes the numbers. One call is the
//! same operation on every chip. Shapes are what one chip holds.
//!
//! Names, arguments and demands are `ttnn` 0.81's. An implementation refuses
//! what the package would refuse; where the package takes what it should not,
//! the caller is what must be right.

use std::path::Path;

use mesh::MeshError;

use crate::spec::{
    ComputeConfig, DataType, HostMatrix, Layout, LinearConfig, MemoryConfig, NormConfig,
    SdpaConfig, Shape, Spread,
};

/// Result of an operation; [`MeshError::Device`] unless said otherwise.
pub type Result<T> = std::result::Result<T, MeshError>;

/// A recorded list of commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(pub u32);

/// Sizes that tell whether anything is compiled anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProgramCounts {
    /// Entries of the mesh's program cache.
    pub programs: usize,
    /// Kernels in the cache on disk.
    pub kernels: usize,
}

/// Rotary tables as one rotation needs them.
#[derive(Debug)]
pub struct RopeTensors<'a, T> {
    /// Decode: `[1, 32, 1, head_dim]`, one user a core. Prefill:
    /// `[1, 1, rows, head_dim]`.
    pub cos: &'a T,
    /// As `cos`.
    pub sin: &'a T,
    /// Decode: `[1, 1, 32·32, 32]`, a tile a core. Prefill: `[1, 1, 32, 32]`.
    pub transformation: &'a T,
}

/// Queries, keys, values and where they are.
#[derive(Debug)]
pub struct PagedAttention<'a, T> {
    /// Decode: `[1, 32, heads, head_dim]`. Prefill: `[1, heads, rows, head_dim]`.
    pub q: &'a T,
    /// `[blocks, kv_heads, block_size, head_dim]`
    pub k_cache: &'a T,
    /// `[blocks, kv_heads, block_size, head_dim]`
    pub v_cache: &'a T,
    /// Decode: `[32, blocks of a sequence]`. Prefill: `[1, …]`; int32.
    pub page_table: &'a T,
    /// Decode: position of each user's token, `[32]`. Prefill: position of the
    /// first row, `[1]`; int32.
    pub positions: &'a T,
}

/// What sampling on the chips needs beside candidates: one value a user.
#[derive(Debug)]
pub struct SamplingTensors<'a, T> {
    /// Candidates kept, uint32 `[32]`.
    pub top_k: &'a T,
    /// Probability mass kept, bf16 `[32]`.
    pub top_p: &'a T,
    /// 1 / temperature, bf16 `[32]`.
    pub inverse_temperature: &'a T,
    /// Of this step's draws, uint32 `[32]`, none of them 2³² − 1. A tensor and
    /// not a number: as an argument a seed is compiled into the kernel, which
    /// would be built anew every step.
    pub seeds: &'a T,
}

/// The chips of one mesh, by operation.
pub trait Ops {
    /// On the chips. A clone is another handle of the same memory, which is
    /// freed with the last.
    type Tensor: Clone;
    /// On the host, packed for the chips.
    type HostTensor;

    // ------------------------------------------------------------ the mesh

    /// How many chips.
    fn num_chips(&self) -> usize;
    /// Whether commands can be recorded: not on mock devices.
    fn can_trace(&self) -> bool;
    /// Sizes of the caches of compiled code.
    fn program_counts(&self) -> ProgramCounts;
    /// Waits until every queued command has run.
    fn synchronize(&mut self) -> Result<()>;

    // ------------------------------------------------------------ memory

    /// `ttnn.Tensor(…)` on the host: packs into tiles and block floats.
    fn pack(&mut self, matrix: HostMatrix) -> Result<Self::HostTensor>;
    /// `ttnn.dump_tensor`, a `.tensorbin` file.
    fn dump(&mut self, tensor: &Self::HostTensor, path: &Path) -> Result<()>;
    /// What stands before the packed parts in the file of a tensor of tiles,
    /// `shape` over all chips, so that a file can be written without the
    /// package. None where it has to write it: of this tensor, or at all.
    /// `scratch`, a name in `.tensorbin`, may be written, and is gone afterwards.
    fn file_header(
        &mut self,
        shape: Shape,
        dtype: DataType,
        spread: Spread,
        scratch: &Path,
    ) -> Result<Option<Vec<u8>>> {
        let _ = (shape, dtype, spread, scratch);
        Ok(None)
    }
    /// `ttnn.load_tensor`: maps the file.
    fn load(&mut self, path: &Path) -> Result<Self::HostTensor>;
    /// `ttnn.to_device`.
    fn to_device(
        &mut self,
        tensor: &Self::HostTensor,
        memory: &MemoryConfig,
    ) -> Result<Self::Tensor>;
    /// `ttnn.zeros`: a tensor of zeros, `shape` on each chip.
    fn zeros(
        &mut self,
        shape: Shape,
        dtype: DataType,
        layout: Layout,
        memory: &MemoryConfig,
    ) -> Result<Self::Tensor>;
    /// `ttnn.empty`: memory with whatever is in it.
    fn empty(
        &mut self,
        shape: Shape,
        dtype: DataType,
        layout: Layout,
        memory: &MemoryConfig,
    ) -> Result<Self::Tensor>;
    /// `ttnn.copy_host_to_device_tensor`: into memory that is there already.
    fn write(&mut self, tensor: &Self::HostTensor, into: &Self::Tensor) -> Result<()>;
    /// What chip `chip` holds, row-major without padding. Waits.
    fn read(&mut self, tensor: &Self::Tensor, chip: usize) -> Result<Vec<f32>>;
    /// As [`Ops::read`], of whole numbers.
    fn read_ids(&mut self, tensor: &Self::Tensor, chip: usize) -> Result<Vec<u32>>;
    /// Shape on one chip.
    fn shape(&self, tensor: &Self::Tensor) -> Shape;

    // ------------------------------------------------------------ placement

    /// `ttnn.to_memory_config`
    fn to_memory_config(&mut self, x: &Self::Tensor, memory: &MemoryConfig)
    -> Result<Self::Tensor>;
    /// `ttnn.typecast`
    fn typecast(&mut self, x: &Self::Tensor, dtype: DataType) -> Result<Self::Tensor>;
    /// `ttnn.slice` from `start` up to `end`.
    fn slice(&mut self, x: &Self::Tensor, start: Shape, end: Shape) -> Result<Self::Tensor>;
    /// `ttnn.reshape`; the same elements in the same order, rows stay whole.
    fn reshape(&mut self, x: &Self::Tensor, shape: Shape) -> Result<Self::Tensor>;
    /// `ttnn.concat` along the last axis, into DRAM.
    fn concat(&mut self, parts: &[Self::Tensor]) -> Result<Self::Tensor>;
    /// `ttnn.transpose` of axes 1 and 2.
    fn transpose_1_2(&mut self, x: &Self::Tensor) -> Result<Self::Tensor>;
    /// `ttnn.untilize`
    fn untilize(&mut self, x: &Self::Tensor) -> Result<Self::Tensor>;

    // ------------------------------------------------------------ collectives

    /// `ttnn.all_gather` along the last axis.
    fn all_gather(&mut self, x: &Self::Tensor, memory: &MemoryConfig) -> Result<Self::Tensor>;
    /// `ttnn.reduce_scatter` along the last axis.
    fn reduce_scatter(&mut self, x: &Self::Tensor, memory: &MemoryConfig) -> Result<Self::Tensor>;

    // ------------------------------------------------------------ arithmetic

    /// `ttnn.embedding`: rows of `table` (bf16, row-major, `[1, 1, n, width]`)
    /// by `ids` (uint32 `[1, 1, 1, rows]`), as tiles `[1, 1, rows, width]`.
    fn embedding(
        &mut self,
        ids: &Self::Tensor,
        table: &Self::Tensor,
        memory: &MemoryConfig,
    ) -> Result<Self::Tensor>;
    /// `ttnn.rms_norm`; `gain` is bf16, row-major, `[1, 1, width / 32, 32]`.
    fn rms_norm(
        &mut self,
        x: &Self::Tensor,
        gain: &Self::Tensor,
        config: &NormConfig,
    ) -> Result<Self::Tensor>;
    /// `ttnn.rms_norm_pre_all_gather`: each row's sum of squares, in one tile.
    fn rms_norm_pre_all_gather(
        &mut self,
        x: &Self::Tensor,
        compute: ComputeConfig,
    ) -> Result<Self::Tensor>;
    /// `ttnn.rms_norm_post_all_gather`: `statistics` are all chips' side by
    /// side, `gain` is this chip's part.
    fn rms_norm_post_all_gather(
        &mut self,
        x: &Self::Tensor,
        statistics: &Self::Tensor,
        gain: &Self::Tensor,
        eps: f32,
        compute: ComputeConfig,
    ) -> Result<Self::Tensor>;
    /// `ttnn.linear`: `x [1, b, rows, k] · weight [1, 1, k, n]`; `b` is 1 but
    /// for long prompts.
    fn linear(
        &mut self,
        x: &Self::Tensor,
        weight: &Self::Tensor,
        config: &LinearConfig,
    ) -> Result<Self::Tensor>;
    /// `ttnn.add`
    fn add(
        &mut self,
        x: &Self::Tensor,
        y: &Self::Tensor,
        memory: &MemoryConfig,
    ) -> Result<Self::Tensor>;
    /// `ttnn.mul` with SiLU on the first operand, beside which the result lies
    /// where `memory` leaves it to the operation.
    fn silu_mul(
        &mut self,
        gate: &Self::Tensor,
        up: &Self::Tensor,
        dtype: DataType,
        memory: &MemoryConfig,
    ) -> Result<Self::Tensor>;

    // ------------------------------------------------------------ attention

    /// `ttnn.experimental.nlp_create_qkv_heads_decode`: of `[1, 1, 32, (heads +
    /// 2 kv_heads)·head_dim]`, q `[1, 32, heads, head_dim]` and k, v
    /// `[1, 32, kv_heads, head_dim]`, one user a core.
    fn nlp_create_qkv_heads_decode(
        &mut self,
        qkv: &Self::Tensor,
        num_heads: usize,
        num_kv_heads: usize,
    ) -> Result<[Self::Tensor; 3]>;
    /// `ttnn.experimental.nlp_create_qkv_heads`: q `[1, heads, rows, head_dim]`
    /// and k, v `[1, kv_heads, rows, head_dim]`.
    fn nlp_create_qkv_heads(
        &mut self,
        qkv: &Self::Tensor,
        num_heads: usize,
        num_kv_heads: usize,
    ) -> Result<[Self::Tensor; 3]>;
    /// `ttnn.experimental.rotary_embedding_llama`:
    /// `x·cos + (x·transformation)·sin`, tile by tile of a head.
    fn rotary_embedding_llama(
        &mut self,
        x: &Self::Tensor,
        rope: &RopeTensors<'_, Self::Tensor>,
        is_decode: bool,
    ) -> Result<Self::Tensor>;
    /// `ttnn.experimental.paged_update_cache`: one row of every user.
    fn paged_update_cache(
        &mut self,
        cache: &Self::Tensor,
        x: &Self::Tensor,
        positions: &Self::Tensor,
        page_table: &Self::Tensor,
    ) -> Result<()>;
    /// `ttnn.experimental.paged_fill_cache`: the rows of `x` from the first
    /// position of row 0 of `page_table`.
    fn paged_fill_cache(
        &mut self,
        cache: &Self::Tensor,
        x: &Self::Tensor,
        page_table: &Self::Tensor,
    ) -> Result<()>;
    /// `ttnn.transformer.paged_scaled_dot_product_attention_decode`
    fn paged_sdpa_decode(
        &mut self,
        attention: &PagedAttention<'_, Self::Tensor>,
        config: &SdpaConfig,
        memory: &MemoryConfig,
    ) -> Result<Self::Tensor>;
    /// `ttnn.transformer.scaled_dot_product_attention`, causal, from position 0.
    fn sdpa(
        &mut self,
        q: &Self::Tensor,
        k: &Self::Tensor,
        v: &Self::Tensor,
        config: &SdpaConfig,
    ) -> Result<Self::Tensor>;
    /// `ttnn.transformer.chunked_scaled_dot_product_attention`: causal, with
    /// what earlier chunks left in the cache.
    fn chunked_sdpa(
        &mut self,
        attention: &PagedAttention<'_, Self::Tensor>,
        config: &SdpaConfig,
    ) -> Result<Self::Tensor>;
    /// `ttnn.experimental.nlp_concat_heads_decode`: `[1, 1, 32, heads·head_dim]`
    /// of `[1, 32, heads, head_dim]`.
    fn nlp_concat_heads_decode(
        &mut self,
        x: &Self::Tensor,
        num_heads: usize,
    ) -> Result<Self::Tensor>;
    /// `ttnn.experimental.nlp_concat_heads`: `[1, 1, rows, heads·head_dim]` of
    /// `[1, heads, rows, head_dim]`.
    fn nlp_concat_heads(&mut self, x: &Self::Tensor) -> Result<Self::Tensor>;

    // ------------------------------------------------------------ sampling

    /// `ttnn.argmax` along the last axis of row-major values: uint32
    /// `[1, 1, rows, 1]`.
    fn argmax(&mut self, x: &Self::Tensor) -> Result<Self::Tensor>;
    /// `ttnn.topk` along the last axis: the 32 largest, largest first, and where
    /// they were.
    fn topk_32(&mut self, x: &Self::Tensor) -> Result<[Self::Tensor; 2]>;
    /// `ttnn.typecast` to int32 and `ttnn.add` of `offsets`: indices over all
    /// chips from those on each.
    fn offset_indices(
        &mut self,
        indices: &Self::Tensor,
        offsets: &Self::Tensor,
    ) -> Result<Self::Tensor>;
    /// `ttnn.manual_seed` and `ttnn.sampling`: an id of `indices` (row-major
    /// int32) for each row of `values` (bf16 tiles), uint32 `[1, 1, 1, 32]`.
    fn sampling(
        &mut self,
        values: &Self::Tensor,
        indices: &Self::Tensor,
        parameters: &SamplingTensors<'_, Self::Tensor>,
    ) -> Result<Self::Tensor>;

    // ------------------------------------------------------------ traces

    /// `ttnn.begin_trace_capture`: commands are recorded, not run.
    fn begin_trace(&mut self) -> Result<TraceId>;
    /// `ttnn.end_trace_capture`
    fn end_trace(&mut self, trace: TraceId) -> Result<()>;
    /// `ttnn.execute_trace`, without waiting.
    fn execute_trace(&mut self, trace: TraceId) -> Result<()>;
    /// `ttnn.release_trace`
    fn release_trace(&mut self, trace: TraceId) -> Result<()>;
}
