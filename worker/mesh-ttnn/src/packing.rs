//! Weights as block floats in tiles, packed here with every thread: the package
//! packs with one.
//!
//! The bytes are those of `ttnn`, in the order of its files: the chips' parts
//! one after another, of each its tiles row by row.

use std::io::{self, Write};

use half::bf16;
use kernels::Isa;
use kernels::bfp::{encode_tile, tile_bytes};
use kernels::convert::f32_from_bf16;

use crate::spec::{DataType, HostData, HostMatrix, Layout, Spread, TILE};
use crate::weight::num_threads;

/// What a thread packs at a time: long next to its start, short next to memory.
const BYTES_AT_ONCE: usize = 2 << 20;

/// The block float that `dtype` is, if so.
pub(crate) fn format(dtype: DataType) -> Option<kernels::Format> {
    match dtype {
        DataType::BFloat8B => Some(kernels::Format::Bfp8),
        DataType::BFloat4B => Some(kernels::Format::Bfp4),
        _ => None,
    }
}

/// A matrix, and how it is cut into tiles.
#[derive(Debug, Clone, Copy)]
pub struct Packing<'a> {
    /// `[k, n]` of all chips together.
    values: &'a [bf16],
    columns: usize,
    /// Rows and columns of a chip's part.
    part: [usize; 2],
    num_parts: usize,
    /// From a chip's first row and column to the next chip's.
    step: [usize; 2],
    format: kernels::Format,
}

impl<'a> Packing<'a> {
    /// How `matrix` is packed for `num_chips` chips. None for what is not bf16
    /// values `[1, 1, k, n]` that become block floats in tiles, cut into equal
    /// parts along one of the last two axes, or on every chip.
    pub fn new(matrix: &'a HostMatrix, num_chips: usize) -> Option<Self> {
        let format = format(matrix.dtype)?;
        let HostData::BFloat16(values) = &matrix.data else { return None };
        let [1, 1, rows, columns] = matrix.shape else { return None };
        let is_whole = !values.is_empty() && rows.checked_mul(columns) == Some(values.len());
        if matrix.rank != 4 || matrix.layout != Layout::Tile || !is_whole {
            return None;
        }
        let (part, num_parts, step) = match matrix.spread {
            Spread::Replicated => ([rows, columns], 1, [0, 0]),
            Spread::Cut(2) if rows.is_multiple_of(num_chips) => {
                let rows = rows / num_chips;
                ([rows, columns], num_chips, [rows, 0])
            }
            Spread::Cut(3) if columns.is_multiple_of(num_chips) => {
                let columns = columns / num_chips;
                ([rows, columns], num_chips, [0, columns])
            }
            Spread::Cut(_) => return None,
        };
        Some(Self { values, columns, part, num_parts, step, format })
    }

    /// Length of what is packed: once for all chips where it is the same.
    pub fn num_bytes(&self) -> usize {
        self.num_rows() * self.row_bytes()
    }

    /// Packs all of it into `out`, with a few MiB for each thread in between.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        self.write_with(num_threads(), BYTES_AT_ONCE, out)
    }

    /// Packs with `threads` threads, `at_once` bytes at a time each, while what
    /// was packed before is written.
    fn write_with(&self, threads: usize, at_once: usize, out: &mut impl Write) -> io::Result<()> {
        let rows_at_once = (at_once / self.row_bytes()).max(1);
        let block = (rows_at_once * threads).min(self.num_rows()) * self.row_bytes();
        let (mut packing, mut packed) = (vec![0; block], Vec::with_capacity(block));
        for first in (0..self.num_rows()).step_by(rows_at_once * threads) {
            let rows = (self.num_rows() - first).min(rows_at_once * threads);
            packing.resize(rows * self.row_bytes(), 0);
            std::thread::scope(|scope| {
                let chunks = packing.chunks_mut(rows_at_once * self.row_bytes());
                for (idx, chunk) in chunks.enumerate() {
                    scope.spawn(move || self.pack(first + idx * rows_at_once, chunk));
                }
                out.write_all(&packed)
            })?;
            std::mem::swap(&mut packing, &mut packed);
        }
        out.write_all(&packed)
    }

    /// Rows of tiles of a part.
    fn part_rows(&self) -> usize {
        self.part[0].div_ceil(TILE)
    }

    /// Rows of tiles of all parts.
    fn num_rows(&self) -> usize {
        self.num_parts * self.part_rows()
    }

    /// Bytes of a row of tiles.
    fn row_bytes(&self) -> usize {
        self.part[1].div_ceil(TILE) * tile_bytes(self.format)
    }

    /// Packs whole rows of tiles from `first` of all parts' on.
    fn pack(&self, first: usize, out: &mut [u8]) {
        let isa = Isa::detect();
        let mut tile = [0.0; TILE * TILE];
        for (row, out) in (first..).zip(out.chunks_exact_mut(self.row_bytes())) {
            let part = row / self.part_rows();
            let top = row % self.part_rows() * TILE;
            for (column, out) in out.chunks_exact_mut(tile_bytes(self.format)).enumerate() {
                self.read(part, [top, column * TILE], &mut tile);
                encode_tile(isa, &tile, self.format, out);
            }
        }
    }

    /// The tile of `part` at row and column `at`, zeros beyond the part's end.
    fn read(&self, part: usize, at: [usize; 2], tile: &mut [f32; TILE * TILE]) {
        let [rows, columns] = [0, 1].map(|axis| TILE.min(self.part[axis] - at[axis]));
        if rows * columns < tile.len() {
            tile.fill(0.0);
        }
        let [top, left] = [0, 1].map(|axis| part * self.step[axis] + at[axis]);
        for (row, tile) in tile.chunks_exact_mut(TILE).take(rows).enumerate() {
            let start = (top + row) * self.columns + left;
            let values = &self.values[start..start + columns];
            for (to, value) in tile.iter_mut().zip(values) {
                *to = f32_from_bf16(value.to_bits());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kernels::Format;
    use kernels::bfp::encode_tiles;
    use proptest::prelude::*;

    use super::*;

    fn matrix(rows: usize, columns: usize, dtype: DataType, spread: Spread) -> HostMatrix {
        let mut state = 1u32;
        let value = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bf16::from_bits((state >> 16) as u16)
        };
        HostMatrix {
            shape: [1, 1, rows, columns],
            rank: 4,
            data: HostData::BFloat16((0..rows * columns).map(value).collect()),
            dtype,
            layout: Layout::Tile,
            spread,
        }
    }

    /// One chip's part after another, each packed on its own by one thread.
    fn one_by_one(matrix: &HostMatrix, num_chips: usize, format: Format) -> Vec<u8> {
        let HostData::BFloat16(values) = &matrix.data else { panic!("bf16") };
        let [_, _, rows, columns] = matrix.shape;
        let part = |[top, left]: [usize; 2], [rows, width]: [usize; 2]| {
            let mut part = Vec::new();
            for row in top..top + rows {
                for column in left..left + width {
                    // `to_f32` would change signalling NaNs.
                    let bits = values[row * columns + column].to_bits();
                    part.push(f32_from_bf16(bits));
                }
            }
            encode_tiles(&part, rows, width, format)
        };
        let (high, wide) = (rows / num_chips, columns / num_chips);
        match matrix.spread {
            Spread::Replicated => part([0, 0], [rows, columns]),
            Spread::Cut(2) => {
                (0..num_chips).flat_map(|c| part([c * high, 0], [high, columns])).collect()
            }
            Spread::Cut(_) => {
                (0..num_chips).flat_map(|c| part([0, c * wide], [rows, wide])).collect()
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_number_of_threads_packs_what_one_loop_packs(
            (rows, columns) in (1usize..60, 1usize..60),
            num_chips in 1usize..5,
            spread in prop::sample::select(vec![Spread::Replicated, Spread::Cut(2), Spread::Cut(3)]),
            is_bfp8: bool,
            threads in 1usize..5,
            at_once in 0usize..20_000,
        ) {
            let (dtype, format) = if is_bfp8 {
                (DataType::BFloat8B, Format::Bfp8)
            } else {
                (DataType::BFloat4B, Format::Bfp4)
            };
            let cut = |axis| if spread == Spread::Cut(axis) { num_chips } else { 1 };
            let matrix = matrix(rows * cut(2), columns * cut(3), dtype, spread);
            let packing = Packing::new(&matrix, num_chips).expect("it divides");
            let mut found = Vec::new();
            packing.write_with(threads, at_once, &mut found).expect("memory takes it");
            prop_assert_eq!(found.len(), packing.num_bytes());
            prop_assert!(found == one_by_one(&matrix, num_chips, format));
        }
    }

    #[test]
    fn a_matrix_of_several_pieces_is_packed_whole() {
        let matrix = matrix(1000, 2080, DataType::BFloat8B, Spread::Cut(3));
        let mut found = Vec::new();
        Packing::new(&matrix, 5).unwrap().write(&mut found).unwrap();
        assert!(found == one_by_one(&matrix, 5, Format::Bfp8));
    }

    #[test]
    fn what_is_no_matrix_of_block_floats_is_left_to_the_package() {
        let fine = || matrix(64, 96, DataType::BFloat4B, Spread::Cut(3));
        assert!(Packing::new(&fine(), 3).is_some());
        let others = [
            (HostMatrix { dtype: DataType::BFloat16, ..fine() }, 3),
            (HostMatrix { layout: Layout::RowMajor, ..fine() }, 3),
            (HostMatrix { rank: 2, ..fine() }, 3),
            (HostMatrix { shape: [1, 2, 32, 96], ..fine() }, 3),
            (HostMatrix { shape: [1, 1, 64, 95], ..fine() }, 1),
            (
                HostMatrix { shape: [1, 1, 0, 96], data: HostData::BFloat16(Vec::new()), ..fine() },
                3,
            ),
            (HostMatrix { spread: Spread::Cut(1), ..fine() }, 1),
            (HostMatrix { spread: Spread::Cut(2), ..fine() }, 3),
            (HostMatrix { data: HostData::UInt32(vec![0; 64 * 96]), ..fine() }, 3),
            (fine(), 5),
        ];
        for (matrix, num_chips) in others {
            assert!(Packing::new(&matrix, num_chips).is_none(), "{num_chips} {:?}", matrix.shape);
        }
    }

    #[test]
    fn a_writer_that_fails_ends_the_packing() {
        let matrix = matrix(64, 64, DataType::BFloat8B, Spread::Replicated);
        let packing = Packing::new(&matrix, 1).unwrap();
        let mut short = [0; 1000];
        let error = packing.write_with(1, 0, &mut short.as_mut_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }
}
