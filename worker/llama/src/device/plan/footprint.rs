//! Each weight and cache of a plan, and what it takes.

use mesh::DType;

use super::DevicePlan;
use crate::device::{Device, Layout};
use crate::shard::Split;

/// Most columns of the LM head that one multiplication may have on a chip.
const LM_HEAD_COLUMNS: usize = 32_064;

/// One weight on the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightFootprint {
    /// As Meta names it; `N` stands for every layer. `wqkv` is wq, wk and wv in
    /// one.
    pub name: &'static str,
    /// How it is cut.
    pub split: Split,
    /// Of the whole weight: `[in, out]`; of the embedding, `[vocab, hidden]`.
    pub shape: [usize; 2],
    /// On each chip.
    pub per_chip: [usize; 2],
    /// Storage type.
    pub dtype: DType,
    /// How it lies in the chip's memory.
    pub layout: Layout,
    /// Pieces that its output is computed in, one after another (the LM head).
    pub slices: usize,
    /// How many such weights there are.
    pub count: usize,
    /// On one chip, of one of them, with padding.
    pub bytes: u64,
    /// True for the matrices that every decode step reads as a whole.
    pub read_each_step: bool,
}

/// Keys, or values, of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheFootprint {
    /// `N` stands for every layer.
    pub name: &'static str,
    /// `[blocks, KV heads, block size, head_dim]` over all chips.
    pub shape: [usize; 4],
    /// On each chip, which has its own KV heads.
    pub per_chip: [usize; 4],
    /// Storage type.
    pub dtype: DType,
    /// Layers.
    pub count: usize,
    /// On one chip, of one layer, with padding.
    pub bytes: u64,
}

/// Every weight, in the order of use.
pub(super) fn weights(plan: &DevicePlan) -> Vec<WeightFootprint> {
    let (config, policy) = (&plan.config, &plan.policy);
    let (hidden, ffn, vocab) = (config.hidden_size, config.intermediate_size, config.vocab_size);
    let qkv = config.query_size() + 2 * config.key_value_size();
    let layers = config.num_hidden_layers;
    let gain = |name, count| {
        let dtype = plan.gain_dtype();
        Entry { name, split: Split::Replicated, shape: [1, hidden], dtype, count }
    };
    let matrix = |name, split, shape, dtype| Entry { name, split, shape, dtype, count: layers };
    let table = [vocab, hidden];
    let entries = [
        Entry { count: 1, ..matrix("tok_embeddings", Split::Input, table, policy.embedding) },
        gain("layers.N.attention_norm", layers),
        matrix("layers.N.attention.wqkv", Split::Output, [hidden, qkv], policy.attention),
        matrix(
            "layers.N.attention.wo",
            plan.output_projection,
            [config.query_size(), hidden],
            policy.attention,
        ),
        gain("layers.N.ffn_norm", layers),
        matrix("layers.N.feed_forward.w1", Split::Output, [hidden, ffn], policy.w1_w3),
        matrix("layers.N.feed_forward.w3", Split::Output, [hidden, ffn], policy.w1_w3),
        matrix("layers.N.feed_forward.w2", Split::Input, [ffn, hidden], policy.w2),
        gain("norm", 1),
        Entry { count: 1, ..matrix("output", Split::Output, [hidden, vocab], policy.lm_head) },
        rope(plan),
    ];
    entries.into_iter().map(|entry| entry.place(plan.device)).collect()
}

/// Cosines and sines: for `ttnn` twice the positions, and every channel; on the
/// CPU one pair of each.
fn rope(plan: &DevicePlan) -> Entry {
    let (positions, head_dim) = (plan.workload.max_model_len, plan.config.head_dim);
    let shape =
        if plan.device.is_card() { [2 * positions, head_dim] } else { [positions, head_dim / 2] };
    let (split, dtype) = (Split::Replicated, plan.gain_dtype());
    Entry { name: "rope (cos, sin)", split, shape, dtype, count: 2 }
}

/// A weight before it has a place.
struct Entry {
    name: &'static str,
    split: Split,
    shape: [usize; 2],
    dtype: DType,
    count: usize,
}

impl Entry {
    fn place(self, device: Device) -> WeightFootprint {
        let Self { name, split, shape, dtype, count } = self;
        let (chips, is_table) = (device.num_chips(), name == "tok_embeddings");
        let [rows, cols] = shape;
        let per_chip = match split {
            Split::Replicated => shape,
            Split::Input if is_table => [rows, cols / chips],
            Split::Input => [rows / chips, cols],
            Split::Output => [rows, cols / chips],
        };
        let is_matrix = !is_table && split != Split::Replicated;
        let is_head = name == "output";
        let layout = match (device.is_card(), is_matrix) {
            (true, true) if name.ends_with("wo") && split == Split::Output => Layout::Interleaved,
            (true, true) => Layout::WidthSharded,
            (false, true) => Layout::Squares,
            (false, false) if is_table => Layout::Squares,
            (_, false) => Layout::RowMajor,
        };
        let slices = match device.is_card() && is_head {
            true => per_chip[1].div_ceil(LM_HEAD_COLUMNS),
            false => 1,
        };
        let slice = [per_chip[0], per_chip[1].div_ceil(slices)];
        WeightFootprint {
            name,
            split,
            shape,
            per_chip,
            dtype,
            layout,
            slices,
            count,
            bytes: slices as u64 * layout.bytes(slice, dtype),
            read_each_step: is_matrix,
        }
    }
}

/// K and V.
pub(super) fn caches(plan: &DevicePlan) -> Vec<CacheFootprint> {
    let (config, workload) = (&plan.config, &plan.workload);
    let block_size = workload.kv_block_size.max(1);
    let blocks = workload.kv_tokens.div_ceil(block_size);
    let kv_heads = config.num_key_value_heads;
    let of_chip = kv_heads / plan.device.num_chips();
    let layout = if plan.device.is_card() { Layout::Interleaved } else { Layout::Squares };
    let dtype = plan.policy.kv_cache;
    let page = layout.bytes([block_size, config.head_dim], dtype);
    ["layers.N.cache_k", "layers.N.cache_v"]
        .map(|name| CacheFootprint {
            name,
            shape: [blocks, kv_heads, block_size, config.head_dim],
            per_chip: [blocks, of_chip, block_size, config.head_dim],
            dtype,
            count: config.num_hidden_layers,
            bytes: (blocks * of_chip) as u64 * page,
        })
        .into()
}
