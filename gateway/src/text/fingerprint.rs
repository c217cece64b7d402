//! One name for everything that turns a model's text into ids.
//!
//! Gateway and worker compute it each from their own files and compare.

use super::tokenizer::{TokenizerError, read_bounded};
use gguf::Metadata;
use sha2::{Digest, Sha256};
use std::path::Path;

/// SHA-256 over all metadata entries under `tokenizer.`, in the order of the
/// file: the length of the key, the key, the length of the value, the value.
/// Lengths are 64-bit little endian; a value starts with its type.
pub(super) fn of_gguf(metadata: &Metadata<'_>) -> String {
    let mut hash = Sha256::new();
    for entry in metadata.entries_with_prefix("tokenizer.") {
        for part in [entry.key.as_bytes(), entry.value] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    hex(&hash.finalize())
}

/// SHA-256 over the bytes of `tokenizer.json`.
pub(super) fn of_hugging_face(dir: &Path) -> Result<String, TokenizerError> {
    let bytes = read_bounded(&dir.join("tokenizer.json"), super::tokenizer::MAX_JSON_BYTES)?;
    Ok(hex(&Sha256::digest(&bytes)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
