//! One transformer block, as the paper draws it. The residual stream is cut over
//! the chips along its channels; what a chip needs of the others' it gets in a
//! norm.

use mesh::{ColumnParallel, Mesh, MeshError, Replicated, RowParallel, Sharded, StepBatch};

/// The weights of one block on the mesh.
pub(crate) struct Block<M: Mesh> {
    /// Index of the layer, its place in the KV cache.
    pub(crate) layer: usize,
    pub(crate) input_layernorm: Replicated<M::Weight>, // [1, hidden], f32
    pub(crate) qkv_proj: ColumnParallel<M::Weight>,    // [(heads + 2·kv_heads)·head_dim, hidden]
    pub(crate) o_proj: OutputProjection<M>,            // [hidden, heads·head_dim]
    pub(crate) post_attention_layernorm: Replicated<M::Weight>, // [1, hidden], f32
    pub(crate) gate_up_proj: ColumnParallel<M::Weight>, // [2·intermediate, hidden]
    pub(crate) down_proj: RowParallel<M::Weight>,      // [hidden, intermediate]
}

/// The output projection of attention, cut as the shard plan says.
pub(crate) enum OutputProjection<M: Mesh> {
    /// Each chip multiplies its own heads, and the products are summed.
    RowParallel(RowParallel<M::Weight>),
    /// The heads are gathered, and each chip makes its own channels of the
    /// result: no sum crosses chips.
    ColumnParallel(ColumnParallel<M::Weight>),
}

/// What every block of one step shares.
pub(crate) struct Step<'a, M: Mesh> {
    pub(crate) batch: &'a StepBatch,
    pub(crate) rope: &'a Replicated<M::Rope>,
    pub(crate) eps: f32,
}

impl<M: Mesh> Block<M> {
    /// Attention and its residual; `x` is `[num_tokens, hidden]`, each chip its
    /// own channels. Writes the step's keys and values to the cache.
    pub(crate) fn attend(
        &self,
        mesh: &mut M,
        cache: &mut M::KvCache,
        step: &Step<'_, M>,
        x: Sharded<M::Tensor>,
    ) -> Result<Sharded<M::Tensor>, MeshError> {
        let h = mesh.rms_norm(&x, &self.input_layernorm, step.eps)?;
        let qkv = mesh.column_linear(&h, &self.qkv_proj)?;
        let heads = mesh.attention(qkv, step.rope, cache, self.layer, step.batch)?;
        let attended = self.o_proj.apply(mesh, heads)?;
        mesh.add(x, &attended)
    }

    /// The MLP and its residual; `x` is `[rows, hidden]`, row by row.
    pub(crate) fn feed_forward(
        &self,
        mesh: &mut M,
        step: &Step<'_, M>,
        x: Sharded<M::Tensor>,
    ) -> Result<Sharded<M::Tensor>, MeshError> {
        let h = mesh.rms_norm(&x, &self.post_attention_layernorm, step.eps)?;
        let gate_up = mesh.column_linear(&h, &self.gate_up_proj)?;
        let activated = mesh.silu_mul(gate_up)?;
        let addends = mesh.row_linear(&activated, &self.down_proj)?;
        let transformed = mesh.reduce_scatter(addends)?;
        mesh.add(x, &transformed)
    }
}

impl<M: Mesh> OutputProjection<M> {
    fn apply(
        &self,
        mesh: &mut M,
        heads: Sharded<M::Tensor>,
    ) -> Result<Sharded<M::Tensor>, MeshError> {
        match self {
            Self::RowParallel(wo) => {
                let addends = mesh.row_linear(&heads, wo)?;
                mesh.reduce_scatter(addends)
            }
            Self::ColumnParallel(wo) => {
                let heads = mesh.all_gather(heads)?;
                mesh.column_linear(&heads, wo)
            }
        }
    }
}
