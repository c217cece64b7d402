//! Paged keys and values: every chip stores its own heads of every layer.

use kernels::KvCacheStore;
use mesh::{AttentionShape, DType, KvCacheShape, MeshError};

use crate::chip::Chips;
use crate::weights::format_of;

/// Paged keys and values of all layers on all chips.
pub struct KvCache {
    layers: Vec<LayerCache>,
}

/// One layer's keys and values, chip by chip.
pub(crate) struct LayerCache {
    pub(crate) heads: ChipHeads,
    /// In blocks and positions.
    pub(crate) num_blocks: usize,
    pub(crate) block_size: usize,
    /// In rank order.
    pub(crate) stores: Vec<KvCacheStore>,
}

/// The attention heads of one chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChipHeads {
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl ChipHeads {
    pub(crate) fn q_width(self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Of K, and of V.
    pub(crate) fn kv_width(self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Of `[q | k | v]`.
    pub(crate) fn qkv_width(self) -> usize {
        self.q_width() + 2 * self.kv_width()
    }

    fn new(chips: Chips, shape: AttentionShape) -> Result<Self, MeshError> {
        let AttentionShape { num_attention_heads, num_key_value_heads, head_dim } = shape;
        if num_key_value_heads == 0 || !num_attention_heads.is_multiple_of(num_key_value_heads) {
            return Err(MeshError::DoesNotFit(format!(
                "attention has {num_attention_heads} query heads, which do not divide by \
                 {num_key_value_heads} key and value heads"
            )));
        }
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(MeshError::DoesNotFit(format!("head_dim is {head_dim}, must be even")));
        }
        Ok(Self {
            num_heads: chips.share("attention", "query heads", num_attention_heads)?,
            num_kv_heads: chips.share("attention", "key and value heads", num_key_value_heads)?,
            head_dim,
        })
    }
}

impl KvCache {
    pub(crate) fn new(
        chips: Chips,
        shape: KvCacheShape,
        attention: AttentionShape,
    ) -> Result<Self, MeshError> {
        let heads = ChipHeads::new(chips, attention)?;
        if shape.dtype == DType::Bfp4 {
            return Err(MeshError::DoesNotFit(
                "KV cache dtype is bfp4, must be f32, bf16 or bfp8".into(),
            ));
        }
        if shape.num_blocks == 0 || shape.block_size == 0 {
            return Err(MeshError::DoesNotFit(format!(
                "KV cache has {} blocks of {} positions, needs at least one of each",
                shape.num_blocks, shape.block_size
            )));
        }
        check_memory(&shape, &attention)?;
        let new_layer = || LayerCache {
            heads,
            num_blocks: shape.num_blocks,
            block_size: shape.block_size,
            stores: chips
                .ranks()
                .map(|_| {
                    KvCacheStore::new(
                        format_of(shape.dtype),
                        shape.num_blocks,
                        shape.block_size,
                        heads.num_kv_heads,
                        heads.head_dim,
                    )
                })
                .collect(),
        };
        Ok(Self { layers: (0..shape.num_layers).map(|_| new_layer()).collect() })
    }

    /// # Panics
    /// When there is no such layer: a bug in the graph.
    pub(crate) fn layer_mut(&mut self, layer: usize) -> &mut LayerCache {
        let num_layers = self.layers.len();
        self.layers
            .get_mut(layer)
            .unwrap_or_else(|| panic!("layer is {layer}, the cache has {num_layers}"))
    }

    /// Memory taken, all chips together.
    pub fn bytes(&self) -> usize {
        self.layers.iter().flat_map(|layer| &layer.stores).map(KvCacheStore::bytes).sum()
    }
}

impl std::fmt::Debug for KvCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvCache")
            .field("num_layers", &self.layers.len())
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

/// Asks the allocator for the whole cache before the first block of it is
/// made: a size that this machine can never give is an error, not an abort.
fn check_memory(shape: &KvCacheShape, attention: &AttentionShape) -> Result<(), MeshError> {
    let num_values = [
        2, // K and V
        shape.num_layers,
        shape.num_blocks,
        // As the kernels keep them: in squares of 16 tokens and 16 channels.
        shape.block_size.div_ceil(16),
        attention.num_key_value_heads,
        attention.head_dim.div_ceil(16),
        16 * 16,
    ]
    .into_iter()
    .try_fold(1usize, usize::checked_mul);
    let bytes = num_values.map(|n| n as f64 * shape.dtype.bits_per_value() / 8.0);
    let fits = bytes.is_some_and(|bytes| {
        bytes < isize::MAX as f64 && Vec::<u8>::new().try_reserve_exact(bytes as usize).is_ok()
    });
    if fits {
        return Ok(());
    }
    let size = bytes.map_or_else(
        || "more than the address space".into(),
        |bytes| format!("{:.1} GiB", bytes / f64::from(1 << 30)),
    );
    Err(MeshError::DoesNotFit(format!(
        "KV cache of {} layers, {} blocks of {} positions in {} takes {size}, which this machine \
         does not have",
        shape.num_layers, shape.num_blocks, shape.block_size, shape.dtype
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATTENTION: AttentionShape =
        AttentionShape { num_attention_heads: 9, num_key_value_heads: 3, head_dim: 64 };
    const CACHE: KvCacheShape =
        KvCacheShape { num_layers: 2, num_blocks: 4, block_size: 16, dtype: DType::Bf16 };

    fn refusal(num_chips: usize, cache: KvCacheShape, attention: AttentionShape) -> String {
        let chips = Chips::new(num_chips).unwrap();
        match KvCache::new(chips, cache, attention) {
            Err(MeshError::DoesNotFit(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_chip_holds_its_own_heads() {
        let cache = KvCache::new(Chips::new(3).unwrap(), CACHE, ATTENTION).unwrap();
        let heads = ChipHeads { num_heads: 3, num_kv_heads: 1, head_dim: 64 };
        assert!(cache.layers.iter().all(|layer| layer.heads == heads && layer.stores.len() == 3));
        // 2 layers, K and V, 64 positions, 3 heads of 64 values in 2 bytes.
        assert!(cache.bytes() >= 2 * 2 * 64 * 3 * 64 * 2, "{}", cache.bytes());
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers() {
        assert!(refusal(2, CACHE, ATTENTION).contains("9 query heads"));
        let few = AttentionShape { num_attention_heads: 8, num_key_value_heads: 2, ..ATTENTION };
        assert!(refusal(4, CACHE, few).contains("2 key and value heads"));
        let odd = AttentionShape { num_key_value_heads: 2, ..ATTENTION };
        assert!(refusal(1, CACHE, odd).contains("9 query heads"));
        let bfp4 = KvCacheShape { dtype: DType::Bfp4, ..CACHE };
        assert!(refusal(1, bfp4, ATTENTION).contains("bfp4"));
        for num_blocks in [1 << 40, usize::MAX / 2] {
            let huge = KvCacheShape { num_blocks, ..CACHE };
            assert!(refusal(1, huge, ATTENTION).contains("does not have"), "{num_blocks}");
        }
    }
}
