//! `config.json` of a Hugging Face directory.
//!
//! The file is data: nothing in it names code that would run. What a dense
//! Llama has not (biases, experts, quantized weights, other rotary scalings) is
//! refused by name, since ignoring it would give wrong answers.

use serde::Deserialize;

use super::{ConfigError, LlamaConfig, RopeScaling, required};

/// Of vision models, whose text is served.
const VISION_ARCHITECTURE: &str = "MllamaForConditionalGeneration";

/// Keys that matter here; the many others are about training or generation.
#[derive(Deserialize)]
struct ConfigJson {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: Option<usize>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeJson>,
    /// Where newer versions put `rope_theta` and `rope_scaling` together.
    rope_parameters: Option<RopeJson>,
    max_position_embeddings: Option<usize>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
    partial_rotary_factor: Option<f64>,
    quantization_config: Option<serde_json::Value>,
    /// The text of a vision model.
    text_config: Option<Box<Self>>,
    /// Its layers that look at images.
    cross_attention_layers: Option<Vec<usize>>,
}

/// What `config.json` says.
#[derive(Debug)]
pub(crate) struct HfConfig {
    /// Of the text model.
    pub(crate) config: LlamaConfig,
    /// Numbers of a vision model's layers that text passes by, ascending, among
    /// all layers; empty for a text model.
    pub(crate) cross_attention_layers: Vec<usize>,
}

#[derive(Deserialize)]
struct RopeJson {
    rope_type: Option<String>,
    /// The older spelling of `rope_type`.
    #[serde(rename = "type")]
    kind: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
}

/// Reads and validates `config.json`.
pub(crate) fn read(json: &[u8]) -> Result<HfConfig, ConfigError> {
    let raw: ConfigJson =
        serde_json::from_slice(json).map_err(|error| ConfigError::Malformed(error.to_string()))?;
    if !raw.architectures.iter().flatten().any(|name| name == VISION_ARCHITECTURE) {
        raw.refuse_what_is_not_llama()?;
        return Ok(HfConfig { config: raw.config(0)?, cross_attention_layers: Vec::new() });
    }
    let mut text = *required("text_config", raw.text_config)?;
    text.architectures = None;
    // Quantization is stated for the whole.
    text.quantization_config = text.quantization_config.or(raw.quantization_config);
    text.refuse_what_is_not("mllama_text_model")?;
    let layers = text.cross_attention_layers.take().filter(|layers| !layers.is_empty());
    let layers = required("cross_attention_layers", layers)?;
    let num_layers = required("num_hidden_layers", text.num_hidden_layers)?;
    let requirement = if layers.iter().any(|&layer| layer >= num_layers) {
        format!("must be below {num_layers} layers")
    } else if !layers.is_sorted_by(|a, b| a < b) {
        "must be ascending".to_owned()
    } else {
        let config = text.config(layers.len())?;
        return Ok(HfConfig { config, cross_attention_layers: layers });
    };
    Err(ConfigError::invalid("cross_attention_layers", format!("{layers:?}"), requirement))
}

impl ConfigJson {
    /// The model without so many of its layers.
    fn config(&self, num_cross_attention_layers: usize) -> Result<LlamaConfig, ConfigError> {
        let hidden_size = required("hidden_size", self.hidden_size)?;
        let num_attention_heads = required("num_attention_heads", self.num_attention_heads)?;
        let head_dim = match self.head_dim {
            Some(head_dim) => head_dim,
            None if num_attention_heads > 0 && hidden_size.is_multiple_of(num_attention_heads) => {
                hidden_size / num_attention_heads
            }
            None => {
                let requirement = format!("must be a multiple of {num_attention_heads} heads");
                return Err(ConfigError::invalid("hidden_size", hidden_size, requirement));
            }
        };
        // Absent keys have the defaults of Hugging Face's LlamaConfig.
        let nested_theta = self.rope_parameters.as_ref().and_then(|rope| rope.rope_theta);
        let rope = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let config = LlamaConfig {
            hidden_size,
            intermediate_size: required("intermediate_size", self.intermediate_size)?,
            num_hidden_layers: required("num_hidden_layers", self.num_hidden_layers)?
                .saturating_sub(num_cross_attention_layers),
            num_attention_heads,
            num_key_value_heads: self.num_key_value_heads.unwrap_or(num_attention_heads),
            head_dim,
            vocab_size: required("vocab_size", self.vocab_size)?,
            rms_norm_eps: self.rms_norm_eps.unwrap_or(1e-6) as f32,
            rope_theta: nested_theta.or(self.rope_theta).unwrap_or(10_000.0) as f32,
            rope_scaling: rope.map_or(Ok(None), RopeJson::scaling)?,
            max_position_embeddings: self.max_position_embeddings.unwrap_or(2048),
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(false),
            num_cross_attention_layers,
        };
        config.validate()?;
        Ok(config)
    }

    fn refuse_what_is_not_llama(&self) -> Result<(), ConfigError> {
        self.refuse_what_is_not("llama")
    }

    fn refuse_what_is_not(&self, model_type: &str) -> Result<(), ConfigError> {
        match &self.architectures {
            Some(names) if names.iter().any(|name| name == "LlamaForCausalLM") => {}
            Some(names) => {
                let names = names.join(", ");
                let supported = "LlamaForCausalLM or MllamaForConditionalGeneration";
                return Err(ConfigError::unsupported("architectures", names, supported));
            }
            None => {
                let found = required("architectures", self.model_type.as_deref())?;
                if found != model_type {
                    return Err(ConfigError::unsupported("model_type", found, model_type));
                }
            }
        }
        for (key, value) in [("attention_bias", self.attention_bias), ("mlp_bias", self.mlp_bias)] {
            if value == Some(true) {
                return Err(ConfigError::unsupported(key, "true", "projections have no bias"));
            }
        }
        if let Some(act) = self.hidden_act.as_deref().filter(|act| *act != "silu") {
            return Err(ConfigError::unsupported("hidden_act", act, "silu"));
        }
        if let Some(factor) = self.partial_rotary_factor.filter(|factor| *factor != 1.0) {
            let supported = "every channel of a head turns";
            return Err(ConfigError::unsupported("partial_rotary_factor", factor, supported));
        }
        if let Some(quantization) = &self.quantization_config {
            let method = quantization.get("quant_method").and_then(|method| method.as_str());
            let supported = "F32, F16 and BF16 weights, or a GGUF file";
            return Err(ConfigError::unsupported(
                "quantization_config",
                method.unwrap_or("present"),
                supported,
            ));
        }
        Ok(())
    }
}

impl RopeJson {
    fn scaling(&self) -> Result<Option<RopeScaling>, ConfigError> {
        match self.rope_type.as_deref().or(self.kind.as_deref()) {
            None if self.factor.is_some() => {
                Err(ConfigError::Missing { key: "rope_scaling.rope_type".to_owned() })
            }
            None | Some("default") => Ok(None),
            Some("llama3") => Ok(Some(RopeScaling {
                factor: required("rope_scaling.factor", self.factor)? as f32,
                low_freq_factor: required("rope_scaling.low_freq_factor", self.low_freq_factor)?
                    as f32,
                high_freq_factor: required("rope_scaling.high_freq_factor", self.high_freq_factor)?
                    as f32,
                original_max_position_embeddings: required(
                    "rope_scaling.original_max_position_embeddings",
                    self.original_max_position_embeddings,
                )?,
            })),
            Some(other) => {
                Err(ConfigError::unsupported("rope_scaling.rope_type", other, "default or llama3"))
            }
        }
    }
}
