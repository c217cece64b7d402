//! `params.json` of a Meta directory.
//!
//! The file states neither the MLP's width, nor whether the LM head is tied,
//! nor the factor of the rotary scaling. The first follows by a rule, the
//! second from the tensors, the third from which model it is.

use serde::Deserialize;
use serde_json::Value as Json;

use super::{ConfigError, Llama3Size, LlamaConfig, MAX_HIDDEN_SIZE, RopeScaling, required};

const MAX_MULTIPLE: usize = 1 << 20;
const MAX_MULTIPLIER: f64 = 64.0;
/// Context of Llama 3 before its frequencies were scaled.
const ORIGINAL_POSITIONS: usize = 8192;
const SCALED_POSITIONS: usize = 131_072;

/// Keys that matter here, as Meta spells them.
#[derive(Debug, Deserialize)]
struct ParamsJson {
    dim: Option<usize>,
    n_layers: Option<usize>,
    n_heads: Option<usize>,
    n_kv_heads: Option<usize>,
    /// −1 where it is the tokenizer's.
    vocab_size: Option<i64>,
    multiple_of: Option<usize>,
    ffn_dim_multiplier: Option<f64>,
    norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    use_scaled_rope: Option<bool>,
    vision_chunk_size: Option<i64>,
    vision_num_cross_attention_layers: Option<i64>,
    /// Where older files have the number of cross-attention layers.
    vision_model: Option<Json>,
    quantization_args: Option<Json>,
    lora_args: Option<Json>,
    moe_args: Option<Json>,
}

/// What `params.json` states; the rest is in the tensors.
#[derive(Debug)]
pub(crate) struct Params {
    json: ParamsJson,
    num_cross_attention_layers: usize,
}

/// What the tensors of a Meta checkpoint tell of its configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored {
    /// Rows of the embedding table.
    pub(crate) embedding_rows: usize,
    /// There is no LM head beside it.
    pub(crate) tied: bool,
}

impl Params {
    /// Reads the file's content.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let malformed = |error: serde_json::Error| ConfigError::Malformed(error.to_string());
        let mut json: Json = serde_json::from_slice(json).map_err(malformed)?;
        // Older files wrap everything.
        if let Some(inner) = json.get_mut("model").filter(|inner| inner.is_object()) {
            json = inner.take();
        }
        let json: ParamsJson = serde_json::from_value(json).map_err(malformed)?;
        for (key, value) in [
            ("quantization_args", &json.quantization_args),
            ("lora_args", &json.lora_args),
            ("moe_args", &json.moe_args),
        ] {
            if value.is_some() {
                let supported = "dense models in BF16, F16 or F32; use the unquantized version";
                return Err(ConfigError::unsupported(key, "present", supported));
            }
        }
        let num_cross_attention_layers = json.num_cross_attention_layers()?;
        Ok(Self { json, num_cross_attention_layers })
    }

    /// True when the text is a part of a model that also sees images.
    pub(crate) fn has_vision(&self) -> bool {
        self.num_cross_attention_layers > 0
    }

    /// The whole configuration, validated.
    pub(crate) fn config(&self, stored: Stored) -> Result<LlamaConfig, ConfigError> {
        let json = &self.json;
        let hidden_size = required("dim", json.dim)?;
        let num_attention_heads = required("n_heads", json.n_heads)?;
        if num_attention_heads == 0 || !hidden_size.is_multiple_of(num_attention_heads) {
            let requirement = format!("must divide dim {hidden_size}");
            return Err(ConfigError::invalid("n_heads", num_attention_heads, requirement));
        }
        let vocab_size = match json.vocab_size {
            None | Some(-1) => stored.embedding_rows,
            Some(size) => usize::try_from(size)
                .map_err(|_| ConfigError::invalid("vocab_size", size, "must be positive or -1"))?,
        };
        let scaled = json.use_scaled_rope.unwrap_or(false);
        let mut config = LlamaConfig {
            hidden_size,
            intermediate_size: self.intermediate_size(hidden_size)?,
            num_hidden_layers: required("n_layers", json.n_layers)?,
            num_attention_heads,
            num_key_value_heads: json.n_kv_heads.unwrap_or(num_attention_heads),
            head_dim: hidden_size / num_attention_heads,
            vocab_size,
            // Defaults of Meta's reference.
            rms_norm_eps: json.norm_eps.unwrap_or(1e-5) as f32,
            rope_theta: json.rope_theta.unwrap_or(500_000.0) as f32,
            rope_scaling: None,
            max_position_embeddings: if scaled { SCALED_POSITIONS } else { ORIGINAL_POSITIONS },
            tie_word_embeddings: stored.tied,
            num_cross_attention_layers: self.num_cross_attention_layers,
        };
        if scaled {
            // Meta's own code says 8 for all; Llama 3.2's models of text, 1B and
            // 3B, were trained with 32, as their Hugging Face versions state.
            // They alone have tied embeddings, by which others of their kind are
            // known, such as one whose layers were pruned.
            let small = match config.llama3_size() {
                Some(size) => matches!(size, Llama3Size::B1 | Llama3Size::B3),
                None => stored.tied,
            };
            config.rope_scaling = Some(RopeScaling {
                factor: if small { 32.0 } else { 8.0 },
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: ORIGINAL_POSITIONS,
            });
        }
        config.validate()?;
        Ok(config)
    }

    /// Two thirds of four times `dim`, times the multiplier, rounded up.
    fn intermediate_size(&self, dim: usize) -> Result<usize, ConfigError> {
        if dim > MAX_HIDDEN_SIZE {
            return Err(ConfigError::invalid(
                "dim",
                dim,
                format!("must be 1 to {MAX_HIDDEN_SIZE}"),
            ));
        }
        let multiple = self.json.multiple_of.unwrap_or(256);
        if multiple == 0 || multiple > MAX_MULTIPLE {
            let requirement = format!("must be 1 to {MAX_MULTIPLE}");
            return Err(ConfigError::invalid("multiple_of", multiple, requirement));
        }
        let mut size = 8 * dim / 3;
        if let Some(multiplier) = self.json.ffn_dim_multiplier {
            if !(multiplier > 0.0 && multiplier <= MAX_MULTIPLIER) {
                let requirement = format!("must be above 0 and at most {MAX_MULTIPLIER}");
                return Err(ConfigError::invalid("ffn_dim_multiplier", multiplier, requirement));
            }
            size = (multiplier * size as f64) as usize;
        }
        Ok(size.next_multiple_of(multiple))
    }
}

impl ParamsJson {
    /// 0 for a model of text; −1 is Meta's way of saying so.
    fn num_cross_attention_layers(&self) -> Result<usize, ConfigError> {
        const KEY: &str = "vision_num_cross_attention_layers";
        let older = self
            .vision_model
            .as_ref()
            .and_then(|vision| vision.get("cross_attention_adapter")?.get("num_layers")?.as_i64());
        let stated = self.vision_num_cross_attention_layers.filter(|&count| count != -1);
        match stated.or(older) {
            Some(count) => usize::try_from(count)
                .map_err(|_| ConfigError::invalid(KEY, count, "must be positive or -1")),
            None if self.vision_chunk_size.is_some_and(|size| size > 0) => {
                Err(ConfigError::Missing { key: KEY.to_owned() })
            }
            None => Ok(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::tests::llama3;
    use crate::tiny::family::params_json as published;

    fn read(json: &Json, tied: bool) -> Result<LlamaConfig, ConfigError> {
        let stored = Stored { embedding_rows: 128_256, tied };
        Params::parse(json.to_string().as_bytes())?.config(stored)
    }

    #[test]
    fn the_familys_params_give_the_familys_shapes() {
        for size in Llama3Size::ALL {
            let expected = llama3(size);
            let tied = expected.tie_word_embeddings;
            assert_eq!(read(&published(size), tied).unwrap(), expected, "{size}");
            let wrapped = json!({ "model": published(size) });
            assert_eq!(read(&wrapped, tied).unwrap(), expected, "{size}");
        }
    }

    #[test]
    fn a_model_cut_from_llama_3_2_keeps_its_rotary_factor() {
        for (size, factor) in [(Llama3Size::B1, 32.0), (Llama3Size::B8, 8.0)] {
            let mut pruned = published(size);
            pruned["n_layers"] = json!(2);
            let config = read(&pruned, llama3(size).tie_word_embeddings).unwrap();
            assert_eq!(config.llama3_size(), None);
            assert_eq!(config.rope_scaling.unwrap().factor, factor);
        }
    }

    #[test]
    fn older_and_sparser_files_are_read() {
        let mut older = published(Llama3Size::B11);
        older.as_object_mut().unwrap().remove("vision_num_cross_attention_layers");
        older["vision_model"] = json!({ "cross_attention_adapter": { "num_layers": 8 } });
        assert_eq!(read(&older, false).unwrap(), llama3(Llama3Size::B11));
        let mut text = published(Llama3Size::B8);
        for (key, value) in [
            ("vision_chunk_size", json!(-1)),
            ("vision_num_cross_attention_layers", json!(-1)),
            ("vocab_size", json!(-1)),
            ("quantization_args", Json::Null),
        ] {
            text[key] = value;
        }
        assert_eq!(read(&text, false).unwrap(), llama3(Llama3Size::B8));
        let sparse = json!({ "dim": 64, "n_layers": 1, "n_heads": 4 });
        let config = read(&sparse, false).unwrap();
        assert_eq!((config.num_key_value_heads, config.intermediate_size), (4, 256));
        assert_eq!((config.rope_scaling, config.max_position_embeddings), (None, 8192));
        assert_eq!((config.rope_theta, config.rms_norm_eps), (500_000.0, 1e-5));
    }

    #[test]
    fn what_is_not_served_is_refused_by_name() {
        let cases = [
            ("quantization_args", json!({ "group_size": 32 }), "quantization_args is present"),
            ("lora_args", json!({ "rank": 16, "scale": 2.0 }), "lora_args is present"),
            ("moe_args", json!({ "num_experts": 16 }), "moe_args is present"),
            ("dim", Json::Null, "dim is missing"),
            ("dim", json!(1_u64 << 40), "dim is 1099511627776, must be 1 to 65536"),
            ("dim", json!("2048"), "not readable as a model configuration"),
            ("n_layers", Json::Null, "n_layers is missing"),
            ("n_heads", json!(0), "n_heads is 0, must divide dim 2048"),
            ("n_heads", json!(31), "n_heads is 31, must divide dim 2048"),
            ("n_kv_heads", json!(0), "num_key_value_heads is 0"),
            ("n_kv_heads", json!(5), "num_key_value_heads is 5, must divide 32"),
            ("vocab_size", json!(-2), "vocab_size is -2, must be positive or -1"),
            ("vocab_size", json!(0), "vocab_size is 0"),
            ("multiple_of", json!(0), "multiple_of is 0"),
            ("multiple_of", json!(u64::MAX), "multiple_of is 18446744073709551615"),
            ("ffn_dim_multiplier", json!(1e300), "ffn_dim_multiplier is 1"),
            ("ffn_dim_multiplier", json!(-1.0), "ffn_dim_multiplier is -1"),
            ("norm_eps", json!(-1.0), "rms_norm_eps is -1"),
            ("vision_num_cross_attention_layers", json!(-7), "_layers is -7, must be positive"),
            ("vision_num_cross_attention_layers", json!(1 << 20), "must be at most 1024"),
            ("vision_chunk_size", json!(560), "vision_num_cross_attention_layers is missing"),
        ];
        for (key, value, message) in cases {
            let mut params = published(Llama3Size::B1);
            params[key] = value;
            let error = read(&params, true).unwrap_err().to_string();
            assert!(error.contains(message), "{key}: {error}");
        }
        for json in ["", "[]", "{", "null", "{\"model\": 3}"] {
            assert!(
                Params::parse(json.as_bytes())
                    .and_then(|params| { params.config(Stored { embedding_rows: 8, tied: false }) })
                    .is_err(),
                "{json}"
            );
        }
    }
}
