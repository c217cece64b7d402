//! What Meta's reference answers (`tests/golden/make_meta_reference.py`), and
//! the seeded weights that it was asked about.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use llama::tiny::seeded::{SeededModel, SeededTensor};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Values that are made at once.
const PIECE: usize = 1 << 22;
const THREADS: usize = 2;

/// One model.
#[derive(Debug, Deserialize)]
pub(crate) struct Golden {
    seed: u64,
    /// `params.json`.
    pub(crate) params: serde_json::Value,
    pub(crate) tied: bool,
    pub(crate) rope_factor: f64,
    /// How many `consolidated.NN.pth` Meta would make of it.
    pub(crate) files: usize,
    /// Tokens of the prompt.
    pub(crate) prompt: usize,
    /// Tokens that follow one by one.
    pub(crate) decode: usize,
    /// All of them.
    pub(crate) tokens: Vec<u32>,
    tensors: BTreeMap<String, Tensor>,
    /// Distance of the vocabulary ids whose logits are kept.
    #[serde(default)]
    pub(crate) stride: usize,
    /// By position, the likeliest ids and their logits.
    #[serde(default)]
    pub(crate) top: Vec<Vec<(u32, f32)>>,
}

#[derive(Debug, Deserialize)]
struct Tensor {
    shape: Vec<usize>,
    /// Of its bfloat16 bytes.
    sha256: String,
}

/// Where the script's output lies.
pub(crate) fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/meta")
}

fn read(file: &str) -> Vec<u8> {
    let path = directory().join(file);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

impl Golden {
    pub(crate) fn load(name: &str) -> Self {
        let golden: Self =
            serde_json::from_slice(&read(&format!("{name}.json"))).expect("the script's output");
        let vocab_size = golden.param("vocab_size");
        assert_eq!(golden.tokens.len(), golden.prompt + golden.decode);
        assert_eq!(golden.tokens, golden.model().tokens(golden.tokens.len(), vocab_size));
        golden
    }

    fn model(&self) -> SeededModel {
        let num_layers = self.param("n_layers");
        SeededModel { seed: self.seed, tied: self.tied, num_layers }
    }

    /// A whole number of `params.json`.
    pub(crate) fn param(&self, key: &str) -> usize {
        self.params[key].as_u64().unwrap_or_else(|| panic!("{key} is a whole number")) as usize
    }

    /// Meta's logits in f32, `[tokens, vocab]`.
    pub(crate) fn logits(&self, name: &str) -> Vec<Vec<f32>> {
        let rows = self.rows(&format!("{name}.f32"));
        assert_eq!(rows.len(), self.tokens.len());
        rows
    }

    /// Meta's logits in f32 at every 8th position, on weights as the
    /// `performance` preset stores them.
    pub(crate) fn performance_logits(&self, name: &str) -> Vec<Vec<f32>> {
        let rows = self.rows(&format!("{name}.performance.f32"));
        assert_eq!(rows.len(), self.tokens.len().div_ceil(8));
        rows
    }

    fn rows(&self, file: &str) -> Vec<Vec<f32>> {
        let values: Vec<f32> = read(file)
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes")))
            .collect();
        values.chunks(self.param("vocab_size")).map(<[f32]>::to_vec).collect()
    }

    /// Meta's logits in bf16 of every `stride`-th id, `[tokens, ids]`.
    pub(crate) fn sampled_logits(&self, name: &str) -> Vec<Vec<f32>> {
        let values: Vec<f32> = read(&format!("{name}.bf16"))
            .chunks_exact(2)
            .map(|bytes| f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16))
            .collect();
        let ids = self.param("vocab_size").div_ceil(self.stride);
        let rows: Vec<_> = values.chunks(ids).map(<[f32]>::to_vec).collect();
        assert_eq!(rows.len(), self.tokens.len());
        rows
    }

    /// Every tensor of the checkpoint, by Meta's names.
    pub(crate) fn tensors(&self) -> Vec<SeededTensor> {
        let (model, tensors) = (self.model(), self.tensors.iter());
        tensors
            .map(|(name, tensor)| model.tensor(name, &tensor.shape))
            // A tied output is the table itself.
            .filter(|tensor| !(self.tied && tensor.name() == "output.weight"))
            .collect()
    }

    /// Writes the tensor's bytes, and checks that they are those that the script
    /// had.
    pub(crate) fn write(&self, tensor: &SeededTensor, out: &mut dyn Write) -> io::Result<()> {
        let (mut first, mut hash) = (0, Sha256::new());
        let mut piece = vec![0; 2 * PIECE.min(tensor.len())];
        while first < tensor.len() {
            let piece = &mut piece[..2 * PIECE.min(tensor.len() - first)];
            let part = piece.len().div_ceil(2 * THREADS);
            std::thread::scope(|scope| {
                for (n, bytes) in piece.chunks_mut(2 * part).enumerate() {
                    scope.spawn(move || tensor.write_bf16(first + n * part, bytes));
                }
            });
            hash.update(&*piece);
            out.write_all(piece)?;
            first += piece.len() / 2;
        }
        let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, self.tensors[tensor.name()].sha256, "{}", tensor.name());
        Ok(())
    }

    /// The tensor's bytes, checked.
    pub(crate) fn bytes(&self, tensor: &SeededTensor) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(2 * tensor.len());
        self.write(tensor, &mut bytes).expect("memory takes everything");
        bytes
    }
}
