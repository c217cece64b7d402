//! The operations in plain Rust: the numbers behind the same calls.
//!
//! [`ReferenceOps`] stands in for the package, so that everything above [`Ops`]
//! computes real logits without a card: it takes what the package takes, refuses
//! what the package refuses, and also what the package takes although its kernels
//! would not (a `per_core_N` that does not cover the columns, for instance).
//!
//! Values are rounded as the chips store them: bf16 to nearest even, block floats
//! in groups of 16 columns, bit for bit as the host packs them. Within one
//! operation everything is f32 or f64 and rounded once, so that a card's results
//! differ by what its passes of multiplication, its approximations and its orders
//! of summation make of them; math fidelity is not simulated. Padding is not
//! stored, so that nothing can depend on it. What a card leaves undefined is NaN,
//! so that whoever uses it is found out.
//!
//! Commands run when they are issued, except while a trace is recorded: see
//! the submodule `commands`. Start with the submodule of an operation.

mod attention;
mod collective;
mod commands;
mod elementwise;
mod heads;
mod host;
mod matmul;
mod movement;
mod norm;
mod paging;
mod placement;
mod refusal;
mod rope;
mod rounding;
mod sampling;
mod tensor;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use kernels::Pool;

pub use tensor::{HostTensor, Tensor, TensorSpec};

use crate::ops::{
    Ops, PagedAttention, ProgramCounts, Result, RopeTensors, SamplingTensors, TraceId,
};
use crate::spec::{
    ComputeConfig, DataType, Grid, HostMatrix, Layout, LinearConfig, MemoryConfig, NormConfig,
    SdpaConfig, Shape,
};
use crate::weight::num_threads;
use commands::Commands;
use placement::Floor;
use refusal::Op;

/// Cores of a Wormhole chip whose dispatch runs on ethernet cores.
const FULL_GRID: Grid = Grid { x: 8, y: 8 };

/// Simulated chips.
#[derive(Debug)]
pub struct ReferenceOps {
    commands: Commands,
    pool: Arc<Pool>,
}

impl ReferenceOps {
    /// `num_chips` chips of 8×8 cores.
    ///
    /// # Panics
    /// If there are none.
    #[must_use]
    pub fn new(num_chips: usize) -> Self {
        Self::with_grid(num_chips, FULL_GRID)
    }

    /// `num_chips` chips of `grid` cores.
    ///
    /// # Panics
    /// If there are none.
    #[must_use]
    pub fn with_grid(num_chips: usize, grid: Grid) -> Self {
        assert!(num_chips > 0, "a mesh has at least 1 chip");
        let commands = Commands::new(num_chips, Floor { grid });
        Self { commands, pool: Arc::new(Pool::new(num_threads())) }
    }

    /// Names of the calls so far, as the package has them, in order.
    #[must_use]
    pub fn calls(&self) -> &[String] {
        self.commands.calls()
    }

    /// Forgets the calls so far.
    pub fn clear_calls(&mut self) {
        self.commands.clear_calls();
    }
}

impl Ops for ReferenceOps {
    type Tensor = Tensor;
    type HostTensor = HostTensor;

    fn num_chips(&self) -> usize {
        self.commands.num_chips
    }

    fn can_trace(&self) -> bool {
        true
    }

    /// A program is an operation with its operands' shapes, types and places and
    /// its configuration; nothing is compiled to disk.
    fn program_counts(&self) -> ProgramCounts {
        self.commands.program_counts()
    }

    fn synchronize(&mut self) -> Result<()> {
        self.commands.host_access(Op("synchronize_device"))
    }

    fn pack(&mut self, matrix: HostMatrix) -> Result<HostTensor> {
        host::pack(&mut self.commands, matrix)
    }

    /// In a form of our own, which [`ReferenceOps::load`] reads.
    fn dump(&mut self, tensor: &HostTensor, path: &Path) -> Result<()> {
        host::dump(&mut self.commands, tensor, path)
    }

    fn load(&mut self, path: &Path) -> Result<HostTensor> {
        host::load(&mut self.commands, path)
    }

    fn to_device(&mut self, tensor: &HostTensor, memory: &MemoryConfig) -> Result<Tensor> {
        host::to_device(&mut self.commands, tensor, memory)
    }

    fn zeros(
        &mut self,
        shape: Shape,
        dtype: DataType,
        layout: Layout,
        memory: &MemoryConfig,
    ) -> Result<Tensor> {
        host::zeros(
            &mut self.commands,
            TensorSpec { shape, rank: 4, dtype, layout, memory: *memory },
        )
    }

    /// Zeros, as it happens.
    fn empty(
        &mut self,
        shape: Shape,
        dtype: DataType,
        layout: Layout,
        memory: &MemoryConfig,
    ) -> Result<Tensor> {
        self.zeros(shape, dtype, layout, memory)
    }

    fn write(&mut self, tensor: &HostTensor, into: &Tensor) -> Result<()> {
        host::write(&mut self.commands, tensor, into)
    }

    fn read(&mut self, tensor: &Tensor, chip: usize) -> Result<Vec<f32>> {
        host::read(&mut self.commands, tensor, chip)
    }

    fn read_ids(&mut self, tensor: &Tensor, chip: usize) -> Result<Vec<u32>> {
        host::read_ids(&mut self.commands, tensor, chip)
    }

    fn shape(&self, tensor: &Tensor) -> Shape {
        tensor.spec().shape
    }

    fn to_memory_config(&mut self, x: &Tensor, memory: &MemoryConfig) -> Result<Tensor> {
        movement::to_memory_config(&mut self.commands, x, *memory)
    }

    fn typecast(&mut self, x: &Tensor, dtype: DataType) -> Result<Tensor> {
        movement::typecast(&mut self.commands, x, dtype)
    }

    fn slice(&mut self, x: &Tensor, start: Shape, end: Shape) -> Result<Tensor> {
        movement::slice(&mut self.commands, x, start, end)
    }

    fn reshape(&mut self, x: &Tensor, shape: Shape) -> Result<Tensor> {
        movement::reshape(&mut self.commands, x, shape)
    }

    fn concat(&mut self, parts: &[Tensor]) -> Result<Tensor> {
        movement::concat(&mut self.commands, parts)
    }

    fn transpose_1_2(&mut self, x: &Tensor) -> Result<Tensor> {
        movement::transpose_1_2(&mut self.commands, x)
    }

    fn untilize(&mut self, x: &Tensor) -> Result<Tensor> {
        movement::untilize(&mut self.commands, x)
    }

    fn all_gather(&mut self, x: &Tensor, memory: &MemoryConfig) -> Result<Tensor> {
        collective::all_gather(&mut self.commands, x, *memory)
    }

    fn reduce_scatter(&mut self, x: &Tensor, memory: &MemoryConfig) -> Result<Tensor> {
        collective::reduce_scatter(&mut self.commands, x, *memory)
    }

    fn embedding(&mut self, ids: &Tensor, table: &Tensor, memory: &MemoryConfig) -> Result<Tensor> {
        elementwise::embedding(&mut self.commands, ids, table, *memory)
    }

    fn rms_norm(&mut self, x: &Tensor, gain: &Tensor, config: &NormConfig) -> Result<Tensor> {
        norm::rms_norm(&mut self.commands, x, gain, config)
    }

    fn rms_norm_pre_all_gather(&mut self, x: &Tensor, compute: ComputeConfig) -> Result<Tensor> {
        norm::rms_norm_pre_all_gather(&mut self.commands, x, compute)
    }

    fn rms_norm_post_all_gather(
        &mut self,
        x: &Tensor,
        statistics: &Tensor,
        gain: &Tensor,
        eps: f32,
        compute: ComputeConfig,
    ) -> Result<Tensor> {
        norm::rms_norm_post_all_gather(&mut self.commands, x, statistics, gain, eps, compute)
    }

    fn linear(&mut self, x: &Tensor, weight: &Tensor, config: &LinearConfig) -> Result<Tensor> {
        matmul::linear(&mut self.commands, &self.pool, x, weight, config)
    }

    fn add(&mut self, x: &Tensor, y: &Tensor, memory: &MemoryConfig) -> Result<Tensor> {
        elementwise::add(&mut self.commands, x, y, *memory)
    }

    fn silu_mul(
        &mut self,
        gate: &Tensor,
        up: &Tensor,
        dtype: DataType,
        memory: &MemoryConfig,
    ) -> Result<Tensor> {
        elementwise::silu_mul(&mut self.commands, gate, up, dtype, *memory)
    }

    fn nlp_create_qkv_heads_decode(
        &mut self,
        qkv: &Tensor,
        num_heads: usize,
        num_kv_heads: usize,
    ) -> Result<[Tensor; 3]> {
        heads::nlp_create_qkv_heads_decode(&mut self.commands, qkv, num_heads, num_kv_heads)
    }

    fn nlp_create_qkv_heads(
        &mut self,
        qkv: &Tensor,
        num_heads: usize,
        num_kv_heads: usize,
    ) -> Result<[Tensor; 3]> {
        heads::nlp_create_qkv_heads(&mut self.commands, qkv, num_heads, num_kv_heads)
    }

    fn rotary_embedding_llama(
        &mut self,
        x: &Tensor,
        rope: &RopeTensors<'_, Tensor>,
        is_decode: bool,
    ) -> Result<Tensor> {
        rope::rotary_embedding_llama(&mut self.commands, x, rope, is_decode)
    }

    fn paged_update_cache(
        &mut self,
        cache: &Tensor,
        x: &Tensor,
        positions: &Tensor,
        page_table: &Tensor,
    ) -> Result<()> {
        paging::paged_update_cache(&mut self.commands, cache, x, positions, page_table)
    }

    fn paged_fill_cache(&mut self, cache: &Tensor, x: &Tensor, page_table: &Tensor) -> Result<()> {
        paging::paged_fill_cache(&mut self.commands, cache, x, page_table)
    }

    fn paged_sdpa_decode(
        &mut self,
        attention: &PagedAttention<'_, Tensor>,
        config: &SdpaConfig,
        memory: &MemoryConfig,
    ) -> Result<Tensor> {
        attention::paged_sdpa_decode(&mut self.commands, attention, config, *memory)
    }

    fn sdpa(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, config: &SdpaConfig) -> Result<Tensor> {
        attention::sdpa(&mut self.commands, q, k, v, config)
    }

    fn chunked_sdpa(
        &mut self,
        attention: &PagedAttention<'_, Tensor>,
        config: &SdpaConfig,
    ) -> Result<Tensor> {
        attention::chunked_sdpa(&mut self.commands, attention, config)
    }

    fn nlp_concat_heads_decode(&mut self, x: &Tensor, num_heads: usize) -> Result<Tensor> {
        heads::nlp_concat_heads_decode(&mut self.commands, x, num_heads)
    }

    fn nlp_concat_heads(&mut self, x: &Tensor) -> Result<Tensor> {
        heads::nlp_concat_heads(&mut self.commands, x)
    }

    fn argmax(&mut self, x: &Tensor) -> Result<Tensor> {
        sampling::argmax(&mut self.commands, x)
    }

    fn topk_32(&mut self, x: &Tensor) -> Result<[Tensor; 2]> {
        sampling::topk_32(&mut self.commands, x)
    }

    fn offset_indices(&mut self, indices: &Tensor, offsets: &Tensor) -> Result<Tensor> {
        sampling::offset_indices(&mut self.commands, indices, offsets)
    }

    fn sampling(
        &mut self,
        values: &Tensor,
        indices: &Tensor,
        parameters: &SamplingTensors<'_, Tensor>,
    ) -> Result<Tensor> {
        sampling::sampling(&mut self.commands, values, indices, parameters)
    }

    fn begin_trace(&mut self) -> Result<TraceId> {
        self.commands.begin_trace()
    }

    fn end_trace(&mut self, trace: TraceId) -> Result<()> {
        self.commands.end_trace(trace)
    }

    fn execute_trace(&mut self, trace: TraceId) -> Result<()> {
        self.commands.execute_trace(trace)
    }

    fn release_trace(&mut self, trace: TraceId) -> Result<()> {
        self.commands.release_trace(trace)
    }
}
