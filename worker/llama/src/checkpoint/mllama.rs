//! The text of a Hugging Face vision model (Mllama), as a text model.
//!
//! Its layers are numbered through, those that look at images among them. Text
//! alone passes these by, so the others are numbered anew.

use std::collections::BTreeMap;

use super::CheckpointError;
use super::storage::{StoredTensor, TensorStore};
use crate::config::LlamaConfig;
use crate::names::WeightName;

/// What stands before the text model's own names: as published, and as newer
/// versions of transformers save it.
const TEXT_PREFIXES: [(&str, &str); 3] = [
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
];
/// What text alone does not need.
const VISION_PREFIXES: [&str; 4] = [
    "vision_model.",
    "multi_modal_projector.",
    "model.vision_model.",
    "model.multi_modal_projector.",
];

/// Renames the text's tensors and drops the others. `cross_attention_layers`
/// are the numbers of the layers to pass by, ascending.
pub(super) fn text_model(
    store: TensorStore,
    config: &LlamaConfig,
    cross_attention_layers: &[usize],
) -> Result<TensorStore, CheckpointError> {
    let TensorStore { files, tensors } = store;
    let mut text = BTreeMap::new();
    for (name, tensor) in tensors {
        if VISION_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        if let Some(renamed) = text_name(&name, cross_attention_layers)
            && text.insert(renamed, tensor).is_some()
        {
            let message = "is there under two names".to_owned();
            return Err(CheckpointError::WrongData { name, message });
        }
    }
    // The table has rows for images after those of the vocabulary.
    if let Some(table) = text.get_mut(&WeightName::EmbedTokens.to_string()) {
        cut_rows(table, config.vocab_size as u64);
    }
    Ok(TensorStore { files, tensors: text })
}

/// Its name in a text model; none for a layer that looks at images.
fn text_name(name: &str, cross_attention_layers: &[usize]) -> Option<String> {
    let renamed = TEXT_PREFIXES
        .iter()
        .find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)));
    let name = renamed.unwrap_or_else(|| name.to_owned());
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let Some((Ok(layer), rest)) = layer.map(|(layer, rest)| (layer.parse::<usize>(), rest)) else {
        return Some(name);
    };
    match cross_attention_layers.binary_search(&layer) {
        Ok(_) => None,
        Err(before) => Some(format!("model.layers.{}.{rest}", layer - before)),
    }
}

/// Leaves the first `num_rows` rows of a matrix that has more.
fn cut_rows(tensor: &mut StoredTensor, num_rows: u64) {
    if let [rows, _] = &mut *tensor.shape
        && *rows > num_rows
        && tensor.num_bytes.is_multiple_of(*rows)
    {
        tensor.num_bytes = tensor.num_bytes / *rows * num_rows;
        *rows = num_rows;
    }
}

#[cfg(test)]
mod tests;
