//! The model's shape in GGUF metadata (`general.architecture` = `llama`).

use gguf::{Gguf, GgufError, Metadata};

use super::{ConfigError, LlamaConfig};

/// Reads and validates the metadata. Rotary scaling of Llama 3 is not there but
/// in the tensor `rope_freqs.weight`, which the checkpoint reads.
pub(crate) fn parse(gguf: &Gguf<'_>) -> Result<LlamaConfig, ConfigError> {
    let metadata = gguf.metadata();
    let architecture = metadata.str("general.architecture")?;
    if architecture != "llama" {
        return Err(ConfigError::unsupported("general.architecture", architecture, "llama"));
    }
    refuse_what_is_not_llama(metadata)?;
    let hidden_size = size(metadata, "llama.embedding_length")?;
    let num_attention_heads = size(metadata, "llama.attention.head_count")?;
    let config = LlamaConfig {
        hidden_size,
        intermediate_size: size(metadata, "llama.feed_forward_length")?,
        num_hidden_layers: size(metadata, "llama.block_count")?,
        num_attention_heads,
        num_key_value_heads: optional_size(metadata, "llama.attention.head_count_kv")?
            .unwrap_or(num_attention_heads),
        head_dim: head_dim(metadata, hidden_size, num_attention_heads)?,
        vocab_size: vocab_size(gguf)?,
        rms_norm_eps: metadata.f32("llama.attention.layer_norm_rms_epsilon")?,
        rope_theta: metadata.optional_f32("llama.rope.freq_base")?.unwrap_or(10_000.0),
        rope_scaling: None,
        max_position_embeddings: size(metadata, "llama.context_length")?,
        tie_word_embeddings: !gguf.tensor_names().any(|name| name == "output.weight"),
        num_cross_attention_layers: 0,
    };
    config.validate()?;
    Ok(config)
}

fn size(metadata: &Metadata<'_>, key: &str) -> Result<usize, ConfigError> {
    Ok(metadata.u32(key)? as usize)
}

fn optional_size(metadata: &Metadata<'_>, key: &str) -> Result<Option<usize>, ConfigError> {
    Ok(metadata.optional_u32(key)?.map(|value| value as usize))
}

/// Stated, or what the heads make of the hidden size; every channel turns.
fn head_dim(
    metadata: &Metadata<'_>,
    hidden_size: usize,
    num_heads: usize,
) -> Result<usize, ConfigError> {
    let head_dim = match optional_size(metadata, "llama.attention.key_length")? {
        Some(head_dim) => head_dim,
        None if num_heads > 0 && hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
        None => {
            let requirement = format!("must be a multiple of {num_heads} heads");
            return Err(ConfigError::invalid("llama.embedding_length", hidden_size, requirement));
        }
    };
    for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
        if let Some(value) = optional_size(metadata, key)?.filter(|&value| value != head_dim) {
            let requirement = format!("must be the head's {head_dim} channels");
            return Err(ConfigError::invalid(key, value, requirement));
        }
    }
    Ok(head_dim)
}

/// Stated, or the rows of the embedding table, whose count every use is
/// checked against.
fn vocab_size(gguf: &Gguf<'_>) -> Result<usize, ConfigError> {
    if let Some(vocab_size) = optional_size(gguf.metadata(), "llama.vocab_size")? {
        return Ok(vocab_size);
    }
    let embedding = gguf.tensor("token_embd.weight")?;
    Ok(usize::try_from(embedding.dims().last().copied().unwrap_or(0)).unwrap_or(usize::MAX))
}

fn refuse_what_is_not_llama(metadata: &Metadata<'_>) -> Result<(), ConfigError> {
    if let Some(experts) = metadata.optional_u32("llama.expert_count")?.filter(|&n| n > 0) {
        return Err(ConfigError::unsupported("llama.expert_count", experts, "a dense MLP"));
    }
    if let Some(kind) = metadata.optional_str("llama.rope.scaling.type")?.filter(|k| *k != "none") {
        let supported = "none, or Llama 3's in the tensor rope_freqs.weight";
        return Err(ConfigError::unsupported("llama.rope.scaling.type", kind, supported));
    }
    // The older way to say linear scaling.
    if let Some(scale) = metadata.optional_f32("llama.rope.scale_linear")?.filter(|&s| s != 1.0) {
        return Err(ConfigError::unsupported("llama.rope.scale_linear", scale, "1"));
    }
    Ok(())
}

impl From<GgufError> for ConfigError {
    fn from(error: GgufError) -> Self {
        match error {
            GgufError::MissingKey { key } => Self::Missing { key },
            GgufError::WrongType { key, found, expected } => Self::Invalid {
                key,
                value: found.to_string(),
                requirement: format!("must be {expected}"),
            },
            other => Self::Malformed(other.to_string()),
        }
    }
}
