//! The weights that a Meta directory's `consolidated.*.pth` make up, as bytes.

use std::path::Path;

use super::dequant::Encoding;
use super::fingerprint::samples;
use super::storage::{Place, StoredTensor, TensorStore};
use super::{CheckpointError, meta};
use crate::config::LlamaConfig;
use crate::names::WeightName;
use crate::pth::{PthDtype, PthFile};

/// All text weights, put together from however many files there are.
#[derive(Debug)]
pub(crate) struct Consolidated {
    config: LlamaConfig,
    store: TensorStore,
}

impl Consolidated {
    /// Opens the directory and checks that all weights are there, each in the
    /// shape that `params.json` gives it. `layers_*.pth` files are not looked at.
    pub(crate) fn open(directory: &Path) -> Result<Self, CheckpointError> {
        let (config, store) = meta::open_consolidated(directory)?;
        Ok(Self { config, store })
    }

    pub(crate) fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Type and shape of a weight as a whole.
    pub(crate) fn header(&self, name: WeightName) -> Result<(PthDtype, &[u64]), CheckpointError> {
        let tensor = self.tensor(name)?;
        let dtype = match tensor.encoding {
            Encoding::Bf16 => PthDtype::Bf16,
            Encoding::F16 => PthDtype::F16,
            Encoding::F32 => PthDtype::F32,
            other => {
                let (name, found) = (name.meta(), other.to_string());
                return Err(CheckpointError::UnsupportedType { name, found });
            }
        };
        Ok((dtype, &tensor.shape))
    }

    /// Reads a weight from its first value to its last, in pieces of whole rows
    /// of about `piece_bytes` bytes.
    pub(crate) fn read<E: From<CheckpointError>>(
        &self,
        name: WeightName,
        piece_bytes: usize,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let tensor = self.tensor(name)?;
        let [rows, cols] = name.shape(&self.config);
        let row_bytes = (tensor.num_bytes / rows as u64) as usize;
        debug_assert!(row_bytes >= cols, "a value has at least a byte");
        let rows_at_once = (piece_bytes / row_bytes).clamp(1, rows);
        let mut piece = vec![0; rows_at_once * row_bytes];
        let mut scratch = Vec::new();
        for first in (0..rows).step_by(rows_at_once) {
            let piece = &mut piece[..rows_at_once.min(rows - first) * row_bytes];
            match &tensor.place {
                Place::Packed { file, offset } => {
                    let start = offset + first as u64 * row_bytes as u64;
                    self.store.files[*file].read_at(start, piece)?;
                }
                Place::Pieces(pieces) => {
                    pieces.read_rows(&self.store.files, first, piece, &mut scratch)?;
                }
            }
            take(piece)?;
        }
        Ok(())
    }

    /// True when the contiguous tensor `name` of `file` has the values of this
    /// weight, as far as eight samples of 4 KiB tell.
    pub(crate) fn is_sampled_in(
        &self,
        name: WeightName,
        file: &PthFile,
    ) -> Result<bool, CheckpointError> {
        let tensor = self.tensor(name)?;
        let Some(other) = file.tensors().get(&name.meta()) else { return Ok(false) };
        let (mut here, mut there) = (Vec::new(), Vec::new());
        for (start, len) in samples(tensor.num_bytes) {
            here.resize(len as usize, 0);
            there.resize(len as usize, 0);
            self.store.read_bytes(tensor, start, &mut here)?;
            file.read_at(other.offset + start, &mut there)?;
            if here != there {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Checks that no file has changed since it was opened.
    pub(crate) fn verify_unchanged(&self) -> Result<(), CheckpointError> {
        self.store.files.iter().try_for_each(super::WeightFile::verify_unchanged)
    }

    fn tensor(&self, name: WeightName) -> Result<&StoredTensor, CheckpointError> {
        self.store.tensors.get(&name.meta()).ok_or_else(|| CheckpointError::MissingTensor {
            name: name.meta(),
            expected: name.shape(&self.config).to_vec(),
        })
    }
}
