//! An identity of a checkpoint that costs milliseconds, whatever its size.

use std::fmt::Write as _;
use std::time::UNIX_EPOCH;

use sha2::{Digest, Sha256};

use super::CheckpointError;
use super::storage::TensorStore;
use crate::config::LlamaConfig;

const SAMPLES: u64 = 8;
const SAMPLE_BYTES: u64 = 4096;

/// 32 hexadecimal digits of a SHA-256 over the configuration and, for every
/// tensor in order of name: name, format, shape, and eight evenly spaced
/// samples of 4 KiB (the whole of a tensor no larger than that).
///
/// Training or quantizing again changes it. It is no proof against a single
/// flipped byte outside the samples, nor meant against someone who wants a
/// collision there.
pub(super) fn compute(
    config: &LlamaConfig,
    store: &TensorStore,
) -> Result<String, CheckpointError> {
    let mut hasher = Sha256::new();
    hasher.update(b"llama-mesh weights 1");
    hash_config(&mut hasher, config);
    let mut buffer = Vec::new();
    for (name, tensor) in &store.tensors {
        hash_field(&mut hasher, name.as_bytes());
        hash_field(&mut hasher, tensor.encoding.to_string().as_bytes());
        hash_number(&mut hasher, tensor.shape.len() as u64);
        for &size in &tensor.shape {
            hash_number(&mut hasher, size);
        }
        hash_number(&mut hasher, tensor.num_bytes);
        for (start, len) in samples(tensor.num_bytes) {
            buffer.resize(len as usize, 0);
            store.read_bytes(tensor, start, &mut buffer)?;
            hasher.update(&buffer);
        }
    }
    Ok(hex(hasher))
}

/// 32 hexadecimal digits over `fingerprint` and the name, size and time of
/// every file.
pub(super) fn of_revision(fingerprint: &str, store: &TensorStore) -> String {
    let mut hasher = Sha256::new();
    hasher.update(b"llama-mesh revision 1");
    hash_field(&mut hasher, fingerprint.as_bytes());
    for file in &store.files {
        hash_field(&mut hasher, file.path().file_name().unwrap_or_default().as_encoded_bytes());
        hash_number(&mut hasher, file.num_bytes());
        let modified = file.modified().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        hasher.update(modified.unwrap_or_default().as_nanos().to_le_bytes());
    }
    hex(hasher)
}

/// The first half of the hash.
fn hex(hasher: Sha256) -> String {
    let mut hex = String::new();
    for byte in &hasher.finalize()[..16] {
        write!(hex, "{byte:02x}").expect("writing to a string cannot fail");
    }
    hex
}

/// Offset and length of what is read of a tensor; first and last bytes are.
pub(super) fn samples(num_bytes: u64) -> Vec<(u64, u64)> {
    if num_bytes <= SAMPLES * SAMPLE_BYTES {
        return vec![(0, num_bytes)];
    }
    let last = num_bytes - SAMPLE_BYTES;
    (0..SAMPLES)
        .map(|n| (u128::from(last) * u128::from(n) / u128::from(SAMPLES - 1)) as u64)
        .map(|start| (start, SAMPLE_BYTES))
        .collect()
}

fn hash_config(hasher: &mut Sha256, config: &LlamaConfig) {
    for size in [
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.vocab_size,
        config.tie_word_embeddings.into(),
    ] {
        hash_number(hasher, size as u64);
    }
    for value in [config.rms_norm_eps, config.rope_theta] {
        hash_number(hasher, value.to_bits().into());
    }
    if config.num_cross_attention_layers > 0 {
        hash_number(hasher, config.num_cross_attention_layers as u64);
    }
    hash_number(hasher, config.rope_scaling.is_some().into());
    if let Some(scaling) = config.rope_scaling {
        for value in [scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor] {
            hash_number(hasher, value.to_bits().into());
        }
        hash_number(hasher, scaling.original_max_position_embeddings as u64);
    }
}

fn hash_number(hasher: &mut Sha256, number: u64) {
    hasher.update(number.to_le_bytes());
}

/// Length first, so that neighbouring fields cannot be confused.
fn hash_field(hasher: &mut Sha256, bytes: &[u8]) {
    hash_number(hasher, bytes.len() as u64);
    hasher.update(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_lie_in_the_tensor_and_hold_its_ends() {
        for num_bytes in [0, 1, 4096, 32_768, 32_769, 1 << 20, u64::MAX] {
            let samples = samples(num_bytes);
            assert_eq!(samples[0].0, 0);
            let (start, len) = samples[samples.len() - 1];
            assert_eq!(start + len, num_bytes);
            assert!(samples.iter().all(|&(start, len)| start <= num_bytes - len));
        }
    }
}
