//! The tensors of weight files, read row by row.

use std::cell::RefCell;
use std::collections::BTreeMap;

use mesh::{Matrix, MeshError};

use super::dequant::Encoding;
use super::pieces::Pieces;
use super::{CheckpointError, WeightFile};

/// Encoded bytes that are read at once; a longer row is read whole.
const READ_BYTES: usize = 1 << 18;

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredTensor {
    pub(super) place: Place,
    /// Bytes of its values.
    pub(super) num_bytes: u64,
    /// Format of the values.
    pub(super) encoding: Encoding,
    /// Outermost first: `[rows, cols]`, or `[cols]` for a norm gain.
    pub(super) shape: Vec<u64>,
}

/// Where a tensor's values lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// One after the other, in row-major order.
    Packed {
        /// Index of the file.
        file: usize,
        /// First byte in the file.
        offset: u64,
    },
    /// In several files, or apart from each other.
    Pieces(Pieces),
}

/// All tensors of a checkpoint, by the name that it gives them.
#[derive(Debug, Default)]
pub(super) struct TensorStore {
    pub(super) files: Vec<WeightFile>,
    pub(super) tensors: BTreeMap<String, StoredTensor>,
}

impl StoredTensor {
    /// Index of the file, or of the first one.
    pub(super) fn file(&self) -> usize {
        match &self.place {
            Place::Packed { file, .. } => *file,
            Place::Pieces(pieces) => pieces.pieces[0].file,
        }
    }
}

impl TensorStore {
    /// Bytes of a tensor's values in row-major order, from `start`.
    pub(super) fn read_bytes(
        &self,
        tensor: &StoredTensor,
        start: u64,
        out: &mut [u8],
    ) -> Result<(), CheckpointError> {
        match &tensor.place {
            Place::Packed { file, offset } => self.files[*file].read_at(offset + start, out),
            Place::Pieces(pieces) => pieces.read_bytes(&self.files, start, out),
        }
    }
}

/// Order of a matrix's rows in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowOrder {
    /// As they are wanted.
    AsStored,
    /// Heads of this many rows, whose first half holds the first channel of
    /// every rotated pair, and the second half the second.
    HalfSplit { head_dim: usize },
}

impl RowOrder {
    /// Where row `row` is stored.
    pub(super) fn stored_row(self, row: usize) -> usize {
        match self {
            Self::AsStored => row,
            Self::HalfSplit { head_dim } => {
                let (head, channel) = (row / head_dim, row % head_dim);
                head * head_dim + channel / 2 + channel % 2 * (head_dim / 2)
            }
        }
    }
}

/// A weight of a checkpoint, decoded while it is read. Rows of q and k come in
/// interleaved order, whatever the file's.
#[derive(Debug)]
pub struct TensorMatrix<'a> {
    name: String,
    files: &'a [WeightFile],
    tensor: &'a StoredTensor,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    order: RowOrder,
}

impl<'a> TensorMatrix<'a> {
    /// The tensor `name` as `[rows, cols]`.
    pub(super) fn new(
        store: &'a TensorStore,
        name: String,
        [rows, cols]: [usize; 2],
        order: RowOrder,
    ) -> Result<Self, CheckpointError> {
        let Some(tensor) = store.tensors.get(&name) else {
            return Err(CheckpointError::MissingTensor { name, expected: vec![rows, cols] });
        };
        let stored: &[u64] = &tensor.shape;
        let fits = match *stored {
            [c] => rows == 1 && c == cols as u64,
            [r, c] => r == rows as u64 && c == cols as u64,
            _ => false,
        };
        if !fits {
            let (found, expected) = (stored.to_vec(), vec![rows, cols]);
            return Err(CheckpointError::WrongShape { name, found, expected });
        }
        let row_bytes = tensor.encoding.row_bytes(cols).ok_or_else(|| {
            let message =
                format!("rows of {cols} values are not whole blocks of {}", tensor.encoding);
            CheckpointError::WrongData { name: name.clone(), message }
        })?;
        if Some(tensor.num_bytes) != (row_bytes as u64).checked_mul(rows as u64) {
            let message = format!(
                "{} bytes for [{rows}, {cols}] values of {}",
                tensor.num_bytes, tensor.encoding
            );
            return Err(CheckpointError::WrongData { name, message });
        }
        Ok(Self { name, files: &store.files, tensor, rows, cols, row_bytes, order })
    }

    /// Bytes that the tensor takes in the file.
    pub fn source_bytes(&self) -> u64 {
        self.tensor.num_bytes
    }

    /// Reads and decodes rows that lie next to each other in the file.
    fn read_stored(
        &self,
        first: usize,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), CheckpointError> {
        let Scratch { rows, pieces: scratch } = scratch;
        rows.resize(out.len() / self.cols * self.row_bytes, 0);
        match &self.tensor.place {
            Place::Packed { file, offset } => {
                self.files[*file].read_at(offset + first as u64 * self.row_bytes as u64, rows)?;
            }
            Place::Pieces(pieces) => pieces.read_rows(self.files, first, rows, scratch)?,
        }
        self.tensor.encoding.decode(rows, out);
        Ok(())
    }
}

/// Encoded bytes on their way, of no more than [`READ_BYTES`] or a row.
#[derive(Debug)]
struct Scratch {
    rows: Vec<u8>,
    pieces: Vec<u8>,
}

thread_local! {
    /// Kept, since a load reads many rows.
    static SCRATCH: RefCell<Scratch> =
        const { RefCell::new(Scratch { rows: Vec::new(), pieces: Vec::new() }) };
}

impl Matrix for TensorMatrix<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) -> Result<(), MeshError> {
        let num_rows = out.len() / self.cols;
        assert!(
            out.len().is_multiple_of(self.cols) && first_row + num_rows <= self.rows,
            "{} values from row {first_row} of {} [{}, {}]",
            out.len(),
            self.name,
            self.rows,
            self.cols
        );
        let rows_at_once = match self.order {
            RowOrder::AsStored => (READ_BYTES / self.row_bytes).max(1),
            RowOrder::HalfSplit { .. } => 1,
        };
        SCRATCH.with_borrow_mut(|scratch| {
            let mut row = first_row;
            for piece in out.chunks_mut(rows_at_once * self.cols) {
                self.read_stored(self.order.stored_row(row), piece, scratch).map_err(|error| {
                    MeshError::Source { name: self.name.clone(), message: error.to_string() }
                })?;
                row += rows_at_once;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pairs_of_a_half_split_head_come_next_to_each_other() {
        let order = RowOrder::HalfSplit { head_dim: 4 };
        let stored: Vec<_> = (0..8).map(|row| order.stored_row(row)).collect();
        assert_eq!(stored, [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(RowOrder::AsStored.stored_row(5), 5);
    }

    proptest! {
        #[test]
        fn half_split_order_permutes_the_rows_of_each_head(
            half in 1_usize..65, num_heads in 1_usize..9,
        ) {
            let head_dim = 2 * half;
            let order = RowOrder::HalfSplit { head_dim };
            let mut seen = vec![false; num_heads * head_dim];
            for row in 0..num_heads * head_dim {
                let stored = order.stored_row(row);
                prop_assert_eq!(stored / head_dim, row / head_dim);
                prop_assert!(!std::mem::replace(&mut seen[stored], true));
                // Partners of a rotation are half a head apart in the file.
                if row % 2 == 0 {
                    prop_assert_eq!(order.stored_row(row + 1), stored + half);
                }
            }
        }
    }
}
