//! Small random models, written as real checkpoints: for tests here and in
//! crates that serve a model (feature `testing`).
//!
//! One set of weights can be written as a Hugging Face directory, as a GGUF
//! file, and as a Meta directory; all must load to the same values.

pub mod family;
pub mod hollow;
mod meta;
pub mod seeded;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use crate::config::LlamaConfig;
use crate::names::WeightName;

/// GGUF's numbers for what is written here.
const GGUF_VERSION: u32 = 3;
const GGUF_U32: u32 = 4;
const GGUF_F32: u32 = 6;
const GGUF_STRING: u32 = 8;
const GGML_F32: u32 = 0;
const GGUF_ALIGNMENT: usize = 32;

/// A model with random weights that depend on the seed alone.
#[derive(Debug, Clone)]
pub struct TinyModel {
    config: LlamaConfig,
    /// Row-major, q and k rows interleaved.
    weights: BTreeMap<WeightName, Vec<f32>>,
}

/// Two layers of four heads over two KV heads: the smallest shape in which
/// every part of the graph does something, and which fits one or two chips in
/// every storage type.
pub fn config() -> LlamaConfig {
    LlamaConfig {
        hidden_size: 64,
        intermediate_size: 128,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 16,
        vocab_size: 256,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        max_position_embeddings: 512,
        tie_word_embeddings: false,
        num_cross_attention_layers: 0,
    }
}

impl TinyModel {
    /// Weights at the scale of a trained model's: projections keep the variance
    /// of their input.
    pub fn new(config: LlamaConfig, seed: u64) -> Self {
        let mut random = SplitMix64(seed);
        let weights = WeightName::stored(&config)
            .into_iter()
            .map(|name| {
                let [rows, cols] = name.shape(&config);
                let scale = (3.0 / cols as f32).sqrt();
                let values = (0..rows * cols).map(|_| match (rows, name) {
                    (1, _) => 1.0 + 0.2 * random.signed(),
                    (_, WeightName::EmbedTokens) => random.signed(),
                    _ => scale * random.signed(),
                });
                (name, values.collect())
            })
            .collect();
        Self { config, weights }
    }

    /// The same model with one weight all zeros.
    #[must_use]
    pub fn with_zeros(mut self, name: WeightName) -> Self {
        if let Some(values) = self.weights.get_mut(&name) {
            values.fill(0.0);
        }
        self
    }

    /// The model's shape.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Values of a weight, row-major; q and k rows in interleaved order.
    ///
    /// # Panics
    /// When the model has no such layer.
    pub fn weight(&self, name: WeightName) -> &[f32] {
        let name = match name {
            WeightName::LmHead if self.config.tie_word_embeddings => WeightName::EmbedTokens,
            name => name,
        };
        &self.weights[&name]
    }

    /// Writes `config.json` and `model.safetensors` (F32) to a directory.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_hugging_face(&self, directory: &Path) -> io::Result<()> {
        std::fs::create_dir_all(directory)?;
        std::fs::write(directory.join("config.json"), self.config_json().to_string())?;
        let names: Vec<_> = self.weights.keys().copied().collect();
        std::fs::write(directory.join("model.safetensors"), self.safetensors(&names)?)
    }

    /// As [`Self::write_hugging_face`], in `num_shards` files and an index.
    ///
    /// # Errors
    /// When a file cannot be written.
    ///
    /// # Panics
    /// When `num_shards` is 0.
    pub fn write_sharded(&self, directory: &Path, num_shards: usize) -> io::Result<()> {
        std::fs::create_dir_all(directory)?;
        std::fs::write(directory.join("config.json"), self.config_json().to_string())?;
        let names: Vec<_> = self.weights.keys().copied().collect();
        let mut weight_map = serde_json::Map::new();
        for (n, names) in names.chunks(names.len().div_ceil(num_shards)).enumerate() {
            let file = format!("model-{:05}-of-{num_shards:05}.safetensors", n + 1);
            std::fs::write(directory.join(&file), self.safetensors(names)?)?;
            weight_map.extend(names.iter().map(|name| (name.to_string(), json!(file))));
        }
        let index = json!({ "weight_map": weight_map });
        std::fs::write(directory.join("model.safetensors.index.json"), index.to_string())
    }

    /// Writes a GGUF file (F32), without a tokenizer.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_gguf(&self, path: &Path) -> io::Result<()> {
        std::fs::write(path, self.gguf(None))
    }

    /// As [`Self::write_gguf`], with Llama 3 rotary scaling as such files have
    /// it: divisors of the frequencies, `[head_dim / 2]`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_gguf_with_divisors(&self, path: &Path, divisors: &[f32]) -> io::Result<()> {
        std::fs::write(path, self.gguf(Some(divisors)))
    }

    /// What `config.json` holds.
    pub fn config_json(&self) -> serde_json::Value {
        config_json(&self.config)
    }

    fn safetensors(&self, names: &[WeightName]) -> io::Result<Vec<u8>> {
        let tensors: Vec<_> =
            names.iter().map(|&name| (name, bytes_of(&self.hugging_face_order(name)))).collect();
        let views = tensors
            .iter()
            .map(|(name, bytes)| {
                let shape = stored_shape(*name, &self.config);
                TensorView::new(Dtype::F32, shape, bytes).map(|view| (name.to_string(), view))
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(io::Error::other)?;
        safetensors::serialize(views, None).map_err(io::Error::other)
    }

    /// Rows of q and k half-split: first channels of a head's pairs, then
    /// second ones.
    fn hugging_face_order(&self, name: WeightName) -> Vec<f32> {
        let values = self.weight(name);
        if !name.is_rotated() {
            return values.to_vec();
        }
        let (cols, head_dim) = (self.config.hidden_size, self.config.head_dim);
        let mut reordered = Vec::with_capacity(values.len());
        for head in values.chunks(head_dim * cols) {
            for parity in [0, 1] {
                for pair in 0..head_dim / 2 {
                    let row = 2 * pair + parity;
                    reordered.extend_from_slice(&head[row * cols..(row + 1) * cols]);
                }
            }
        }
        reordered
    }

    fn gguf(&self, rope_divisors: Option<&[f32]>) -> Vec<u8> {
        let entries = self.gguf_metadata();
        let mut tensors: Vec<_> = self
            .weights
            .iter()
            .map(|(name, values)| (name.gguf(), stored_shape(*name, &self.config), &values[..]))
            .collect();
        if let Some(divisors) = rope_divisors {
            tensors.push(("rope_freqs.weight".to_owned(), vec![divisors.len()], divisors));
        }
        let mut file = gguf::MAGIC.to_vec();
        file.extend(GGUF_VERSION.to_le_bytes());
        file.extend((tensors.len() as u64).to_le_bytes());
        file.extend((entries.len() as u64).to_le_bytes());
        for (key, kind, value) in entries {
            push_string(&mut file, key);
            file.extend(kind.to_le_bytes());
            file.extend(value);
        }
        let mut data = Vec::new();
        for (name, shape, values) in tensors {
            push_string(&mut file, &name);
            file.extend((shape.len() as u32).to_le_bytes());
            for &size in shape.iter().rev() {
                file.extend((size as u64).to_le_bytes());
            }
            file.extend(GGML_F32.to_le_bytes());
            file.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes_of(values));
            data.resize(data.len().next_multiple_of(GGUF_ALIGNMENT), 0);
        }
        file.resize(file.len().next_multiple_of(GGUF_ALIGNMENT), 0);
        file.extend(data);
        file
    }

    fn gguf_metadata(&self) -> Vec<(&'static str, u32, Vec<u8>)> {
        let config = &self.config;
        let string = |key, value: &str| {
            let mut bytes = Vec::new();
            push_string(&mut bytes, value);
            (key, GGUF_STRING, bytes)
        };
        let int = |key, value: usize| (key, GGUF_U32, (value as u32).to_le_bytes().to_vec());
        let float = |key, value: f32| (key, GGUF_F32, value.to_le_bytes().to_vec());
        vec![
            string("general.architecture", "llama"),
            string("general.name", "tiny"),
            int("llama.block_count", config.num_hidden_layers),
            int("llama.embedding_length", config.hidden_size),
            int("llama.feed_forward_length", config.intermediate_size),
            int("llama.attention.head_count", config.num_attention_heads),
            int("llama.attention.head_count_kv", config.num_key_value_heads),
            int("llama.attention.key_length", config.head_dim),
            int("llama.attention.value_length", config.head_dim),
            float("llama.attention.layer_norm_rms_epsilon", config.rms_norm_eps),
            int("llama.rope.dimension_count", config.head_dim),
            float("llama.rope.freq_base", config.rope_theta),
            int("llama.context_length", config.max_position_embeddings),
            int("llama.vocab_size", config.vocab_size),
        ]
    }
}

/// A norm gain is stored as a vector.
/// What `config.json` holds of a model.
pub fn config_json(config: &LlamaConfig) -> serde_json::Value {
    let scaling = config.rope_scaling.map(|scaling| {
        json!({
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position_embeddings,
        })
    });
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": false,
        "mlp_bias": false,
    })
}

fn stored_shape(name: WeightName, config: &LlamaConfig) -> Vec<usize> {
    match name.shape(config) {
        [1, cols] => vec![cols],
        shape => shape.to_vec(),
    }
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn push_string(file: &mut Vec<u8>, string: &str) {
    file.extend((string.len() as u64).to_le_bytes());
    file.extend(string.as_bytes());
}

/// Steele, Lea and Flood's generator: three lines, and enough for weights.
struct SplitMix64(u64);

impl SplitMix64 {
    /// Uniform in −1 to 1.
    fn signed(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        // 24 bits: what an f32 holds exactly.
        (bits >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    }
}
