//! The whole model: embedding, blocks, norm, LM head.

use std::fmt;

use mesh::{ColumnParallel, Mesh, MeshError, Replicated, Sharded, StepBatch, StepOutput};

use crate::block::{Block, Step};

/// A Llama's weights on a mesh, and the order in which they are used.
pub struct Llama<M: Mesh> {
    pub(crate) embed_tokens: Sharded<M::Weight>, // [vocab, hidden]
    pub(crate) rope: Replicated<M::Rope>,        // [max_positions, head_dim / 2]
    pub(crate) blocks: Vec<Block<M>>,
    pub(crate) norm: Replicated<M::Weight>, // [1, hidden], f32
    pub(crate) lm_head: ColumnParallel<M::Weight>, // [vocab, hidden]
    pub(crate) rms_norm_eps: f32,
}

impl<M: Mesh> Llama<M> {
    /// Runs one step: writes the KV of all its tokens to `cache`, and to `out`
    /// the logits of `batch.logit_rows`, or the tokens chosen by them.
    ///
    /// A step without logit rows (the inner chunks of a prompt) ends with the
    /// last layer's attention: nothing reads what would come after.
    ///
    /// # Errors
    /// [`MeshError::Device`].
    pub fn forward(
        &self,
        mesh: &mut M,
        cache: &mut M::KvCache,
        batch: &StepBatch,
        out: &mut StepOutput,
    ) -> Result<(), MeshError> {
        out.clear();
        if batch.token_ids.is_empty() || mesh.begin_step(batch, out)? {
            return Ok(());
        }
        match self.logits(mesh, cache, batch)? {
            Some(logits) => mesh.read(logits, batch, out),
            None => Ok(()),
        }
    }

    fn logits(
        &self,
        mesh: &mut M,
        cache: &mut M::KvCache,
        batch: &StepBatch,
    ) -> Result<Option<Sharded<M::Tensor>>, MeshError> {
        let step = Step { batch, rope: &self.rope, eps: self.rms_norm_eps };
        let (last, blocks) = self.blocks.split_last().expect("a model has at least one layer");

        let mut x = mesh.embed(&self.embed_tokens, batch)?;
        for block in blocks {
            x = block.attend(mesh, cache, &step, x)?;
            x = block.feed_forward(mesh, &step, x)?;
        }
        x = last.attend(mesh, cache, &step, x)?;
        if batch.logit_rows.is_empty() {
            return Ok(None);
        }
        // From here on rows do not meet any more: only those wanted go on.
        // They are ascending, so as many as there are tokens are all of them.
        if batch.logit_rows.len() < batch.num_tokens() {
            x = mesh.select_rows(x, &batch.logit_rows)?;
        }
        x = last.feed_forward(mesh, &step, x)?;
        let h = mesh.rms_norm(&x, &self.norm, self.rms_norm_eps)?;
        mesh.column_linear(&h, &self.lm_head).map(Some)
    }
}

impl<M: Mesh> fmt::Debug for Llama<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Llama").field("layers", &self.blocks.len()).finish_non_exhaustive()
    }
}
