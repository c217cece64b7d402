//! Host-side weight matrices, as a mesh reads them while loading.

use std::ops::Range;

use crate::MeshError;

/// A matrix `[rows, cols]` that can be read piece by piece, so that a load
/// never holds a whole model in host memory. Rows are output channels.
pub trait Matrix: Sync {
    /// Name in the checkpoint, for errors.
    fn name(&self) -> &str;
    /// Output channels.
    fn rows(&self) -> usize;
    /// Input channels.
    fn cols(&self) -> usize;
    /// Decodes `out.len() / cols()` whole rows, starting at `first_row`, to f32.
    ///
    /// # Errors
    /// When the source cannot be read.
    ///
    /// # Panics
    /// When the range is out of bounds or `out` is not whole rows.
    fn read_rows(&self, first_row: usize, out: &mut [f32]) -> Result<(), MeshError>;

    /// Decodes `columns` of `out.len() / columns.len()` rows, starting at
    /// `first_row`: one chip's slice. By way of whole rows, unless the source
    /// can do with less.
    ///
    /// # Errors
    /// As [`Matrix::read_rows`].
    ///
    /// # Panics
    /// As [`Matrix::read_rows`], or when there are no such columns.
    fn read_columns(
        &self,
        first_row: usize,
        columns: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), MeshError> {
        if columns == (0..self.cols()) {
            return self.read_rows(first_row, out);
        }
        let mut whole = vec![0.0; self.cols()];
        for (row, out) in (first_row..).zip(out.chunks_exact_mut(columns.len())) {
            self.read_rows(row, &mut whole)?;
            out.copy_from_slice(&whole[columns.clone()]);
        }
        Ok(())
    }
}

/// A matrix in memory: tests and derived weights.
#[derive(Debug, Clone)]
pub struct DenseMatrix {
    name: String,
    cols: usize,
    values: Vec<f32>,
}

impl DenseMatrix {
    /// Row-major `values`.
    ///
    /// # Panics
    /// When `values` is not whole rows.
    pub fn new(name: impl Into<String>, cols: usize, values: Vec<f32>) -> Self {
        assert!(cols > 0 && values.len().is_multiple_of(cols), "values must be whole rows");
        Self { name: name.into(), cols, values }
    }
}

impl Matrix for DenseMatrix {
    fn name(&self) -> &str {
        &self.name
    }

    fn rows(&self) -> usize {
        self.values.len() / self.cols
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) -> Result<(), MeshError> {
        let start = first_row * self.cols;
        out.copy_from_slice(&self.values[start..start + out.len()]);
        Ok(())
    }
}
