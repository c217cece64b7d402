//! Loading: each chip's slice of a matrix, from its source straight into the
//! kernels' packed form. No whole matrix ever exists in f32.

use std::fmt;

use kernels::{Format, PackedMatrix, Pool};
use mesh::{DType, Matrix, MeshError};

use crate::chip::Chips;

/// A weight on the chips.
pub struct Weight(pub(crate) Storage);

pub(crate) enum Storage {
    /// A norm gain, f32, the same on every chip.
    Gain(Vec<f32>),
    /// One slice of a linear layer or of an embedding table per chip, in rank
    /// order.
    Shards(Vec<PackedMatrix>),
}

impl Weight {
    /// # Panics
    /// When this is not a norm gain: a bug in the graph.
    pub(crate) fn gain(&self) -> &[f32] {
        match &self.0 {
            Storage::Gain(gain) => gain,
            Storage::Shards(_) => panic!("a norm needs a gain of one row, got {self:?}"),
        }
    }

    /// # Panics
    /// When this is not a sharded matrix: a bug in the graph.
    pub(crate) fn shards(&self) -> &[PackedMatrix] {
        match &self.0 {
            Storage::Shards(shards) => shards,
            Storage::Gain(_) => panic!("a sharded matrix is needed, got {self:?}"),
        }
    }

    /// Memory taken, all chips together.
    pub fn bytes(&self) -> usize {
        match &self.0 {
            Storage::Gain(gain) => size_of_val(gain.as_slice()),
            Storage::Shards(shards) => shards.iter().map(PackedMatrix::bytes).sum(),
        }
    }
}

impl fmt::Debug for Weight {
    /// Shape only: the values are megabytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Storage::Gain(gain) => write!(f, "Gain[{}]", gain.len()),
            Storage::Shards(shards) => {
                write!(f, "Shards[{} x [{}, {}]]", shards.len(), shards[0].n(), shards[0].k())
            }
        }
    }
}

pub(crate) fn format_of(dtype: DType) -> Format {
    match dtype {
        DType::F32 => Format::F32,
        DType::Bf16 => Format::Bf16,
        DType::Bfp8 => Format::Bfp8,
        DType::Bfp4 => Format::Bfp4,
    }
}

/// See [`mesh::Mesh::load_column_parallel`].
pub(crate) fn column_parallel(
    pool: &Pool,
    chips: Chips,
    parts: &[&dyn Matrix],
    dtype: DType,
) -> Result<Weight, MeshError> {
    let first = parts.first().expect("a column-parallel weight has at least one part");
    let cols = first.cols();
    let mut shares = Vec::with_capacity(parts.len());
    for part in parts {
        if part.cols() != cols {
            return Err(MeshError::DoesNotFit(format!(
                "{} has {} input channels, {} has {cols}; fused parts need the same",
                part.name(),
                part.cols(),
                first.name(),
            )));
        }
        shares.push(chips.share(part.name(), "output channels", part.rows())?);
    }
    let rows = shares.iter().sum();
    let shards = chips
        .ranks()
        .map(|rank| {
            let stack: Vec<Slice<'_>> = parts
                .iter()
                .zip(&shares)
                .map(|(&matrix, &rows)| Slice { matrix, first_row: rank * rows, rows })
                .collect();
            PackedMatrix::pack(pool, format_of(dtype), [rows, cols], &|first_row, out| {
                read_stack(&stack, first_row, out)
            })
        })
        .collect::<Result<_, MeshError>>()?;
    Ok(Weight(Storage::Shards(shards)))
}

/// See [`mesh::Mesh::load_row_parallel`].
pub(crate) fn row_parallel(
    pool: &Pool,
    chips: Chips,
    matrix: &dyn Matrix,
    dtype: DType,
) -> Result<Weight, MeshError> {
    by_columns(pool, chips, matrix, "input channels", dtype)
}

/// See [`mesh::Mesh::load_embedding`].
pub(crate) fn embedding(
    pool: &Pool,
    chips: Chips,
    table: &dyn Matrix,
    dtype: DType,
) -> Result<Weight, MeshError> {
    by_columns(pool, chips, table, "channels", dtype)
}

/// Chip `c` gets the `c`-th slice of the columns of every row.
fn by_columns(
    pool: &Pool,
    chips: Chips,
    matrix: &dyn Matrix,
    axis: &str,
    dtype: DType,
) -> Result<Weight, MeshError> {
    let share = chips.share(matrix.name(), axis, matrix.cols())?;
    let shards = chips
        .ranks()
        .map(|rank| {
            let columns = rank * share..(rank + 1) * share;
            PackedMatrix::pack(pool, format_of(dtype), [matrix.rows(), share], &|first_row, out| {
                matrix.read_columns(first_row, columns.clone(), out)
            })
        })
        .collect::<Result<_, MeshError>>()?;
    Ok(Weight(Storage::Shards(shards)))
}

/// See [`mesh::Mesh::load_gain`].
pub(crate) fn gain(matrix: &dyn Matrix) -> Result<Weight, MeshError> {
    if matrix.rows() != 1 {
        return Err(MeshError::DoesNotFit(format!(
            "{} has {} rows, a norm gain has 1",
            matrix.name(),
            matrix.rows()
        )));
    }
    let mut gain = vec![0.0; matrix.cols()];
    matrix.read_rows(0, &mut gain)?;
    Ok(Weight(Storage::Gain(gain)))
}

/// One chip's rows of one part.
struct Slice<'a> {
    matrix: &'a dyn Matrix,
    first_row: usize,
    rows: usize,
}

/// Reads whole rows of slices that lie one below another.
fn read_stack(
    stack: &[Slice<'_>],
    first_row: usize,
    mut out: &mut [f32], // [rows, cols]
) -> Result<(), MeshError> {
    let mut skip = first_row;
    for slice in stack {
        if skip >= slice.rows {
            skip -= slice.rows;
            continue;
        }
        let wanted = out.len() / slice.matrix.cols();
        let here = wanted.min(slice.rows - skip);
        let (rows, rest) = out.split_at_mut(here * slice.matrix.cols());
        slice.matrix.read_rows(slice.first_row + skip, rows)?;
        out = rest;
        skip = 0;
        if out.is_empty() {
            break;
        }
    }
    assert!(out.is_empty(), "the packer asked for rows past the end");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh::DenseMatrix;

    /// `[rows, cols]` whose value names its place: `base + 100·row + col`.
    fn numbered(name: &str, base: f32, rows: usize, cols: usize) -> DenseMatrix {
        let values = (0..rows * cols).map(|i| base + (100 * (i / cols) + i % cols) as f32);
        DenseMatrix::new(name, cols, values.collect())
    }

    fn rows_of(packed: &PackedMatrix) -> Vec<Vec<f32>> {
        let mut row = vec![0.0; packed.k()];
        (0..packed.n())
            .map(|n| {
                packed.row(n, &mut row);
                row.clone()
            })
            .collect()
    }

    #[test]
    fn every_chip_gets_its_slice_of_every_part_in_order() {
        let (a, b) = (numbered("a", 0.0, 4, 3), numbered("b", 5000.0, 2, 3));
        let chips = Chips::new(2).unwrap();
        let weight = column_parallel(&Pool::new(2), chips, &[&a, &b], DType::F32).unwrap();
        let first_cols: Vec<Vec<f32>> = weight
            .shards()
            .iter()
            .map(|shard| rows_of(shard).iter().map(|row| row[0]).collect())
            .collect();
        assert_eq!(first_cols, [[0.0, 100.0, 5000.0], [200.0, 300.0, 5100.0]]);
    }

    #[test]
    fn reading_may_start_and_stop_inside_any_part() {
        let (a, b, c) =
            (numbered("a", 0.0, 3, 2), numbered("b", 1000.0, 4, 2), numbered("c", 2000.0, 5, 2));
        let stack = [
            Slice { matrix: &a, first_row: 1, rows: 2 },
            Slice { matrix: &b, first_row: 0, rows: 3 },
            Slice { matrix: &c, first_row: 2, rows: 2 },
        ];
        let mut whole = vec![0.0; 14];
        read_stack(&stack, 0, &mut whole).unwrap();
        assert_eq!(
            whole.iter().step_by(2).copied().collect::<Vec<_>>(),
            [100.0, 200.0, 1000.0, 1100.0, 1200.0, 2200.0, 2300.0]
        );
        for first in 0..7 {
            for last in first..=7 {
                let mut some = vec![0.0; 2 * (last - first)];
                read_stack(&stack, first, &mut some).unwrap();
                assert_eq!(some, whole[2 * first..2 * last], "rows {first}..{last}");
            }
        }
    }

    #[test]
    fn a_row_parallel_chip_gets_its_columns_of_every_row() {
        let cols = 24;
        let matrix = numbered("w", 0.0, 40, cols);
        let weight =
            row_parallel(&Pool::new(2), Chips::new(2).unwrap(), &matrix, DType::F32).unwrap();
        for (rank, shard) in weight.shards().iter().enumerate() {
            for (r, row) in rows_of(shard).iter().enumerate() {
                assert_eq!(row.len(), cols / 2);
                let first = (100 * r + rank * cols / 2) as f32;
                assert_eq!((row[0], row[cols / 2 - 1]), (first, first + (cols / 2 - 1) as f32));
            }
        }
    }

    #[test]
    fn what_does_not_divide_is_refused_by_name() {
        let chips = Chips::new(2).unwrap();
        let odd = numbered("model.odd", 0.0, 3, 5);
        for error in [
            column_parallel(&Pool::new(2), chips, &[&odd], DType::F32).unwrap_err(),
            row_parallel(&Pool::new(2), chips, &odd, DType::F32).unwrap_err(),
        ] {
            let MeshError::DoesNotFit(message) = error else { panic!("{error:?}") };
            assert!(message.contains("model.odd") && message.contains("2 chips"), "{message}");
        }
    }

    #[test]
    fn a_source_that_fails_fails_the_load() {
        struct Broken;
        impl Matrix for Broken {
            fn name(&self) -> &str {
                "broken"
            }
            fn rows(&self) -> usize {
                4
            }
            fn cols(&self) -> usize {
                4
            }
            fn read_rows(&self, _: usize, _: &mut [f32]) -> Result<(), MeshError> {
                Err(MeshError::Source { name: "broken".into(), message: "gone".into() })
            }
        }
        let chips = Chips::new(2).unwrap();
        for result in [
            column_parallel(&Pool::new(2), chips, &[&Broken], DType::F32),
            row_parallel(&Pool::new(2), chips, &Broken, DType::F32),
            embedding(&Pool::new(2), chips, &Broken, DType::F32),
        ] {
            assert!(matches!(result, Err(MeshError::Source { .. })));
        }
    }
}
