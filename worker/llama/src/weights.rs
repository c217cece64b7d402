//! From a checkpoint, by name, to a model on a mesh.

use mesh::{Matrix, Mesh, MeshError, Replicated, WeightCacheUse};

use crate::block::{Block, OutputProjection};
use crate::checkpoint::{Checkpoint, TensorMatrix};
use crate::model::Llama;
use crate::names::{LayerWeight, WeightName};
use crate::policy::DTypePolicy;
use crate::rope::RopeTables;
use crate::runner::LoadError;
use crate::shard::{ShardPlan, Split};

/// How far a load has come, in bytes of the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Handed to the mesh, whether it read them or had them already.
    pub done_bytes: u64,
    /// Everything that the model needs; a tied embedding counts twice.
    pub total_bytes: u64,
}

/// Loads weights one by one and tells how far it is.
pub(crate) struct WeightLoader<'a, M: Mesh> {
    pub(crate) mesh: &'a mut M,
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) plan: &'a ShardPlan,
    pub(crate) policy: &'a DTypePolicy,
    pub(crate) progress: &'a mut dyn FnMut(LoadProgress),
    done_bytes: u64,
    total_bytes: u64,
}

impl<'a, M: Mesh> WeightLoader<'a, M> {
    pub(crate) fn new(
        mesh: &'a mut M,
        checkpoint: &'a Checkpoint,
        plan: &'a ShardPlan,
        policy: &'a DTypePolicy,
        progress: &'a mut dyn FnMut(LoadProgress),
    ) -> Result<Self, LoadError> {
        let config = checkpoint.config();
        let mut names = WeightName::stored(config);
        if config.tie_word_embeddings {
            names.push(WeightName::LmHead);
        }
        let mut total_bytes = 0;
        for name in names {
            total_bytes += checkpoint.matrix(name)?.source_bytes();
        }
        Ok(Self { mesh, checkpoint, plan, policy, progress, done_bytes: 0, total_bytes })
    }

    /// Everything, in the order of use, and whether the mesh had it already.
    pub(crate) fn load_model(
        mut self,
        max_model_len: usize,
    ) -> Result<(Llama<M>, WeightCacheUse), LoadError> {
        let checkpoint = self.checkpoint;
        let config = checkpoint.config();
        self.advance(0);
        let tables = RopeTables::new(&checkpoint.inverse_frequencies()?, max_model_len);
        let rope = self.mesh.load_rope(&tables.cos, &tables.sin, config.head_dim)?;
        drop(tables);
        let embedding = self.policy.embedding;
        let embed_tokens =
            self.one(WeightName::EmbedTokens, |mesh, table| mesh.load_embedding(table, embedding))?;
        let blocks =
            (0..config.num_hidden_layers).map(|n| self.block(n)).collect::<Result<Vec<_>, _>>()?;
        let norm = self.norm(WeightName::Norm)?;
        let dtype = self.policy.lm_head;
        let lm_head =
            self.one(WeightName::LmHead, |mesh, matrix| mesh.load_lm_head(matrix, dtype))?;
        // Before the mesh may keep what it has made of it.
        checkpoint.verify_unchanged()?;
        let cache_use = self.mesh.finish_loading()?;
        let rms_norm_eps = config.rms_norm_eps;
        Ok((Llama { embed_tokens, rope, blocks, norm, lm_head, rms_norm_eps }, cache_use))
    }

    fn block(&mut self, layer: usize) -> Result<Block<M>, LoadError> {
        use LayerWeight as W;
        let name = |weight| WeightName::Layer(layer, weight);
        let DTypePolicy { attention, w1_w3, w2, .. } = *self.policy;
        Ok(Block {
            layer,
            input_layernorm: self.norm(name(W::InputLayernorm))?,
            qkv_proj: self
                .together([W::QProj, W::KProj, W::VProj].map(name), |mesh, [q, k, v]| {
                    mesh.load_column_parallel(&[q, k, v], attention)
                })?,
            o_proj: self.output_projection(name(W::OProj))?,
            post_attention_layernorm: self.norm(name(W::PostAttentionLayernorm))?,
            gate_up_proj: self
                .together([W::GateProj, W::UpProj].map(name), |mesh, [gate, up]| {
                    mesh.load_gate_up(gate, up, w1_w3)
                })?,
            down_proj: self
                .one(name(W::DownProj), |mesh, down| mesh.load_row_parallel(down, w2))?,
        })
    }

    fn output_projection(&mut self, name: WeightName) -> Result<OutputProjection<M>, LoadError> {
        let (split, dtype) = (self.plan.split(name), self.policy.attention);
        self.one(name, |mesh, wo| match split {
            Split::Output => {
                mesh.load_column_parallel(&[wo], dtype).map(OutputProjection::ColumnParallel)
            }
            _ => mesh.load_row_parallel(wo, dtype).map(OutputProjection::RowParallel),
        })
    }

    fn norm(&mut self, name: WeightName) -> Result<Replicated<M::Weight>, LoadError> {
        self.one(name, |mesh, gain| mesh.load_gain(gain))
    }

    fn one<W>(
        &mut self,
        name: WeightName,
        upload: impl FnOnce(&mut M, &dyn Matrix) -> Result<W, MeshError>,
    ) -> Result<W, LoadError> {
        self.together([name], |mesh, [matrix]| upload(mesh, matrix))
    }

    /// Opens the named matrices, uploads them together, and reports progress.
    fn together<W, const N: usize>(
        &mut self,
        names: [WeightName; N],
        upload: impl FnOnce(&mut M, [&dyn Matrix; N]) -> Result<W, MeshError>,
    ) -> Result<W, LoadError> {
        let mut matrices = Vec::with_capacity(N);
        for name in names {
            matrices.push(self.checkpoint.matrix(name)?);
        }
        let weight = upload(self.mesh, std::array::from_fn(|i| &matrices[i] as &dyn Matrix))?;
        self.advance(matrices.iter().map(TensorMatrix::source_bytes).sum());
        Ok(weight)
    }

    fn advance(&mut self, bytes: u64) {
        self.done_bytes += bytes;
        let (done_bytes, total_bytes) = (self.done_bytes, self.total_bytes);
        (self.progress)(LoadProgress { done_bytes, total_bytes });
    }
}
