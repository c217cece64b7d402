//! Rotary embedding, cache write and paged attention over every chip's heads.

use kernels::{Attention, AttentionSequence, elementwise};
use mesh::{MeshError, StepBatch};

use crate::fan_out;
use crate::kv_cache::{ChipHeads, LayerCache};
use crate::ops::Compute;
use crate::tensor::Tensor;

/// Rotary tables, the same on every chip.
#[derive(Debug)]
pub struct Rope {
    half_dim: usize,
    /// `[max_positions, half_dim]`
    cos: Vec<f32>,
    /// `[max_positions, half_dim]`
    sin: Vec<f32>,
}

impl Rope {
    pub(crate) fn new(cos: &[f32], sin: &[f32], head_dim: usize) -> Result<Self, MeshError> {
        let half_dim = head_dim / 2;
        let even = half_dim > 0 && head_dim.is_multiple_of(2);
        if !even || !cos.len().is_multiple_of(half_dim) || cos.len() != sin.len() {
            return Err(MeshError::DoesNotFit(format!(
                "rotary tables have {} and {} values, must be the same number of rows of \
                 head_dim / 2 with head_dim {head_dim}",
                cos.len(),
                sin.len()
            )));
        }
        Ok(Self { half_dim, cos: cos.to_vec(), sin: sin.to_vec() })
    }

    /// Turns every query and key head of one row `[q | k | v]`.
    fn rotate(&self, row: &mut [f32], heads: ChipHeads, position: usize) {
        let at = position * self.half_dim..(position + 1) * self.half_dim;
        let (cos, sin) = (&self.cos[at.clone()], &self.sin[at]);
        for head in row[..heads.q_width() + heads.kv_width()].chunks_exact_mut(heads.head_dim) {
            elementwise::rope_interleaved(head, cos, sin);
        }
    }
}

impl Compute {
    /// See [`mesh::Mesh::attention`].
    pub(crate) fn attention(
        &self,
        mut qkv: Tensor, // per chip [num_tokens, qkv_width]
        rope: &Rope,
        cache: &mut LayerCache,
        batch: &StepBatch,
    ) -> Tensor {
        let heads = cache.heads;
        let num_rows = qkv.num_rows();
        check(&qkv, rope, cache, batch);
        let positions: Vec<usize> = batch
            .sequences
            .iter()
            .flat_map(|s| s.first_position..s.first_position + s.num_tokens)
            .collect();
        self.rotate(&mut qkv, rope, heads, &positions);
        self.store(&qkv, cache, batch);

        let mut out = self.buffers.tensor(num_rows, heads.q_width(), qkv.num_shards());
        let sequences: Vec<AttentionSequence<'_>> = batch
            .sequences
            .iter()
            .map(|s| AttentionSequence {
                first_row: s.first_row,
                num_tokens: s.num_tokens,
                first_position: s.first_position,
                block_table: &s.block_table,
            })
            .collect();
        let mut jobs: Vec<Attention<'_>> = cache
            .stores
            .iter()
            .zip(out.shards_mut())
            .enumerate()
            .map(|(rank, (cache, out))| Attention {
                q: qkv.on_chip(rank),
                q_stride: heads.qkv_width(),
                cache,
                out,
                num_heads: heads.num_heads,
            })
            .collect();
        if !jobs.is_empty() {
            let scale = (heads.head_dim as f32).sqrt().recip();
            kernels::attention(&self.pool, self.isa, scale, &sequences, &mut jobs);
        }
        drop(jobs);
        out
    }

    /// Rotates q and k of every chip's rows in place.
    fn rotate(&self, qkv: &mut Tensor, rope: &Rope, heads: ChipHeads, positions: &[usize]) {
        let width = heads.qkv_width();
        let rows = fan_out::rows_per_task(&self.pool, positions.len(), width);
        let tasks: Vec<(&mut [f32], &[usize])> = qkv
            .shards_mut()
            .flat_map(|shard| shard.chunks_mut(rows * width).zip(positions.chunks(rows)))
            .collect();
        fan_out::for_each(&self.pool, tasks, |(rows, positions)| {
            for (row, &position) in rows.chunks_exact_mut(width).zip(positions) {
                rope.rotate(row, heads, position);
            }
        });
    }

    /// Writes every row's k and v to its place in the cache, chips in parallel
    /// when there is enough to write.
    fn store(&self, qkv: &Tensor, cache: &mut LayerCache, batch: &StepBatch) {
        let (heads, block_size) = (cache.heads, cache.block_size);
        let width = heads.qkv_width();
        let write = |rank: usize, store: &mut kernels::KvCacheStore| {
            let rows = qkv.on_chip(rank);
            for sequence in &batch.sequences {
                for i in 0..sequence.num_tokens {
                    let position = sequence.first_position + i;
                    let block = sequence.block_table[position / block_size] as usize;
                    let row = &rows[(sequence.first_row + i) * width..][..width];
                    let (k, v) = row[heads.q_width()..].split_at(heads.kv_width());
                    store.write(block, position % block_size, k, v);
                }
            }
        };
        let chips = cache.stores.iter_mut().enumerate();
        if fan_out::rows_per_task(&self.pool, qkv.num_rows(), width) < qkv.num_rows() {
            fan_out::for_each(&self.pool, chips.collect(), |(rank, store)| write(rank, store));
        } else {
            chips.for_each(|(rank, store)| write(rank, store));
        }
    }
}

/// What the graph and the engine promise; a wrong block would silently read
/// another sequence's keys.
fn check(qkv: &Tensor, rope: &Rope, cache: &LayerCache, batch: &StepBatch) {
    let heads = cache.heads;
    assert_eq!(qkv.num_cols(), heads.qkv_width(), "qkv holds this cache's heads");
    assert_eq!(qkv.num_shards(), cache.stores.len(), "qkv and cache live on the same chips");
    assert_eq!(rope.half_dim * 2, heads.head_dim, "rotary tables are for this head_dim");
    let mut next_row = 0;
    for sequence in &batch.sequences {
        assert_eq!(sequence.first_row, next_row, "sequences cover every row once, in order");
        next_row += sequence.num_tokens;
        let num_positions = sequence.first_position + sequence.num_tokens;
        assert!(
            num_positions * rope.half_dim <= rope.cos.len(),
            "sequence has {num_positions} positions, rotary tables have {}",
            rope.cos.len() / rope.half_dim
        );
        assert!(
            num_positions <= sequence.block_table.len() * cache.block_size,
            "sequence has {num_positions} positions, its {} blocks hold {} each",
            sequence.block_table.len(),
            cache.block_size
        );
        let used = num_positions.div_ceil(cache.block_size);
        assert!(
            sequence.block_table[..used].iter().all(|&block| (block as usize) < cache.num_blocks),
            "block table names a block past {}",
            cache.num_blocks
        );
    }
    assert_eq!(next_row, qkv.num_rows(), "sequences cover every row of qkv");
}
