//! Checkpoints of seeded weights, written to a directory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use llama::pth::{PthDtype, PthStorage, PthWriteError, PthWriter};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use crate::golden::Golden;

/// Meta's names and Hugging Face's.
const LAYER_NAMES: [(&str, &str); 9] = [
    ("attention_norm", "input_layernorm"),
    ("attention.wq", "self_attn.q_proj"),
    ("attention.wk", "self_attn.k_proj"),
    ("attention.wv", "self_attn.v_proj"),
    ("attention.wo", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("feed_forward.w1", "mlp.gate_proj"),
    ("feed_forward.w3", "mlp.up_proj"),
    ("feed_forward.w2", "mlp.down_proj"),
];

/// As Meta publishes it: `params.json` and `consolidated.NN.pth`, so many.
pub(crate) fn write_meta(golden: &Golden, files: usize, directory: &Path) {
    write_params(golden, directory);
    let tensors: BTreeMap<_, _> =
        golden.tensors().into_iter().map(|tensor| (tensor.name().to_owned(), tensor)).collect();
    for rank in 0..files {
        let stem = format!("consolidated.{rank:02}");
        let mut writer = PthWriter::new(&stem).expect("a name");
        for tensor in tensors.values() {
            let mut shape: Vec<_> = tensor.shape().iter().map(|&size| size as u64).collect();
            if let Some(axis) = cut_axis(tensor.name(), files) {
                shape[axis] /= files as u64;
            }
            writer.tensor(tensor.name(), PthDtype::Bf16, &shape).expect("declares");
        }
        if golden.tied {
            writer.alias("output.weight", "tok_embeddings.weight").expect("declares");
        }
        let file = File::create(directory.join(format!("{stem}.pth"))).expect("creates");
        let fill = |name: &str, storage: &mut PthStorage<'_>| -> Result<(), PthWriteError> {
            let tensor = &tensors[name];
            match cut_axis(name, files) {
                None => golden.write(tensor, storage)?,
                Some(axis) => {
                    // Rows as they are if cut along the rows, or each row's part.
                    let row = if axis == 0 { tensor.len() } else { tensor.shape()[1] };
                    let part = 2 * row / files;
                    for row in golden.bytes(tensor).chunks(2 * row) {
                        storage.write_all(&row[rank * part..][..part])?;
                    }
                }
            }
            Ok(())
        };
        writer.write(file, fill).expect("writes");
    }
}

pub(crate) fn write_params(golden: &Golden, directory: &Path) {
    let params = golden.params.to_string();
    std::fs::write(directory.join("params.json"), params).expect("writes");
}

/// Along which axis Meta's files cut a tensor, if there are several.
fn cut_axis(name: &str, files: usize) -> Option<usize> {
    if files == 1 || name.contains("norm") {
        return None;
    }
    let is_row_parallel =
        name.ends_with("attention.wo.weight") || name.ends_with("feed_forward.w2.weight");
    Some(usize::from(is_row_parallel))
}

/// The text model as Hugging Face would publish it.
pub(crate) fn write_hugging_face(golden: &Golden, directory: &Path) {
    let head_dim = golden.param("dim") / golden.param("n_heads");
    let mut intermediate_size = 0;
    let mut tensors = Vec::new();
    for tensor in golden.tensors() {
        let Some(name) = hugging_face_name(tensor.name()) else { continue };
        if name.ends_with("gate_proj.weight") {
            intermediate_size = tensor.shape()[0];
        }
        let mut bytes = golden.bytes(&tensor);
        if name.contains("q_proj") || name.contains("k_proj") {
            bytes = half_split(&bytes, head_dim, 2 * tensor.shape()[1]);
        }
        tensors.push((name, tensor.shape().to_vec(), bytes));
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::BF16, shape.clone(), bytes).expect("whole values"))
    });
    let file = safetensors::serialize(views, None).expect("serializes");
    std::fs::write(directory.join("model.safetensors"), file).expect("writes");
    let config = config_json(golden, intermediate_size).to_string();
    std::fs::write(directory.join("config.json"), config).expect("writes");
}

/// None for what is no part of the text model.
fn hugging_face_name(meta: &str) -> Option<String> {
    let name = meta.strip_prefix("text_model.").unwrap_or(meta).strip_suffix(".weight")?;
    let name = match name {
        "tok_embeddings" => "model.embed_tokens".to_owned(),
        "norm" => "model.norm".to_owned(),
        "output" => "lm_head".to_owned(),
        _ => {
            let (layer, rest) = name.strip_prefix("layers.")?.split_once('.')?;
            let (_, theirs) = LAYER_NAMES.iter().find(|(ours, _)| *ours == rest)?;
            format!("model.layers.{layer}.{theirs}")
        }
    };
    Some(format!("{name}.weight"))
}

/// Rows of each head: the first of every pair, then the second.
fn half_split(bytes: &[u8], head_dim: usize, row_bytes: usize) -> Vec<u8> {
    let mut reordered = Vec::with_capacity(bytes.len());
    for head in bytes.chunks(head_dim * row_bytes) {
        for parity in [0, 1] {
            for row in head.chunks(row_bytes).skip(parity).step_by(2) {
                reordered.extend_from_slice(row);
            }
        }
    }
    reordered
}

fn config_json(golden: &Golden, intermediate_size: usize) -> serde_json::Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": golden.params["dim"],
        "intermediate_size": intermediate_size,
        "num_hidden_layers": golden.params["n_layers"],
        "num_attention_heads": golden.params["n_heads"],
        "num_key_value_heads": golden.params["n_kv_heads"],
        "vocab_size": golden.params["vocab_size"],
        "rms_norm_eps": golden.params["norm_eps"],
        "rope_theta": golden.params["rope_theta"],
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": golden.rope_factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": golden.tied,
        "torch_dtype": "bfloat16",
    })
}
