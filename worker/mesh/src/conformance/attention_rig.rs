//! Attention with q, k and v as a test says, driven piece by piece.

use super::probe::{picker, read_sharded, upload};
use super::reference::{Sequence, qkv_width, rope_tables};
use crate::{
    AttentionShape, ColumnParallel, DType, KvCacheShape, Mesh, Replicated, SequenceSlice, StepBatch,
};

/// Tokens of a sequence that one step computes.
#[derive(Debug)]
pub struct Piece<'a> {
    /// The whole sequence.
    pub sequence: &'a Sequence,
    /// Positions to compute; those before must have been.
    pub tokens: std::ops::Range<usize>,
    /// Its KV blocks in position order.
    pub block_table: &'a [u32],
}

/// A mesh with a KV cache and an identity for a fused projection.
#[expect(missing_debug_implementations, reason = "a mesh need not have one")]
pub struct AttentionRig<'m, M: Mesh> {
    mesh: &'m mut M,
    shape: AttentionShape,
    layer: usize,
    projection: ColumnParallel<M::Weight>,
    rope: Replicated<M::Rope>,
    cache: M::KvCache,
}

impl<'m, M: Mesh> AttentionRig<'m, M> {
    /// An empty cache, layer 0 in use.
    ///
    /// # Panics
    /// When the shapes do not fit the mesh.
    pub fn new(mesh: &'m mut M, shape: AttentionShape, cache: KvCacheShape) -> Self {
        let width = qkv_width(shape);
        let q_end = shape.num_attention_heads * shape.head_dim;
        let k_end = q_end + shape.num_key_value_heads * shape.head_dim;
        let [q, k, v] = [0..q_end, q_end..k_end, k_end..width].map(|part| picker(width, part));
        let projection =
            mesh.load_column_parallel(&[&q, &k, &v], DType::F32).expect("the projection fits");
        let (cos, sin) = rope_tables(cache.num_blocks * cache.block_size, shape.head_dim);
        let rope = mesh.load_rope(&cos, &sin, shape.head_dim).expect("the tables fit");
        let cache = mesh.new_kv_cache(cache, shape).expect("the cache fits");
        Self { mesh, shape, layer: 0, projection, rope, cache }
    }

    /// Heads over the whole mesh.
    pub fn shape(&self) -> AttentionShape {
        self.shape
    }

    /// Later steps use this layer's cache.
    pub fn use_layer(&mut self, layer: usize) {
        self.layer = layer;
    }

    /// One step over the pieces; each piece's rows `[tokens, heads·head_dim]`.
    ///
    /// # Panics
    /// When the mesh fails.
    pub fn step(&mut self, pieces: &[Piece<'_>]) -> Vec<Vec<f32>> {
        let mut input = Vec::new();
        let mut sequences = Vec::new();
        let mut first_row = 0;
        for piece in pieces {
            input.extend_from_slice(piece.sequence.rows(piece.tokens.clone()));
            sequences.push(SequenceSlice {
                first_row,
                num_tokens: piece.tokens.len(),
                first_position: piece.tokens.start,
                block_table: piece.block_table.to_vec(),
            });
            first_row += piece.tokens.len();
        }
        let batch = StepBatch { token_ids: vec![0; first_row], sequences, ..StepBatch::default() };
        let x = upload(self.mesh, qkv_width(self.shape), &input);
        let qkv = self.mesh.column_linear(&x, &self.projection).expect("column_linear works");
        let out = self
            .mesh
            .attention(qkv, &self.rope, &mut self.cache, self.layer, &batch)
            .expect("attention works");
        let out = read_sharded(self.mesh, out);
        let width = self.shape.num_attention_heads * self.shape.head_dim;
        let mut rest = out.as_slice();
        pieces
            .iter()
            .map(|piece| {
                let (rows, tail) = rest.split_at(piece.tokens.len() * width);
                rest = tail;
                rows.to_vec()
            })
            .collect()
    }

    /// The whole sequence, alone, in steps of the given sizes: its rows.
    ///
    /// # Panics
    /// When the chunks are not the sequence's length, or the mesh fails.
    pub fn run_in_chunks(
        &mut self,
        sequence: &Sequence,
        chunks: &[usize],
        block_table: &[u32],
    ) -> Vec<f32> {
        let mut out = Vec::new();
        let mut done = 0;
        for chunk in chunks {
            let tokens = done..done + chunk;
            done += chunk;
            out.extend(self.step(&[Piece { sequence, tokens, block_table }]).remove(0));
        }
        assert_eq!(done, sequence.num_tokens(), "the chunks cover the sequence");
        out
    }
}
