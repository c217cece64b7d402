//! A tiny vision model, saved as Hugging Face saves it, and the text model that
//! it was made of.

use std::path::Path;

use mesh::Matrix as _;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value as Json, json};

use super::*;
use crate::checkpoint::Checkpoint;
use crate::tiny::{self, TinyModel};

/// Numbers of the layers that look at images, among five.
const CROSS: [usize; 3] = [0, 2, 4];

/// The text model as a part of a vision model. `newer` is how current versions
/// of transformers name its tensors.
fn write(model: &TinyModel, directory: &Path, newer: bool) {
    model.write_hugging_face(directory).unwrap();
    let mut text = model.config_json();
    text["num_hidden_layers"] = json!(model.config().num_hidden_layers + CROSS.len());
    text["cross_attention_layers"] = json!(CROSS);
    text["model_type"] = json!("mllama_text_model");
    text["architectures"] = Json::Null;
    let config = json!({
        "architectures": ["MllamaForConditionalGeneration"],
        "model_type": "mllama",
        "text_config": text,
        "vision_config": { "hidden_size": 1280 },
    });
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    let path = directory.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, view) in parsed.tensors() {
        let (mut shape, mut data) = (view.shape().to_vec(), view.data().to_vec());
        let mut name = name.replace("layers.1.", "layers.3.").replace("layers.0.", "layers.1.");
        if name == "model.embed_tokens.weight" {
            // Eight rows that must not be read as tokens.
            shape[0] += 8;
            data.extend(vec![0xff; 8 * shape[1] * 4]);
        }
        name = match (newer, name.strip_prefix("model.")) {
            (false, _) => format!("language_model.{name}"),
            (true, Some(rest)) => format!("model.language_model.{rest}"),
            (true, None) => name,
        };
        tensors.push((name, shape, data));
    }
    let (text, vision) = match newer {
        false => ("language_model.model.", ""),
        true => ("model.language_model.", "model."),
    };
    for name in [
        format!("{text}layers.0.cross_attn.q_proj.weight"),
        format!("{text}layers.4.cross_attn_attn_gate"),
        format!("{text}layers.2.mlp.up_proj.weight"),
        format!("{vision}vision_model.class_embedding"),
        format!("{vision}multi_modal_projector.bias"),
    ] {
        tensors.push((name, vec![1], vec![0; 4]));
    }
    let views = tensors.iter().map(|(name, shape, data)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn model() -> TinyModel {
    let config = LlamaConfig { num_cross_attention_layers: CROSS.len(), ..tiny::config() };
    TinyModel::new(config, 11)
}

#[test]
fn the_text_of_a_vision_model_is_the_text_model() {
    let model = model();
    for newer in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        write(&model, directory.path(), newer);
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        assert_eq!(checkpoint.config(), model.config());
        for name in WeightName::stored(model.config()) {
            let matrix = checkpoint.matrix(name).unwrap();
            let mut values = vec![0.0; matrix.rows() * matrix.cols()];
            matrix.read_rows(0, &mut values).unwrap();
            assert_eq!(values, model.weight(name), "{name}");
        }
    }
}

#[test]
fn layers_are_numbered_around_those_that_look_at_images() {
    let published = [3, 8, 13, 18, 23, 28, 33, 38];
    let layers: Vec<_> = (0..40)
        .filter_map(|n| text_name(&format!("language_model.model.layers.{n}.x"), &published))
        .collect();
    let expected: Vec<_> = (0..32).map(|n| format!("model.layers.{n}.x")).collect();
    assert_eq!(layers, expected);
    assert_eq!(text_name("language_model.lm_head.weight", &[]).unwrap(), "lm_head.weight");
    assert_eq!(text_name("model.layers.x.y", &[0]).unwrap(), "model.layers.x.y");
}

#[test]
fn what_does_not_fit_is_named() {
    let cases = [
        ("/text_config/cross_attention_layers", json!([0, 2, 5]), "must be below 5 layers"),
        ("/text_config/cross_attention_layers", json!([2, 2, 4]), "must be ascending"),
        ("/text_config/cross_attention_layers", Json::Null, "cross_attention_layers is missing"),
        ("/text_config/cross_attention_layers", json!([]), "cross_attention_layers is missing"),
        ("/text_config/model_type", json!("llama"), "model_type is llama"),
        ("/text_config/hidden_act", json!("gelu"), "hidden_act is gelu"),
        ("/text_config", Json::Null, "text_config is missing"),
        // Renumbered wrongly, a layer is too many.
        ("/text_config/cross_attention_layers", json!([0, 2]), "is not part of a dense Llama"),
    ];
    let directory = tempfile::tempdir().unwrap();
    write(&model(), directory.path(), false);
    let path = directory.path().join("config.json");
    let good: Json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (pointer, value, message) in cases {
        let mut config = good.clone();
        *config.pointer_mut(pointer).unwrap() = value;
        std::fs::write(&path, config.to_string()).unwrap();
        let error = Checkpoint::open(directory.path()).unwrap_err().to_string();
        let other = "is missing, expected with shape";
        assert!(
            error.contains(message) || message.contains("dense") && error.contains(other),
            "{error}"
        );
    }
}
