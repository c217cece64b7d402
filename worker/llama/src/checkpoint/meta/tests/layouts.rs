//! One model in every form that a Meta directory may have.

use std::fs;

use mesh::Matrix as _;
use serde_json::json;

use super::*;
use crate::config::RopeScaling;
use crate::names::LayerWeight;
use crate::pth::crafted::{Storage, View};
use crate::rope::inverse_frequencies;

#[test]
fn single_shards_and_chunks_are_the_same_model() {
    let model = TinyModel::new(config(), 3);
    let mut fingerprints = Vec::new();
    for num_shards in [1, 2, 4, 8] {
        let directory = directory(model.config());
        write_shards(&directory, &model, num_shards);
        fingerprints.push(check(directory.path(), &model));
    }
    for ends in [&[3][..], &[2, 3], &[1, 2, 3]] {
        let directory = directory(model.config());
        write_chunks(&directory, &model, ends);
        fingerprints.push(check(directory.path(), &model));
    }
    let single = directory(model.config());
    write(&single, "consolidated.pth", &tensors(&model, 0, 1));
    fingerprints.push(check(single.path(), &model));
    assert!(fingerprints.iter().all(|other| *other == fingerprints[0]), "{fingerprints:?}");
    let other = TinyModel::new(config(), 4);
    write(&single, "consolidated.pth", &tensors(&other, 0, 1));
    assert_ne!(check(single.path(), &other), fingerprints[0]);
}

#[test]
fn what_torch_saved_in_shards_and_whole_is_read_as_torch_has_it() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/pth/meta");
    let directory = Path::new(directory);
    let json = fs::read(directory.join("weights.json")).unwrap();
    let expected: std::collections::BTreeMap<String, Vec<f32>> =
        serde_json::from_slice(&json).unwrap();
    let mut fingerprints = Vec::new();
    for kind in ["single", "shards"] {
        let checkpoint = Checkpoint::open(&directory.join(kind)).unwrap();
        let names = WeightName::stored(checkpoint.config());
        assert_eq!(names.len(), expected.len());
        for name in names {
            assert_eq!(values(&checkpoint, name), expected[&name.meta()], "{name}");
        }
        fingerprints.push(checkpoint.weight_fingerprint().to_owned());
    }
    assert_eq!(fingerprints[0], fingerprints[1]);
}

#[test]
fn chunks_go_over_the_shards_that_lie_beside_them() {
    let (stale, model) = (TinyModel::new(config(), 1), TinyModel::new(config(), 2));
    let directory = directory(model.config());
    write_shards(&directory, &stale, 8);
    write_chunks(&directory, &model, &[2, 3]);
    fs::write(directory.path().join("layers_0-1.pth.tmp"), "partial").unwrap();
    check(directory.path(), &model);
}

#[test]
fn rows_of_joined_weights_may_be_read_in_any_pieces_by_several_threads() {
    let model = TinyModel::new(config(), 5);
    let directory = directory(model.config());
    write_shards(&directory, &model, 4);
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    for weight in [LayerWeight::QProj, LayerWeight::OProj, LayerWeight::DownProj] {
        let name = WeightName::Layer(1, weight);
        let matrix = checkpoint.matrix(name).unwrap();
        let cols = matrix.cols();
        std::thread::scope(|scope| {
            for (first, count) in [(0, 1), (15, 2), (16, 1), (0, 64), (63, 1), (7, 40), (64, 0)] {
                let (matrix, model) = (&matrix, &model);
                scope.spawn(move || {
                    let mut rows = vec![0.0; count * cols];
                    matrix.read_rows(first, &mut rows).unwrap();
                    assert_eq!(rows, model.weight(name)[first * cols..][..rows.len()]);
                });
            }
        });
    }
}

#[test]
fn a_tied_head_is_absent_an_alias_or_a_copy() {
    let tied = LlamaConfig { tie_word_embeddings: true, ..config() };
    let model = TinyModel::new(tied.clone(), 6);
    let absent = directory(&tied);
    write_shards(&absent, &model, 2);
    check(absent.path(), &model);

    // Both names for one storage, as the files of 1B and 3B have it.
    let alias = directory(&tied);
    let (mut views, mut storages) = (Vec::new(), Vec::new());
    for (name, shape, values) in tensors(&model, 0, 1) {
        let cols = *shape.last().unwrap() as i64;
        views.push(View {
            name,
            storage: storages.len(),
            offset: 0,
            strides: if shape.len() == 1 { vec![1] } else { vec![cols, 1] },
            shape: shape.iter().map(|&size| size as i64).collect(),
        });
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        storages.push(Storage { class: "torch\nFloatStorage", numel: values.len() as i64, bytes });
    }
    let table = views.iter().find(|view| view.name == "tok_embeddings.weight").unwrap();
    views.push(View { name: "output.weight".to_owned(), ..table.clone() });
    let path = alias.path().join("consolidated.00.pth");
    fs::write(path, crafted::pth(&views, &storages)).unwrap();
    assert_eq!(check(alias.path(), &model), check(absent.path(), &model));

    // A copy is a head of its own, with the same values.
    let copy = directory(&tied);
    let mut tensors = tensors(&model, 0, 1);
    let mut head = tensors[0].clone();
    assert_eq!(std::mem::replace(&mut head.0, "output.weight".into()), "tok_embeddings.weight");
    tensors.push(head);
    write(&copy, "consolidated.00.pth", &tensors);
    let checkpoint = Checkpoint::open(copy.path()).unwrap();
    assert!(!checkpoint.config().tie_word_embeddings);
    assert_eq!(values(&checkpoint, WeightName::LmHead), model.weight(WeightName::EmbedTokens));
}

#[test]
fn half_precision_and_views_are_read() {
    let model = TinyModel::new(config(), 7);
    let directory = directory(model.config());
    let path = directory.path().join("consolidated.00.pth");
    for (dtype, tolerance) in [(Dtype::Bf16, 1.0 / 256.0), (Dtype::F16, 1.0 / 1024.0)] {
        fs::write(&path, crafted::dense(&tensors(&model, 0, 1), dtype)).unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        for name in WeightName::stored(model.config()) {
            for (found, expected) in values(&checkpoint, name).iter().zip(model.weight(name)) {
                assert!((found - expected).abs() <= tolerance * expected.abs().max(1e-3), "{name}");
            }
        }
    }
    // Every matrix transposed in its storage, every gain with a gap, in one
    // storage of all.
    let (mut views, mut bytes) = (Vec::new(), vec![0xff; 12]);
    for (name, shape, values) in tensors(&model, 0, 1) {
        let offset = bytes.len() as i64 / 4;
        let (strides, stored): (_, Vec<f32>) = match *shape {
            [rows, cols] => {
                let at = |n: usize| values[n % rows * cols + n / rows];
                (vec![1, rows as i64], (0..values.len()).map(at).collect())
            }
            _ => (vec![3], values.iter().flat_map(|&value| [value, 7.0, 8.0]).collect()),
        };
        bytes.extend(stored.iter().flat_map(|value| value.to_le_bytes()));
        let shape = shape.iter().map(|&size| size as i64).collect();
        views.push(View { name, storage: 0, offset, shape, strides });
    }
    let class = "torch\nFloatStorage";
    let storage = Storage { class, numel: bytes.len() as i64 / 4, bytes };
    fs::write(&path, crafted::pth(&views, &[storage])).unwrap();
    check(directory.path(), &model);
}

#[test]
fn scaled_frequencies_follow_from_the_params() {
    let scaling = RopeScaling {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let config =
        LlamaConfig { rope_scaling: Some(scaling), max_position_embeddings: 131_072, ..config() };
    let model = TinyModel::new(config, 8);
    let directory = directory(model.config());
    let mut tensors = tensors(&model, 0, 1);
    // What old files have beside the weights.
    tensors.push(("rope.freqs".to_owned(), vec![2], vec![1.0, 0.5]));
    write(&directory, "consolidated.00.pth", &tensors);
    check(directory.path(), &model);
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let frequencies = inverse_frequencies(model.config());
    assert_eq!(checkpoint.inverse_frequencies().unwrap(), frequencies);
}

/// The text tower of a vision model, with a part of everything else.
fn vision_tensors(model: &TinyModel) -> Vec<Tensor> {
    let mut tensors = tensors(model, 0, 1);
    for (name, ..) in &mut tensors {
        *name = format!("text_model.{name}");
    }
    for name in [
        "vision_model.vision_encoder.conv1._linear.weight",
        "vision_model.vision_projection.bias",
        "text_model.cross_attention_layers.1.gate_attn",
        "text_model.cross_attention_layers.0.attention.wq.weight",
        "text_model.learnable_embedding.weight",
    ] {
        tensors.push((name.to_owned(), vec![1, 2], vec![1.0, 2.0]));
    }
    tensors
}

#[test]
fn a_vision_models_text_is_a_text_model() {
    let config = LlamaConfig { num_cross_attention_layers: 2, ..config() };
    let model = TinyModel::new(config, 9);
    let directory = directory(model.config());
    let mut params = params(model.config());
    params["vision_num_cross_attention_layers"] = json!(2);
    fs::write(directory.path().join("params.json"), params.to_string()).unwrap();
    let mut tensors = vision_tensors(&model);
    write(&directory, "consolidated.pth", &tensors);
    check(directory.path(), &model);
    // In a text model they are out of place.
    tensors.retain(|(name, ..)| name.starts_with("vision_model."));
    tensors.extend(super::tensors(&model, 0, 1));
    write(&directory, "consolidated.pth", &tensors);
    params["vision_num_cross_attention_layers"] = json!(-1);
    fs::write(directory.path().join("params.json"), params.to_string()).unwrap();
    assert!(error_of(directory.path()).contains("is not part of a dense Llama"));
}
