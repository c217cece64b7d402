//! The published Llama 3 models as they describe themselves, without weights.

use serde_json::{Value, json};

use crate::config::{Llama3Size, LlamaConfig, RopeScaling};

/// The shape that the published model has.
pub fn config(size: Llama3Size) -> LlamaConfig {
    let (hidden_size, num_hidden_layers, num_attention_heads, intermediate_size) = match size {
        Llama3Size::B1 => (2048, 16, 32, 8192),
        Llama3Size::B3 => (3072, 28, 24, 8192),
        Llama3Size::B8 | Llama3Size::B11 => (4096, 32, 32, 14_336),
        Llama3Size::B70 => (8192, 80, 64, 28_672),
    };
    let vision = matches!(size, Llama3Size::B11);
    let small = matches!(size, Llama3Size::B1 | Llama3Size::B3);
    LlamaConfig {
        hidden_size,
        intermediate_size,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads: 8,
        head_dim: hidden_size / num_attention_heads,
        vocab_size: 128_256,
        rms_norm_eps: 1e-5,
        rope_theta: 500_000.0,
        rope_scaling: Some(RopeScaling {
            factor: if small { 32.0 } else { 8.0 },
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        }),
        max_position_embeddings: 131_072,
        tie_word_embeddings: small,
        num_cross_attention_layers: if vision { 8 } else { 0 },
    }
}

/// What Meta's `params.json` holds of it; 11B's has the vision keys besides.
pub fn params_json(size: Llama3Size) -> Value {
    let (dim, layers, heads, multiplier, multiple) = match size {
        Llama3Size::B1 => (2048, 16, 32, 1.5, 256),
        Llama3Size::B3 => (3072, 28, 24, 1.0, 256),
        Llama3Size::B8 | Llama3Size::B11 => (4096, 32, 32, 1.3, 1024),
        Llama3Size::B70 => (8192, 80, 64, 1.3, 4096),
    };
    let mut params = json!({
        "dim": dim, "n_layers": layers, "n_heads": heads, "n_kv_heads": 8,
        "vocab_size": 128_256, "ffn_dim_multiplier": multiplier, "multiple_of": multiple,
        "norm_eps": 1e-5, "rope_theta": 500_000.0, "use_scaled_rope": true,
    });
    if size == Llama3Size::B11 {
        params["vision_chunk_size"] = json!(560);
        params["vision_max_num_chunks"] = json!(4);
        params["vision_num_cross_attention_layers"] = json!(8);
    }
    params
}
