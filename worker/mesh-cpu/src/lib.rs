//! The mesh of simulated chips: Llama on the threads of a machine without a
//! card, and the numerical reference of every other mesh.
//!
//! Each chip has its own weight shards, its own slice of every sharded
//! activation and its own KV heads; collectives really add partial results, in
//! rank order, so a run repeats bit for bit. A [`mesh::Replicated`] value holds
//! the same bits on every chip by construction (every chip would compute it
//! from the same inputs in the same order), so it is computed and stored once.
//!
//! The work of all chips goes to one thread pool as one list of jobs: three
//! chips on two threads cost about as much as one chip.
//!
//! Batch invariance is bit for bit: a row's values depend neither on the other
//! rows of its step, nor on how its sequence was cut into chunks, nor on the
//! number of threads. The number of chips does change them, within rounding.
//!
//! Must never know: models, checkpoints, requests, instruction sets. Read [`CpuMesh`]
//! first, then `ops`; `cache` is the only file that it touches.
#![forbid(unsafe_code)]

mod attention;
mod buffers;
mod cache;
mod chip;
mod collective;
mod fan_out;
mod kv_cache;
mod ops;
mod tensor;
mod weights;

use kernels::{Isa, Pool};
use mesh::{
    AttentionShape, ColumnParallel, DType, KvCacheShape, Matrix, Mesh, MeshDescription, MeshError,
    Partial, Replicated, RowParallel, Sharded, StepBatch, StepRules, WeightCacheUse,
};

pub use attention::Rope;
pub use cache::WeightCacheFile;
pub use kv_cache::KvCache;
pub use tensor::Tensor;
pub use weights::Weight;

use cache::{WeightCache, WeightKey};
use chip::Chips;
use ops::Compute;

/// Simulated chips over the threads of this machine.
#[derive(Debug)]
pub struct CpuMesh {
    chips: Chips,
    compute: Compute,
    cache: WeightCache,
}

impl CpuMesh {
    /// `num_chips` chips on `num_threads` threads (the caller's included), with
    /// the best instruction set of this machine.
    ///
    /// # Errors
    /// [`MeshError::DoesNotFit`] when there are no chips, more than 8, or no
    /// threads.
    pub fn new(num_chips: usize, num_threads: usize) -> Result<Self, MeshError> {
        Self::with_isa(num_chips, num_threads, Isa::detect())
    }

    /// As [`CpuMesh::new`], with a given instruction set: tests and comparisons.
    ///
    /// # Errors
    /// As [`CpuMesh::new`].
    ///
    /// # Panics
    /// Operations panic when this machine does not have `isa`.
    pub fn with_isa(num_chips: usize, num_threads: usize, isa: Isa) -> Result<Self, MeshError> {
        let chips = Chips::new(num_chips)?;
        if num_threads == 0 {
            return Err(MeshError::DoesNotFit("num_threads is 0, must be at least 1".into()));
        }
        let compute = Compute::new(Pool::new(num_threads), isa);
        Ok(Self { chips, compute, cache: WeightCache::Off })
    }

    /// Takes the next model's weights from `file`, or packs them and writes it.
    /// [`Mesh::finish_loading`] says which it was; the log says why.
    #[must_use]
    pub fn with_weight_cache(mut self, file: WeightCacheFile) -> Self {
        self.cache = WeightCache::open(file, self.chips.count());
        self
    }

    /// Weights will be mapped from a file, whose pages the system may take back,
    /// as far as is known before their content is checked.
    pub fn maps_weights(&self) -> bool {
        matches!(self.cache, WeightCache::Reading { .. })
    }
}

impl Mesh for CpuMesh {
    type Tensor = Tensor;
    type Weight = Weight;
    type Rope = Rope;
    type KvCache = KvCache;

    fn describe(&self) -> MeshDescription {
        MeshDescription {
            device: "CPU".into(),
            num_chips: self.chips.count(),
            logits_dtype: DType::F32,
            rules: StepRules::FREE,
        }
    }

    fn load_column_parallel(
        &mut self,
        parts: &[&dyn Matrix],
        dtype: DType,
    ) -> Result<ColumnParallel<Weight>, MeshError> {
        let (pool, key) = (&self.compute.pool, WeightKey::column_parallel(parts, dtype));
        let pack = || weights::column_parallel(pool, self.chips, parts, dtype);
        self.cache.load(pool, &key, pack).map(ColumnParallel)
    }

    fn load_row_parallel(
        &mut self,
        matrix: &dyn Matrix,
        dtype: DType,
    ) -> Result<RowParallel<Weight>, MeshError> {
        let (pool, key) = (&self.compute.pool, WeightKey::row_parallel(matrix, dtype));
        let pack = || weights::row_parallel(pool, self.chips, matrix, dtype);
        self.cache.load(pool, &key, pack).map(RowParallel)
    }

    fn load_embedding(
        &mut self,
        table: &dyn Matrix,
        dtype: DType,
    ) -> Result<Sharded<Weight>, MeshError> {
        let (pool, key) = (&self.compute.pool, WeightKey::embedding(table, dtype));
        let pack = || weights::embedding(pool, self.chips, table, dtype);
        self.cache.load(pool, &key, pack).map(Sharded)
    }

    fn load_gain(&mut self, gain: &dyn Matrix) -> Result<Replicated<Weight>, MeshError> {
        let (pool, key) = (&self.compute.pool, WeightKey::gain(gain));
        self.cache.load(pool, &key, || weights::gain(gain)).map(Replicated)
    }

    fn load_rope(
        &mut self,
        cos: &[f32],
        sin: &[f32],
        head_dim: usize,
    ) -> Result<Replicated<Rope>, MeshError> {
        Rope::new(cos, sin, head_dim).map(Replicated)
    }

    fn new_kv_cache(
        &mut self,
        cache: KvCacheShape,
        attention: AttentionShape,
    ) -> Result<KvCache, MeshError> {
        KvCache::new(self.chips, cache, attention)
    }

    fn finish_loading(&mut self) -> Result<WeightCacheUse, MeshError> {
        Ok(self.cache.finish())
    }

    fn embed(
        &mut self,
        table: &Sharded<Weight>,
        batch: &StepBatch,
    ) -> Result<Sharded<Tensor>, MeshError> {
        Ok(Sharded(self.compute.embed(&table.0, &batch.token_ids)))
    }

    fn rms_norm(
        &mut self,
        x: &Sharded<Tensor>,
        gain: &Replicated<Weight>,
        eps: f32,
    ) -> Result<Replicated<Tensor>, MeshError> {
        Ok(Replicated(self.compute.rms_norm(&x.0, &gain.0, eps)))
    }

    fn column_linear(
        &mut self,
        x: &Replicated<Tensor>,
        weight: &ColumnParallel<Weight>,
    ) -> Result<Sharded<Tensor>, MeshError> {
        Ok(Sharded(self.compute.linear(&x.0, &weight.0)))
    }

    fn attention(
        &mut self,
        qkv: Sharded<Tensor>,
        rope: &Replicated<Rope>,
        cache: &mut KvCache,
        layer: usize,
        batch: &StepBatch,
    ) -> Result<Sharded<Tensor>, MeshError> {
        Ok(Sharded(self.compute.attention(qkv.0, &rope.0, cache.layer_mut(layer), batch)))
    }

    fn row_linear(
        &mut self,
        x: &Sharded<Tensor>,
        weight: &RowParallel<Weight>,
    ) -> Result<Partial<Tensor>, MeshError> {
        Ok(Partial(self.compute.linear(&x.0, &weight.0)))
    }

    fn silu_mul(&mut self, gate_up: Sharded<Tensor>) -> Result<Sharded<Tensor>, MeshError> {
        Ok(Sharded(self.compute.silu_mul(&gate_up.0)))
    }

    fn reduce_scatter(&mut self, x: Partial<Tensor>) -> Result<Sharded<Tensor>, MeshError> {
        Ok(Sharded(self.compute.reduce_scatter(x.0)))
    }

    fn all_gather(&mut self, x: Sharded<Tensor>) -> Result<Replicated<Tensor>, MeshError> {
        Ok(Replicated(self.compute.all_gather(x.0)))
    }

    fn add(
        &mut self,
        x: Sharded<Tensor>,
        y: &Sharded<Tensor>,
    ) -> Result<Sharded<Tensor>, MeshError> {
        Ok(Sharded(self.compute.add(x.0, &y.0)))
    }

    fn select_rows(
        &mut self,
        x: Sharded<Tensor>,
        rows: &[usize],
    ) -> Result<Sharded<Tensor>, MeshError> {
        Ok(Sharded(self.compute.select_rows(x.0, rows)))
    }

    fn read_logits(
        &mut self,
        logits: Sharded<Tensor>,
        out: &mut Vec<f32>,
    ) -> Result<(), MeshError> {
        collective::gather_to_host(logits.0, out);
        Ok(())
    }
}
