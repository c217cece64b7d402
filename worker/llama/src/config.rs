//! The shape of a Llama model, in Hugging Face's words.

pub(crate) mod gguf;
pub(crate) mod hf;
pub(crate) mod meta;

/// Upper limits that no dense Llama comes near: a configuration from elsewhere
/// must not make the worker allocate without bound.
const MAX_HIDDEN_SIZE: usize = 1 << 16;
const MAX_INTERMEDIATE_SIZE: usize = 1 << 20;
const MAX_LAYERS: usize = 1024;
const MAX_HEADS: usize = 1024;
const MAX_HEAD_DIM: usize = 1024;
const MAX_VOCAB_SIZE: usize = 1 << 21;
const MAX_POSITIONS: usize = 1 << 24;

/// A dense model of the Llama architecture.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Channels of the residual stream.
    pub hidden_size: usize,
    /// Channels between the gate/up and the down projection.
    pub intermediate_size: usize,
    /// Transformer blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Channels of a head, even.
    pub head_dim: usize,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Llama 3.1's stretching of the low frequencies, where the checkpoint
    /// states it by its parameters.
    pub rope_scaling: Option<RopeScaling>,
    /// Positions that the model was made for.
    pub max_position_embeddings: usize,
    /// The LM head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Further layers, in which a vision model's text looks at images. They are
    /// not among `num_hidden_layers`: text alone passes them by. 0 in a model
    /// of text.
    pub num_cross_attention_layers: usize,
}

/// Parameters of Llama 3 rotary scaling.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeScaling {
    /// Wavelengths beyond the low-frequency bound grow by this.
    pub factor: f32,
    /// Low bound: `original_max_position_embeddings / low_freq_factor`.
    pub low_freq_factor: f32,
    /// High bound: `original_max_position_embeddings / high_freq_factor`.
    pub high_freq_factor: f32,
    /// Context that the frequencies were trained on, in tokens.
    pub original_max_position_embeddings: usize,
}

/// The models of the Llama 3 family that Tenstorrent's demo covers; `Display`
/// is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Llama3Size {
    /// Llama 3.2 1B.
    B1,
    /// Llama 3.2 3B.
    B3,
    /// Llama 3.1 8B.
    B8,
    /// Llama 3.2 11B Vision, of which the text layers are those of 8B.
    B11,
    /// Llama 3.1 70B.
    B70,
}

impl Llama3Size {
    /// The family, smallest first.
    pub const ALL: [Self; 5] = [Self::B1, Self::B3, Self::B8, Self::B11, Self::B70];
}

impl std::fmt::Display for Llama3Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::B1 => "Llama 3.2 1B",
            Self::B3 => "Llama 3.2 3B",
            Self::B8 => "Llama 3.1 8B",
            Self::B11 => "Llama 3.2 11B",
            Self::B70 => "Llama 3.1 70B",
        })
    }
}

/// A configuration that cannot be served, and why.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A key is absent.
    #[error("{key} is missing")]
    Missing {
        /// The key, as the source spells it.
        key: String,
    },
    /// A value is out of range or does not fit another one.
    #[error("{key} is {value}, {requirement}")]
    Invalid {
        /// The key.
        key: String,
        /// What was found.
        value: String,
        /// What it has to be.
        requirement: String,
    },
    /// The model uses something that a dense Llama has not.
    #[error("{key} is {value}, which is not supported: {supported}")]
    Unsupported {
        /// The key.
        key: String,
        /// What was found.
        value: String,
        /// What would be accepted.
        supported: String,
    },
    /// The file is not what it claims to be.
    #[error("not readable as a model configuration: {0}")]
    Malformed(String),
}

impl ConfigError {
    pub(crate) fn invalid(key: &str, value: impl ToString, requirement: impl Into<String>) -> Self {
        let (value, requirement) = (value.to_string(), requirement.into());
        Self::Invalid { key: key.to_owned(), value, requirement }
    }

    pub(crate) fn unsupported(key: &str, value: impl ToString, supported: &str) -> Self {
        let (value, supported) = (value.to_string(), supported.to_owned());
        Self::Unsupported { key: key.to_owned(), value, supported }
    }
}

/// The value of a key that must be there.
fn required<T>(key: &str, value: Option<T>) -> Result<T, ConfigError> {
    value.ok_or_else(|| ConfigError::Missing { key: key.to_owned() })
}

impl LlamaConfig {
    /// Checks that sizes are positive and sane, and fit each other.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the first value that does not.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let limits = [
            ("hidden_size", self.hidden_size, MAX_HIDDEN_SIZE),
            ("intermediate_size", self.intermediate_size, MAX_INTERMEDIATE_SIZE),
            ("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS),
            ("num_attention_heads", self.num_attention_heads, MAX_HEADS),
            ("num_key_value_heads", self.num_key_value_heads, MAX_HEADS),
            ("head_dim", self.head_dim, MAX_HEAD_DIM),
            ("vocab_size", self.vocab_size, MAX_VOCAB_SIZE),
            ("max_position_embeddings", self.max_position_embeddings, MAX_POSITIONS),
        ];
        for (key, value, max) in limits {
            if value == 0 || value > max {
                return Err(ConfigError::invalid(key, value, format!("must be 1 to {max}")));
            }
        }
        if self.num_cross_attention_layers > MAX_LAYERS {
            let requirement = format!("must be at most {MAX_LAYERS}");
            let key = "num_cross_attention_layers";
            return Err(ConfigError::invalid(key, self.num_cross_attention_layers, requirement));
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let requirement = format!("must divide {} attention heads", self.num_attention_heads);
            return Err(ConfigError::invalid(
                "num_key_value_heads",
                self.num_key_value_heads,
                requirement,
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(ConfigError::invalid("head_dim", self.head_dim, "must be even"));
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps <= 0.1) {
            return Err(ConfigError::invalid(
                "rms_norm_eps",
                self.rms_norm_eps,
                "must be above 0 and at most 0.1",
            ));
        }
        if !(self.rope_theta >= 1.0 && self.rope_theta <= 1e12) {
            return Err(ConfigError::invalid("rope_theta", self.rope_theta, "must be 1 to 1e12"));
        }
        self.rope_scaling.as_ref().map_or(Ok(()), RopeScaling::validate)
    }

    /// Which Llama 3 this is, recognised by its shapes.
    pub fn llama3_size(&self) -> Option<Llama3Size> {
        let shape = (
            self.hidden_size,
            self.num_hidden_layers,
            self.num_attention_heads,
            self.intermediate_size,
        );
        let size = match shape {
            (2048, 16, 32, 8192) => Llama3Size::B1,
            (3072, 28, 24, 8192) => Llama3Size::B3,
            (4096, 32, 32, 14336) if self.num_cross_attention_layers > 0 => Llama3Size::B11,
            (4096, 32, 32, 14336) => Llama3Size::B8,
            (8192, 80, 64, 28672) => Llama3Size::B70,
            _ => return None,
        };
        (self.num_key_value_heads == 8 && self.vocab_size == 128_256).then_some(size)
    }

    /// Channels of the q projection's output.
    pub fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Channels of the k and of the v projection's output.
    pub fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}

impl RopeScaling {
    fn validate(&self) -> Result<(), ConfigError> {
        if !(self.factor >= 1.0 && self.factor <= 1e6) {
            return Err(ConfigError::invalid(
                "rope_scaling.factor",
                self.factor,
                "must be 1 to 1e6",
            ));
        }
        if !(self.low_freq_factor > 0.0 && self.low_freq_factor <= 1e6) {
            return Err(ConfigError::invalid(
                "rope_scaling.low_freq_factor",
                self.low_freq_factor,
                "must be above 0 and at most 1e6",
            ));
        }
        if !(self.high_freq_factor > self.low_freq_factor && self.high_freq_factor <= 1e6) {
            let requirement =
                format!("must be above low_freq_factor {} and at most 1e6", self.low_freq_factor);
            return Err(ConfigError::invalid(
                "rope_scaling.high_freq_factor",
                self.high_freq_factor,
                requirement,
            ));
        }
        let original = self.original_max_position_embeddings;
        if original == 0 || original > MAX_POSITIONS {
            return Err(ConfigError::invalid(
                "rope_scaling.original_max_position_embeddings",
                original,
                format!("must be 1 to {MAX_POSITIONS}"),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests;
