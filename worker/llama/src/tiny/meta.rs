//! A tiny model as Meta's directories are: `params.json` and `.pth` shards.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use half::bf16;
use serde_json::json;

use super::TinyModel;
use crate::names::{LayerWeight, WeightName};
use crate::pth::{PthDtype, PthWriteError, PthWriter};

impl TinyModel {
    /// Writes `params.json` and `consolidated.NN.pth` (BF16), cut into
    /// `num_shards` equal parts as Meta's model parallelism cuts them.
    ///
    /// # Errors
    /// When a file cannot be written.
    ///
    /// # Panics
    /// When heads, widths or vocabulary do not divide by `num_shards`.
    pub fn write_meta(&self, directory: &Path, num_shards: usize) -> io::Result<()> {
        std::fs::create_dir_all(directory)?;
        std::fs::write(directory.join("params.json"), self.params_json().to_string())?;
        for shard in 0..num_shards {
            let file = File::create(directory.join(format!("consolidated.{shard:02}.pth")))?;
            self.write_shard(file, shard, num_shards).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// What `params.json` holds.
    pub fn params_json(&self) -> serde_json::Value {
        let config = &self.config;
        json!({
            "dim": config.hidden_size,
            "n_layers": config.num_hidden_layers,
            "n_heads": config.num_attention_heads,
            "n_kv_heads": config.num_key_value_heads,
            "vocab_size": config.vocab_size,
            // One and a half, which is rounded up to a multiple.
            "ffn_dim_multiplier": 1.5 / (8 * config.hidden_size / 3) as f64,
            "multiple_of": config.intermediate_size,
            "norm_eps": config.rms_norm_eps,
            "rope_theta": config.rope_theta,
            "use_scaled_rope": config.rope_scaling.is_some(),
        })
    }

    /// A weight's values as they are in the files: BF16, row-major.
    pub fn bf16_bytes(&self, name: WeightName) -> Vec<u8> {
        bytes_of(self.weight(name))
    }

    fn write_shard(
        &self,
        file: File,
        shard: usize,
        num_shards: usize,
    ) -> Result<(), PthWriteError> {
        let mut writer = PthWriter::new(&format!("consolidated.{shard:02}"))?;
        for &name in self.weights.keys() {
            let [rows, cols] = self.shard_shape(name, num_shards);
            let shape = [rows as u64, cols as u64];
            let shape = if name.shape(&self.config)[0] == 1 { &shape[1..] } else { &shape };
            writer.tensor(&name.meta(), PthDtype::Bf16, shape)?;
        }
        if self.config.tie_word_embeddings {
            writer.alias(&WeightName::LmHead.meta(), &WeightName::EmbedTokens.meta())?;
        }
        writer.write(file, |name, storage| {
            let name = self.weights.keys().find(|key| key.meta() == name).expect("declared above");
            storage.write_all(&bytes_of(&self.shard_values(*name, shard, num_shards)))?;
            Ok::<_, PthWriteError>(())
        })?;
        Ok(())
    }

    /// `[rows, cols]` of one part.
    fn shard_shape(&self, name: WeightName, num_shards: usize) -> [usize; 2] {
        let [rows, cols] = name.shape(&self.config);
        let size = if has_columns_cut(name) { cols } else { rows };
        assert!(rows == 1 || size.is_multiple_of(num_shards), "{size} in {num_shards} parts");
        match (rows, has_columns_cut(name)) {
            (1, _) => [1, cols],
            (_, true) => [rows, cols / num_shards],
            (_, false) => [rows / num_shards, cols],
        }
    }

    fn shard_values(&self, name: WeightName, shard: usize, num_shards: usize) -> Vec<f32> {
        let values = self.weight(name);
        let [rows, cols] = self.shard_shape(name, num_shards);
        match (name.shape(&self.config)[0], has_columns_cut(name)) {
            (1, _) => values.to_vec(),
            (_, true) => values
                .chunks(cols * num_shards)
                .flat_map(|row| row[shard * cols..][..cols].to_vec())
                .collect(),
            (_, false) => values[shard * rows * cols..][..rows * cols].to_vec(),
        }
    }
}

/// Fairscale's row-parallel linears; everything else that is cut has its rows
/// cut.
fn has_columns_cut(name: WeightName) -> bool {
    matches!(name, WeightName::Layer(_, LayerWeight::OProj | LayerWeight::DownProj))
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect()
}
