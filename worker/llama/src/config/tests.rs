//! Tests of configurations, and the configurations of known models.

use super::*;
pub(crate) use crate::tiny::family::config as llama3;

/// A text model's `config.json`.
fn parse_hf(json: &[u8]) -> Result<LlamaConfig, ConfigError> {
    hf::read(json).map(|read| read.config)
}

pub(crate) fn smollm2() -> LlamaConfig {
    LlamaConfig {
        hidden_size: 576,
        intermediate_size: 1536,
        num_hidden_layers: 30,
        num_attention_heads: 9,
        num_key_value_heads: 3,
        head_dim: 64,
        vocab_size: 49_152,
        rms_norm_eps: 1e-5,
        rope_theta: 100_000.0,
        rope_scaling: None,
        max_position_embeddings: 8192,
        tie_word_embeddings: true,
        num_cross_attention_layers: 0,
    }
}

const LLAMA_3_2_1B: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64,
  "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
  "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
  "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
  "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_scaling": { "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3" },
  "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
  "use_cache": true, "vocab_size": 128256 }"#;

/// The published file with some keys replaced (`null` removes one).
fn edited(edits: serde_json::Value) -> Vec<u8> {
    let mut config: serde_json::Value = serde_json::from_str(LLAMA_3_2_1B).unwrap();
    for (key, value) in edits.as_object().unwrap() {
        config[key] = value.clone();
    }
    config.to_string().into_bytes()
}

#[test]
fn a_published_config_is_read_in_full() {
    let config = parse_hf(LLAMA_3_2_1B.as_bytes()).unwrap();
    assert_eq!(config, llama3(Llama3Size::B1));
    assert_eq!(config.llama3_size(), Some(Llama3Size::B1));
}

#[test]
fn newer_configs_keep_their_rotary_parameters_together() {
    let json = edited(serde_json::json!({
        "rope_theta": null, "rope_scaling": null,
        "rope_parameters": { "rope_theta": 500000.0, "rope_type": "llama3", "factor": 32.0,
            "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192 },
    }));
    assert_eq!(parse_hf(&json).unwrap(), llama3(Llama3Size::B1));
}

#[test]
fn absent_keys_have_the_librarys_defaults() {
    let json = edited(serde_json::json!({
        "head_dim": null, "num_key_value_heads": null, "rms_norm_eps": null, "rope_theta": null,
        "rope_scaling": null, "max_position_embeddings": null, "tie_word_embeddings": null,
    }));
    let config = parse_hf(&json).unwrap();
    assert_eq!((config.head_dim, config.num_key_value_heads), (64, 32));
    assert_eq!((config.rms_norm_eps, config.rope_theta), (1e-6, 10_000.0));
    assert_eq!((config.rope_scaling, config.max_position_embeddings), (None, 2048));
    assert!(!config.tie_word_embeddings);
}

#[test]
fn what_is_not_a_dense_llama_is_refused_by_name() {
    use serde_json::json;
    let cases = [
        (json!({"architectures": ["MixtralForCausalLM"]}), "architectures is MixtralForCausalLM"),
        (json!({"architectures": null, "model_type": "gpt2"}), "model_type is gpt2"),
        (json!({"attention_bias": true}), "attention_bias is true"),
        (json!({"mlp_bias": true}), "mlp_bias is true"),
        (json!({"hidden_act": "gelu"}), "hidden_act is gelu"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor is 0.5"),
        (json!({"quantization_config": {"quant_method": "awq"}}), "quantization_config is awq"),
        (json!({"rope_scaling": {"type": "linear", "factor": 2.0}}), "rope_type is linear"),
        (json!({"rope_scaling": {"factor": 2.0}}), "rope_scaling.rope_type is missing"),
        (json!({"rope_scaling": {"rope_type": "llama3"}}), "rope_scaling.factor is missing"),
        (json!({"hidden_size": null}), "hidden_size is missing"),
        (json!({"hidden_size": -1}), "not readable as a model configuration"),
        (json!({"vocab_size": "many"}), "not readable as a model configuration"),
    ];
    for (edit, message) in cases {
        let error = parse_hf(&edited(edit.clone())).unwrap_err().to_string();
        assert!(error.contains(message), "{edit}: {error}");
    }
    assert!(matches!(parse_hf(b"[]"), Err(ConfigError::Malformed(_))));
}

#[test]
fn sizes_that_do_not_fit_or_are_absurd_are_refused_by_name() {
    type Edit = fn(&mut LlamaConfig);
    let cases: [(Edit, &str); 13] = [
        (|c| c.hidden_size = 0, "hidden_size is 0, must be 1 to 65536"),
        (|c| c.vocab_size = usize::MAX, "vocab_size is"),
        (|c| c.num_hidden_layers = 1025, "num_hidden_layers is 1025"),
        (|c| c.num_key_value_heads = 2, "num_key_value_heads is 2, must divide 9"),
        (|c| c.head_dim = 63, "head_dim is 63, must be even"),
        (|c| c.intermediate_size = 1 << 21, "intermediate_size is"),
        (|c| c.max_position_embeddings = 0, "max_position_embeddings is 0"),
        (|c| c.rms_norm_eps = 0.0, "rms_norm_eps is 0"),
        (|c| c.rms_norm_eps = f32::NAN, "rms_norm_eps is NaN"),
        (|c| c.rope_theta = f32::INFINITY, "rope_theta is inf"),
        (|c| scaling(c).factor = 0.5, "rope_scaling.factor is 0.5"),
        (|c| scaling(c).high_freq_factor = 1.0, "rope_scaling.high_freq_factor is 1"),
        (|c| scaling(c).original_max_position_embeddings = 0, "original_max_position_embeddings"),
    ];
    smollm2().validate().unwrap();
    for (edit, message) in cases {
        let mut config = smollm2();
        edit(&mut config);
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

fn scaling(config: &mut LlamaConfig) -> &mut RopeScaling {
    config.rope_scaling.insert(RopeScaling {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    })
}

#[test]
fn models_are_recognised_by_their_shapes_alone() {
    for size in Llama3Size::ALL {
        assert_eq!(llama3(size).llama3_size(), Some(size));
    }
    assert_eq!(smollm2().llama3_size(), None);
    // The 8B shape with Llama 2's vocabulary is another model.
    let other = LlamaConfig { vocab_size: 32_000, ..llama3(Llama3Size::B8) };
    assert_eq!(other.llama3_size(), None);
}
