//! Weights on the chips, and how they get there: transposed, cut, padded.

use std::fmt;
use std::num::NonZero;
use std::ops::Range;

use half::bf16;
use mesh::{DType, Matrix, MeshError};

use crate::layout::LinearShape;
use crate::spec::{DataType, HostData, HostMatrix, Layout, Spread, TILE};

/// A weight on the chips.
pub enum Weight<T> {
    /// A matrix, or several with the same input.
    Linear(Vec<Linear<T>>),
    /// Rows by token id.
    Embedding(T),
    /// Of a norm.
    Gain(Gain<T>),
}

/// A matrix `[k, n]` on every chip.
#[derive(Debug)]
pub struct Linear<T> {
    pub(crate) tensor: T,
    pub(crate) shape: LinearShape,
    /// What a prompt's result is stored as.
    pub(crate) prefill_result: DataType,
}

/// A norm's gain `[width]`.
#[derive(Debug)]
pub struct Gain<T> {
    /// All of it on every chip.
    pub(crate) whole: T,
    /// Each chip its own channels, where rows are normalised part by part.
    pub(crate) cut: Option<T>,
    pub(crate) width: usize,
}

impl<T> Weight<T> {
    pub(crate) fn linear(&self) -> &[Linear<T>] {
        let Self::Linear(matrices) = self else { panic!("the graph multiplies by a matrix") };
        matrices
    }

    pub(crate) fn embedding(&self) -> &T {
        let Self::Embedding(table) = self else { panic!("the graph embeds by a table") };
        table
    }

    pub(crate) fn gain(&self) -> &Gain<T> {
        let Self::Gain(gain) = self else { panic!("the graph normalises by a gain") };
        gain
    }
}

impl<T> fmt::Debug for Weight<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linear(_) => "Linear",
            Self::Embedding(_) => "Embedding",
            Self::Gain(_) => "Gain",
        })
    }
}

/// Output channels of one part of a projection: some of its rows.
pub(crate) struct Piece<'a> {
    pub(crate) matrix: &'a dyn Matrix,
    pub(crate) rows: Range<usize>,
}

/// Refuses what does not divide into whole tiles on every chip.
pub(crate) fn check_cut(
    name: &str,
    what: &str,
    size: usize,
    num_chips: usize,
) -> Result<usize, MeshError> {
    if size > 0 && size.is_multiple_of(TILE * num_chips) {
        return Ok(size / num_chips);
    }
    let multiple = TILE * num_chips;
    Err(MeshError::DoesNotFit(format!(
        "{name} has {size} {what}, must be a multiple of {multiple}: whole tiles of {TILE} on each \
         of {num_chips} chips"
    )))
}

/// `[1, 1, k, n]` of pieces whose rows are the columns, side by side in order,
/// as `dtype` on the chips. Reads and turns with all threads of this machine.
///
/// # Errors
/// When a piece cannot be read.
pub(crate) fn transposed(
    pieces: &[Piece<'_>],
    dtype: DType,
    spread: Spread,
) -> Result<HostMatrix, MeshError> {
    let k = pieces[0].matrix.cols();
    let n = pieces.iter().map(|piece| piece.rows.len()).sum();
    let rows = read(pieces, k, n)?;
    let mut values = vec![bf16::ZERO; k * n];
    let chunk = k.div_ceil(num_threads()).max(1);
    std::thread::scope(|scope| {
        for (idx, columns) in values.chunks_mut(chunk * n).enumerate() {
            let rows = &rows;
            scope.spawn(move || transpose(rows, [k, n], idx * chunk, columns));
        }
    });
    Ok(HostMatrix {
        shape: [1, 1, k, n],
        rank: 4,
        data: HostData::BFloat16(values),
        dtype: dtype.into(),
        layout: Layout::Tile,
        spread,
    })
}

/// Rows `[n, k]` of all pieces as bf16: the nearest, an even one on a tie, which
/// for a checkpoint in bf16 is the value itself.
fn read(pieces: &[Piece<'_>], k: usize, n: usize) -> Result<Vec<bf16>, MeshError> {
    let mut values = vec![bf16::ZERO; n * k];
    let mut rest = values.as_mut_slice();
    for Piece { matrix, rows } in pieces {
        let (own, others) = std::mem::take(&mut rest).split_at_mut(rows.len() * k);
        rest = others;
        read_rows(*matrix, rows.start, own)?;
    }
    Ok(values)
}

/// `out.len() / cols` rows of `matrix` from `first_row`, in parallel.
fn read_rows(matrix: &dyn Matrix, first_row: usize, out: &mut [bf16]) -> Result<(), MeshError> {
    let cols = matrix.cols();
    let chunk = (out.len() / cols).div_ceil(num_threads()).max(1);
    std::thread::scope(|scope| {
        let readers: Vec<_> = out
            .chunks_mut(chunk * cols)
            .enumerate()
            .map(|(idx, out)| {
                scope.spawn(move || {
                    // A few rows at a time: they are decoded in the cache.
                    let at_once = (64 * 1024 / cols).max(1);
                    let mut decoded = vec![0.0; at_once * cols];
                    let mut row = first_row + idx * chunk;
                    for out in out.chunks_mut(at_once * cols) {
                        let decoded = &mut decoded[..out.len()];
                        matrix.read_rows(row, decoded)?;
                        for (out, value) in out.iter_mut().zip(decoded.iter()) {
                            *out = bf16::from_f32(*value);
                        }
                        row += out.len() / cols;
                    }
                    Ok(())
                })
            })
            .collect();
        readers.into_iter().try_for_each(|reader| {
            reader.join().unwrap_or_else(|_| {
                let message = "reading it panicked".to_owned();
                Err(MeshError::Source { name: matrix.name().to_owned(), message })
            })
        })
    })
}

/// Columns `first..` of `rows [n, k]` as rows of `n`.
fn transpose(rows: &[bf16], [k, n]: [usize; 2], first: usize, out: &mut [bf16]) {
    // Blocks of both fit the cache.
    const BLOCK: usize = 32;
    let num_columns = out.len() / n;
    for row in (0..n).step_by(BLOCK) {
        for column in (0..num_columns).step_by(BLOCK) {
            for column in column..(column + BLOCK).min(num_columns) {
                for row in row..(row + BLOCK).min(n) {
                    out[column * n + row] = rows[row * k + first + column];
                }
            }
        }
    }
}

/// `[1, 1, rows, cols]` as it is, row by row: an embedding table.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn row_major(matrix: &dyn Matrix, spread: Spread) -> Result<HostMatrix, MeshError> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let values = read(&[Piece { matrix, rows: 0..rows }], cols, rows)?;
    Ok(HostMatrix {
        shape: [1, 1, rows, cols],
        rank: 4,
        data: HostData::BFloat16(values),
        dtype: DataType::BFloat16,
        layout: Layout::RowMajor,
        spread,
    })
}

/// A gain as norms take it: `[1, 1, width / 32, 32]`.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn gain(matrix: &dyn Matrix, spread: Spread) -> Result<HostMatrix, MeshError> {
    let flat = row_major(matrix, spread)?;
    Ok(HostMatrix { shape: [1, 1, matrix.cols() / TILE, TILE], ..flat })
}

/// Threads that prepare weights: all of this machine.
pub(crate) fn num_threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh::DenseMatrix;

    #[test]
    fn pieces_become_columns_side_by_side() {
        let values = |first: usize, n: usize| (first..first + n).map(|v| v as f32).collect();
        let a = DenseMatrix::new("a", 3, values(0, 12)); // 4 rows
        let b = DenseMatrix::new("b", 3, values(100, 6)); // 2 rows
        let pieces = [
            Piece { matrix: &a, rows: 2..4 },
            Piece { matrix: &b, rows: 0..1 },
            Piece { matrix: &a, rows: 0..1 },
        ];
        let matrix = transposed(&pieces, DType::Bfp8, Spread::Cut(3)).unwrap();
        assert_eq!((matrix.shape, matrix.dtype), ([1, 1, 3, 4], DataType::BFloat8B));
        let HostData::BFloat16(found) = matrix.data else { panic!("bf16") };
        let found: Vec<f32> = found.into_iter().map(f32::from).collect();
        assert_eq!(found, [6., 9., 100., 0., 7., 10., 101., 1., 8., 11., 102., 2.]);
    }

    #[test]
    fn a_large_matrix_is_turned_whole() {
        let (n, k) = (97, 130);
        let matrix = DenseMatrix::new("m", k, (0..n * k).map(|v| (v % 251) as f32).collect());
        let turned =
            transposed(&[Piece { matrix: &matrix, rows: 0..n }], DType::Bf16, Spread::Replicated);
        let HostData::BFloat16(found) = turned.unwrap().data else { panic!("bf16") };
        for row in 0..n {
            for column in 0..k {
                let want = ((row * k + column) % 251) as f32;
                assert_eq!(f32::from(found[column * n + row]), want, "{row} {column}");
            }
        }
    }

    #[test]
    fn what_is_not_whole_tiles_is_refused_with_its_numbers() {
        assert_eq!(check_cut("w", "output channels", 512, 8).unwrap(), 64);
        for size in [0, 48, 128] {
            let error = check_cut("w", "output channels", size, 8).unwrap_err().to_string();
            for part in ["w has", &size.to_string(), "256", "8 chips"] {
                assert!(error.contains(part), "{error}");
            }
        }
    }
}
