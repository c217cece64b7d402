//! Rotary embedding, cache write and paged attention.

use mesh::MeshError;

use crate::chips::Chips;
use crate::kv_cache::{ChipHeads, KvCache, Rope};
use crate::layout::{DECODE_SDPA_COMPUTE, PREFILL_SDPA_COMPUTE};
use crate::ops::{Ops, PagedAttention, RopeTensors};
use crate::spec::{DataType, MemoryConfig, SdpaConfig, TILE};
use crate::step::{Step, StepKind};
use crate::tensor::{Form, Tensor};

impl<O: Ops> Chips<O> {
    /// See [`mesh::Mesh::attention`].
    pub(crate) fn attention(
        &mut self,
        qkv: Tensor<O::Tensor>,
        rope: &Rope<O::Tensor>,
        cache: &KvCache<O::Tensor>,
        layer: usize,
        step: &mut Step<O::Tensor>,
    ) -> Result<Tensor<O::Tensor>, MeshError> {
        let [cos, sin] = self.rotation(rope, cache.heads, step)?;
        match step.kind {
            StepKind::Decode => {
                let transformation = &rope.decode_transformation;
                let tables = RopeTensors { cos: &cos, sin: &sin, transformation };
                self.decode_attention(&qkv, &tables, cache, layer, step)
            }
            StepKind::Prefill { rows, first_position } => {
                let transformation = &rope.prefill_transformation;
                let tables = RopeTensors { cos: &cos, sin: &sin, transformation };
                let filled = self.fill_cache(&qkv, &tables, cache, layer, step)?;
                let program = self.chip.prefill_sdpa(rows, first_position);
                let scale = scale(cache.heads);
                let config = SdpaConfig { scale, program, compute: PREFILL_SDPA_COMPUTE };
                let [q, k, v] = &filled;
                let attended = if first_position == 0 {
                    self.ops.sdpa(q, k, v, &config)?
                } else {
                    let attention = paged(q, cache, layer, step);
                    self.ops.chunked_sdpa(&attention, &config)?
                };
                let heads = self.ops.nlp_concat_heads(&attended)?;
                Ok(qkv.beside(heads, MemoryConfig::DRAM))
            }
        }
    }

    /// Cosines and sines of the step's rows, looked up in its first layer.
    fn rotation(
        &mut self,
        rope: &Rope<O::Tensor>,
        heads: ChipHeads,
        step: &mut Step<O::Tensor>,
    ) -> Result<[O::Tensor; 2], MeshError> {
        if let Some(found) = &step.rope {
            return Ok(found.clone());
        }
        let memory = self.chip.users(TILE, heads.head_dim);
        let mut look_up = |table: &O::Tensor| {
            let rows = self.ops.embedding(&step.rotation, table, &MemoryConfig::DRAM)?;
            if step.kind != StepKind::Decode {
                return Ok(rows);
            }
            let users = self.ops.transpose_1_2(&rows)?;
            self.ops.to_memory_config(&users, &memory)
        };
        let found = [look_up(&rope.cos)?, look_up(&rope.sin)?];
        step.rope = Some(found.clone());
        Ok(found)
    }

    fn decode_attention(
        &mut self,
        qkv: &Tensor<O::Tensor>,
        tables: &RopeTensors<'_, O::Tensor>,
        cache: &KvCache<O::Tensor>,
        layer: usize,
        step: &Step<O::Tensor>,
    ) -> Result<Tensor<O::Tensor>, MeshError> {
        let ChipHeads { num_heads, num_kv_heads, head_dim } = cache.heads;
        let interleaved = self.placed(qkv, MemoryConfig::L1)?;
        let [q, k, v] =
            self.ops.nlp_create_qkv_heads_decode(&interleaved, num_heads, num_kv_heads)?;
        drop(interleaved);
        let q = self.ops.rotary_embedding_llama(&q, tables, true)?;
        let k = self.ops.rotary_embedding_llama(&k, tables, true)?;
        let [k_cache, v_cache] = &cache.layers[layer];
        self.ops.paged_update_cache(k_cache, &k, &step.positions, &step.page_table)?;
        self.ops.paged_update_cache(v_cache, &v, &step.positions, &step.page_table)?;
        let program = self.chip.decode_sdpa();
        let config =
            SdpaConfig { scale: scale(cache.heads), program, compute: DECODE_SDPA_COMPUTE };
        let attention = paged(&q, cache, layer, step);
        let attended = self.ops.paged_sdpa_decode(&attention, &config, &MemoryConfig::DRAM)?;
        let users = self.chip.users(num_heads, head_dim);
        let attended = self.ops.to_memory_config(&attended, &users)?;
        let row = self.ops.nlp_concat_heads_decode(&attended, num_heads)?;
        Ok(qkv.beside(row, MemoryConfig::WidthShardedByOp))
    }

    /// Cuts a chunk into heads, turns them, writes keys and values to the cache:
    /// q, k and v in the cache's format.
    fn fill_cache(
        &mut self,
        qkv: &Tensor<O::Tensor>,
        tables: &RopeTensors<'_, O::Tensor>,
        cache: &KvCache<O::Tensor>,
        layer: usize,
        step: &Step<O::Tensor>,
    ) -> Result<[O::Tensor; 3], MeshError> {
        let ChipHeads { num_heads, num_kv_heads, .. } = cache.heads;
        let [q, k, v] = self.ops.nlp_create_qkv_heads(qkv.whole(), num_heads, num_kv_heads)?;
        let q = self.ops.rotary_embedding_llama(&q, tables, false)?;
        let k = self.ops.rotary_embedding_llama(&k, tables, false)?;
        let [q, k, v] = if cache.dtype == DataType::BFloat16 {
            [q, k, v]
        } else {
            let mut stored = |x: &O::Tensor| self.ops.typecast(x, cache.dtype);
            [stored(&q)?, stored(&k)?, stored(&v)?]
        };
        let blocks = step.fill_table.as_ref().expect("a prefill has a table of what it fills");
        let [k_cache, v_cache] = &cache.layers[layer];
        self.ops.paged_fill_cache(k_cache, &k, blocks)?;
        self.ops.paged_fill_cache(v_cache, &v, blocks)?;
        Ok([q, k, v])
    }

    /// Rows of `table` by the step's ids, each chip its own channels.
    pub(crate) fn embed(
        &mut self,
        table: &O::Tensor,
        step: &Step<O::Tensor>,
    ) -> Result<Tensor<O::Tensor>, MeshError> {
        match step.kind {
            StepKind::Decode => {
                let rows = self.ops.embedding(&step.ids, table, &MemoryConfig::L1)?;
                let memory = self.chip.row(self.ops.shape(&rows)[3]);
                let rows = self.ops.to_memory_config(&rows, &memory)?;
                Ok(Tensor::new(rows, Form::Tile, memory))
            }
            StepKind::Prefill { rows, .. } => {
                let value = self.ops.embedding(&step.ids, table, &MemoryConfig::DRAM)?;
                Ok(Tensor::new(value, Form::Rows(rows), MemoryConfig::DRAM))
            }
        }
    }
}

fn scale(heads: ChipHeads) -> f32 {
    (heads.head_dim as f32).sqrt().recip()
}

fn paged<'a, T>(
    q: &'a T,
    cache: &'a KvCache<T>,
    layer: usize,
    step: &'a Step<T>,
) -> PagedAttention<'a, T> {
    let [k_cache, v_cache] = &cache.layers[layer];
    let (page_table, positions) = (&step.page_table, &step.positions);
    PagedAttention { q, k_cache, v_cache, page_table, positions }
}
