//! A matrix that lies in several pieces: shards of one weight in several files,
//! or a view whose rows or values do not follow each other.
//!
//! Nothing is put together beforehand: a few rows are collected at a time, by
//! position, in memory that the caller bounds.

use super::{CheckpointError, WeightFile};

/// Along what pieces are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Axis {
    /// One piece's rows come after another's.
    Rows,
    /// Every row goes through all pieces in turn.
    Cols,
}

/// A matrix in one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// Index of the file.
    pub(super) file: usize,
    /// First byte of the first value.
    pub(super) offset: u64,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Bytes from a row to the next.
    pub(super) row_stride: u64,
    /// Bytes from a value of a row to the next.
    pub(super) col_stride: u64,
}

/// Pieces of equal width or height, and the bytes of one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pieces {
    pub(super) axis: Axis,
    pub(super) value_bytes: usize,
    pub(super) pieces: Vec<Piece>,
}

impl Pieces {
    fn row_bytes(&self) -> usize {
        let cols: usize = match self.axis {
            Axis::Rows => self.pieces[0].cols,
            Axis::Cols => self.pieces.iter().map(|piece| piece.cols).sum(),
        };
        cols * self.value_bytes
    }

    /// Collects whole rows from `first_row`, as many as `out` holds.
    pub(super) fn read_rows(
        &self,
        files: &[WeightFile],
        first_row: usize,
        out: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<(), CheckpointError> {
        let pitch = self.row_bytes();
        let num_rows = out.len() / pitch;
        let mut block = Block { pitch, value_bytes: self.value_bytes, scratch };
        // Rows or bytes of a row that earlier pieces have.
        let mut before = 0;
        for piece in &self.pieces {
            let file = &files[piece.file];
            match self.axis {
                Axis::Rows => {
                    let from = first_row.clamp(before, before + piece.rows);
                    let to = (first_row + num_rows).clamp(before, before + piece.rows);
                    if from < to {
                        let out = &mut out[(from - first_row) * pitch..][..(to - from) * pitch];
                        block.read(file, piece, from - before, out)?;
                    }
                    before += piece.rows;
                }
                Axis::Cols => {
                    block.read(file, piece, first_row, &mut out[before..])?;
                    before += piece.cols * self.value_bytes;
                }
            }
        }
        Ok(())
    }

    /// Bytes of the matrix as it would lie in one piece, from `start`.
    pub(super) fn read_bytes(
        &self,
        files: &[WeightFile],
        start: u64,
        out: &mut [u8],
    ) -> Result<(), CheckpointError> {
        let row_bytes = self.row_bytes();
        let (mut row, mut scratch) = (vec![0; row_bytes], Vec::new());
        let mut position = start;
        let mut rest = out;
        while !rest.is_empty() {
            let (index, at) = (position / row_bytes as u64, (position % row_bytes as u64) as usize);
            self.read_rows(files, index as usize, &mut row, &mut scratch)?;
            let (now, later) = rest.split_at_mut(rest.len().min(row_bytes - at));
            now.copy_from_slice(&row[at..][..now.len()]);
            position += now.len() as u64;
            rest = later;
        }
        Ok(())
    }
}

/// Rows of a piece on their way to rows that are `pitch` bytes apart.
struct Block<'a> {
    pitch: usize,
    value_bytes: usize,
    scratch: &'a mut Vec<u8>,
}

impl Block<'_> {
    /// As many rows from `first_row` as start in `out`.
    fn read(
        &mut self,
        file: &WeightFile,
        piece: &Piece,
        first_row: usize,
        out: &mut [u8],
    ) -> Result<(), CheckpointError> {
        let row_bytes = piece.cols * self.value_bytes;
        let num_rows = out.len().div_ceil(self.pitch);
        let start = piece.offset + first_row as u64 * piece.row_stride;
        if piece.col_stride != self.value_bytes as u64 {
            return self.read_columns(file, piece, start, out);
        }
        if piece.row_stride != row_bytes as u64 {
            for (row, out) in out.chunks_mut(self.pitch).enumerate() {
                file.read_at(start + row as u64 * piece.row_stride, &mut out[..row_bytes])?;
            }
            return Ok(());
        }
        if row_bytes == self.pitch {
            return file.read_at(start, out);
        }
        self.scratch.resize(num_rows * row_bytes, 0);
        file.read_at(start, self.scratch)?;
        for (from, to) in self.scratch.chunks(row_bytes).zip(out.chunks_mut(self.pitch)) {
            to[..row_bytes].copy_from_slice(from);
        }
        Ok(())
    }

    /// Rows whose values are apart, such as those of a transposed matrix: a
    /// column at a time, which lies in one piece there.
    fn read_columns(
        &mut self,
        file: &WeightFile,
        piece: &Piece,
        start: u64,
        out: &mut [u8],
    ) -> Result<(), CheckpointError> {
        let width = self.value_bytes;
        let num_rows = out.len().div_ceil(self.pitch);
        self.scratch.resize(num_rows * width, 0);
        for col in 0..piece.cols {
            let start = start + col as u64 * piece.col_stride;
            if piece.row_stride == width as u64 {
                file.read_at(start, self.scratch)?;
            } else {
                for (row, value) in self.scratch.chunks_mut(width).enumerate() {
                    file.read_at(start + row as u64 * piece.row_stride, value)?;
                }
            }
            for (from, to) in self.scratch.chunks(width).zip(out.chunks_mut(self.pitch)) {
                to[col * width..][..width].copy_from_slice(from);
            }
        }
        Ok(())
    }
}
