//! The contract between the Llama graph and the chips that run it.
//!
//! Programming model: a single controller drives `num_chips` chips. One call is
//! the same operation on every chip (SPMD); a value is replicated or sharded
//! along its last axis, and says so in its type. Collectives are explicit. The
//! semantics are TTNN's, so that a mesh over `ttnn` and the CPU mesh are two
//! implementations of one trait.
//!
//! Must never know: kernels, files, requests. Read [`Mesh`] first.
#![forbid(unsafe_code)]

mod batch;
mod choice;
#[cfg(feature = "conformance")]
pub mod conformance;
mod dtype;
mod matrix;
mod placement;
mod rules;
mod status;
mod weight_cache;

pub use batch::{SequenceSlice, StepBatch, StepOutput};
pub use choice::{Choice, MAX_CANDIDATES};
pub use dtype::DType;
pub use matrix::{DenseMatrix, Matrix};
pub use placement::{ColumnParallel, Partial, Replicated, RowParallel, Sharded};
pub use rules::StepRules;
pub use status::MeshStatus;
pub use weight_cache::WeightCacheUse;

/// What goes wrong on a mesh, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// The model does not fit this mesh: choose another.
    #[error("{0}")]
    DoesNotFit(String),
    /// The weights could not be read.
    #[error("reading {name}: {message}")]
    Source {
        /// Tensor name.
        name: String,
        /// What happened.
        message: String,
    },
    /// The device failed; the mesh cannot be used any further.
    #[error("device failed: {0}")]
    Device(String),
    /// The device does not answer; neither it nor the thread that waits for it
    /// can be used any further.
    #[error("the device has not answered for {waited:?}")]
    Hung {
        /// For how long it was waited for.
        waited: std::time::Duration,
    },
}

/// Shape of attention over the whole mesh (not per chip).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Channels of a head, even.
    pub head_dim: usize,
}

/// Size and format of the paged KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvCacheShape {
    /// Transformer layers, each with its own K and V.
    pub num_layers: usize,
    /// Blocks; a block table's entries are below this.
    pub num_blocks: usize,
    /// Positions in a block.
    pub block_size: usize,
    /// F32, Bf16 or Bfp8. K and V are rounded once, when written; attention
    /// always reads them as stored, the current step's own included.
    pub dtype: DType,
}

/// What a mesh is, for `Describe` and for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshDescription {
    /// "CPU", "N150", "N300", "T3K".
    pub device: String,
    /// Degree of tensor parallelism.
    pub num_chips: usize,
    /// Precision of the logits that `read_logits` returns.
    pub logits_dtype: DType,
    /// What a step may hold.
    pub rules: StepRules,
}

/// `num_chips` chips under one controller.
///
/// Activations are `[num_tokens, channels]`; `num_tokens` is the step's. Calls
/// may be queued by the mesh; [`Mesh::read_logits`] waits. A row's values depend
/// neither on the other rows of the step nor on how its sequence was cut into
/// chunks (batch invariance); implementations that cannot promise it bit for
/// bit say so in their own documentation.
///
/// # Panics
/// Operations panic on shapes that do not fit together: that is a bug in the
/// graph, never a matter of input.
pub trait Mesh {
    /// An activation on the chips.
    type Tensor;
    /// A weight matrix, norm gain or embedding table on the chips.
    type Weight;
    /// Rotary tables for every position.
    type Rope;
    /// Paged keys and values of all layers.
    type KvCache;

    /// What this mesh is.
    fn describe(&self) -> MeshDescription;

    /// How it is doing.
    fn status(&self) -> MeshStatus {
        MeshStatus::default()
    }

    // ------------------------------------------------------------ loading

    /// Cuts each part along its output channels, and gives chip `c` the `c`-th
    /// slice of every part, parts one below another. `[q, k, v]` in one call is
    /// a fused projection whose chip-local result is `[q_c | k_c | v_c]`.
    ///
    /// # Errors
    /// [`MeshError::DoesNotFit`] when a part's rows do not divide by the chips.
    fn load_column_parallel(
        &mut self,
        parts: &[&dyn Matrix],
        dtype: DType,
    ) -> Result<ColumnParallel<Self::Weight>, MeshError>;

    /// A gate and an up projection, as [`Mesh::silu_mul`] takes their product.
    ///
    /// # Errors
    /// As [`Mesh::load_column_parallel`].
    fn load_gate_up(
        &mut self,
        gate: &dyn Matrix,
        up: &dyn Matrix,
        dtype: DType,
    ) -> Result<ColumnParallel<Self::Weight>, MeshError> {
        self.load_column_parallel(&[gate, up], dtype)
    }

    /// The projection `[vocab, hidden]` whose product is logits.
    ///
    /// # Errors
    /// As [`Mesh::load_column_parallel`].
    fn load_lm_head(
        &mut self,
        matrix: &dyn Matrix,
        dtype: DType,
    ) -> Result<ColumnParallel<Self::Weight>, MeshError> {
        self.load_column_parallel(&[matrix], dtype)
    }

    /// Cuts along the input channels.
    ///
    /// # Errors
    /// [`MeshError::DoesNotFit`] when the columns do not divide by the chips.
    fn load_row_parallel(
        &mut self,
        matrix: &dyn Matrix,
        dtype: DType,
    ) -> Result<RowParallel<Self::Weight>, MeshError>;

    /// Cuts an embedding table `[vocab, hidden]` along its channels: chip `c`
    /// holds the `c`-th slice of every token's row.
    ///
    /// # Errors
    /// [`MeshError::DoesNotFit`] when the channels do not divide by the chips.
    fn load_embedding(
        &mut self,
        table: &dyn Matrix,
        dtype: DType,
    ) -> Result<Sharded<Self::Weight>, MeshError>;

    /// A norm gain `[1, hidden]`, kept in f32, whole on every chip.
    ///
    /// # Errors
    /// [`MeshError::DoesNotFit`] when it has more than one row.
    fn load_gain(&mut self, gain: &dyn Matrix) -> Result<Replicated<Self::Weight>, MeshError>;

    /// Rotary tables: `cos` and `sin` are `[max_positions, head_dim / 2]`, for
    /// interleaved pairs (channel `2i` and `2i + 1` turn together).
    ///
    /// # Errors
    /// When the tables do not fit the device.
    fn load_rope(
        &mut self,
        cos: &[f32],
        sin: &[f32],
        head_dim: usize,
    ) -> Result<Replicated<Self::Rope>, MeshError>;

    /// Empty paged cache; each chip holds its own KV heads.
    ///
    /// # Errors
    /// [`MeshError::DoesNotFit`] when heads do not divide by the chips or the
    /// cache is larger than the device's memory.
    fn new_kv_cache(
        &mut self,
        cache: KvCacheShape,
        attention: AttentionShape,
    ) -> Result<Self::KvCache, MeshError>;

    /// Tells that every weight has been loaded, and that the checkpoint was the
    /// same throughout: a mesh that keeps prepared weights for the next start
    /// completes its cache here, and not if the load fails before. A cache that
    /// cannot be written is no error.
    ///
    /// # Errors
    /// [`MeshError::Device`].
    fn finish_loading(&mut self) -> Result<WeightCacheUse, MeshError> {
        Ok(WeightCacheUse::Unused)
    }

    // ------------------------------------------------------------ the step

    /// Begins a step: what it needs from the host goes to the device here.
    ///
    /// A mesh that has recorded a step of this kind runs the record with this
    /// step's ids and positions, fills `out`, and says so by `true`: the graph
    /// is not walked again. Its operations are part of the record while a mesh
    /// records, so that nothing between here and [`Mesh::read`] may depend on
    /// values.
    ///
    /// # Errors
    /// [`MeshError::Device`].
    fn begin_step(&mut self, batch: &StepBatch, out: &mut StepOutput) -> Result<bool, MeshError> {
        let _ = (batch, out);
        Ok(false)
    }

    /// Rows of `table` by token id, each chip its own channels:
    /// `[num_tokens, hidden]`.
    ///
    /// # Errors
    /// [`MeshError::Device`].
    fn embed(
        &mut self,
        table: &Sharded<Self::Weight>,
        batch: &StepBatch,
    ) -> Result<Sharded<Self::Tensor>, MeshError>;

    /// `x / sqrt(mean(x²) + eps) · gain`, row by row. A row's mean is over all
    /// chips: how they learn of each other's channels is the mesh's choice, and
    /// every chip ends with the whole row.
    ///
    /// # Errors
    /// [`MeshError::Device`].
    fn rms_norm(
        &mut self,
        x: &Sharded<Self::Tensor>,
        gain: &Replicated<Self::Weight>,
        eps: f32,
    ) -> Result<Replicated<Self::Tensor>, MeshError>;

    /// `x · Wᵀ` with `W` cut along its output.
    ///
    /// # Errors
    /// [`MeshError::Device`].
    fn column_linear(
        &mut self,
        x: &Replicated<Self::Tensor>,
        weight: &ColumnParallel<Self::Weight>,
    ) -> Result<Sharded<Self::Tensor>, MeshError>;

    /// Rotates q and k, writes k and v to the cache, and attends causally over
    /// the cache by block table, scale `head_dim^-1/2`. `qkv` is the fused
    /// projection `[num_tokens, (heads + 2·kv_heads)·head_dim]`; the result is
    /// `[num_tokens, heads·head_dim]`.
    ///
    /// # Errors
    /// [`MeshError::Device`].
    fn attention(
        &mut self,
        qkv: Sharded<Self::Tensor>,
        rope: &Replicated<Self::Rope>,
        cache: &mut Self::KvCache,
        layer: usize,
        batch: &StepBatch,
    ) -> Result<Sharded<Self::Tensor>, MeshError>;

    /// `x · Wᵀ` with `W` cut along its input: each chip's addend.
    ///
    /// # Errors
    /// [`MeshError::Device`].
    fn row_linear(
        &mut self,
        x: &Sharded<Self::Tensor>,
        weight: &RowParallel<Self::Weight>,
    ) -> Result<Partial<Self::Tensor>, MeshError>;

    /// `silu(gate) · up` for a `[gate | up]` projection.
    ///
    /// # Errors
    /// [`MeshError::Device`].
    fn silu_mul(
        &mut self,
        gate_up: Sharded<Self::Tensor>,
    ) -> Result<Sharded<Self::Tensor>, MeshError>;

    /// Sum over chips in rank order; chip `c` keeps the `c`-th slice of it.
    ///
    /// # Errors
    /// [`MeshError::Device`].
    fn reduce_scatter(
        &mut self,
        x: Partial<Self::Tensor>,
    ) -> Result<Sharded<Self::Tensor>, MeshError>;

    /// Every chip's slice side by side in rank order, on every chip. Nothing is
    /// added, so that the values are the bits that the chips hold.
    ///
    /// # Errors
    /// [`MeshError::Device`].
    fn all_gather(
        &mut self,
        x: Sharded<Self::Tensor>,
    ) -> Result<Replicated<Self::Tensor>, MeshError>;

    /// `x + y`, the residual: each chip its own channels.
    ///
    /// # Errors
    /// [`MeshError::Device`].
    fn add(
        &mut self,
        x: Sharded<Self::Tensor>,
        y: &Sharded<Self::Tensor>,
    ) -> Result<Sharded<Self::Tensor>, MeshError>;

    /// Only the given rows, in that order: what the LM head needs.
    ///
    /// # Errors
    /// [`MeshError::Device`].
    fn select_rows(
        &mut self,
        x: Sharded<Self::Tensor>,
        rows: &[usize],
    ) -> Result<Sharded<Self::Tensor>, MeshError>;

    /// Gathers vocabulary-sharded logits to the host: `[rows, vocab]`,
    /// row-major, in `out`. Waits for everything queued before.
    ///
    /// # Errors
    /// [`MeshError::Device`].
    fn read_logits(
        &mut self,
        logits: Sharded<Self::Tensor>,
        out: &mut Vec<f32>,
    ) -> Result<(), MeshError>;

    /// Ends a step with the logits of `batch.logit_rows`: fills `out` with what
    /// was chosen by `batch.choices`, or with the logits where there are none.
    ///
    /// # Errors
    /// [`MeshError::Device`], also when choices are asked of a mesh whose rules
    /// do not offer them.
    fn read(
        &mut self,
        logits: Sharded<Self::Tensor>,
        batch: &StepBatch,
        out: &mut StepOutput,
    ) -> Result<(), MeshError> {
        if batch.choices.is_some() {
            return Err(MeshError::Device("this mesh leaves choosing to the host".into()));
        }
        self.read_logits(logits, &mut out.logits)
    }
}
