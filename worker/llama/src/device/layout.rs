//! What a matrix takes in memory, by how it lies there.

use mesh::DType;

use super::Device;

/// Rows and columns of a tile of `ttnn`.
const TILE: usize = 32;
/// Rows and columns of the squares in which the CPU mesh stores weights.
const SQUARE: usize = 16;

/// How a matrix lies in a chip's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Row by row, without padding: embedding, norm gains, rotary tables.
    RowMajor,
    /// In tiles of 32 × 32, one after another over the DRAM banks.
    Interleaved,
    /// In tiles, each of the 12 DRAM banks with a slice of the columns: they
    /// are padded to a multiple of 384.
    WidthSharded,
    /// In squares of 16 × 16, as the CPU mesh stores them.
    Squares,
}

impl Layout {
    /// `[rows, columns]` with padding.
    pub fn padded(self, [rows, cols]: [usize; 2]) -> [usize; 2] {
        let banks = Device::DRAM_BANKS as usize;
        match self {
            Self::RowMajor => [rows, cols],
            Self::Interleaved => [rows.next_multiple_of(TILE), cols.next_multiple_of(TILE)],
            Self::WidthSharded => {
                [rows.next_multiple_of(TILE), cols.next_multiple_of(banks * TILE)]
            }
            Self::Squares => [rows.next_multiple_of(SQUARE), cols.next_multiple_of(SQUARE)],
        }
    }

    /// Bytes of a matrix `[rows, columns]`, padding included.
    pub fn bytes(self, shape: [usize; 2], dtype: DType) -> u64 {
        let [rows, cols] = self.padded(shape).map(|size| size as u64);
        // One exponent byte for 16 values, and the values themselves. Padded
        // shapes are whole groups of 16; rows without padding are rounded up.
        let values = rows * cols;
        match dtype {
            DType::F32 => 4 * values,
            DType::Bf16 => 2 * values,
            DType::Bfp8 => values + values.div_ceil(16),
            DType::Bfp4 => values.div_ceil(2) + values.div_ceil(16),
        }
    }
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::RowMajor => "row-major",
            Self::Interleaved => "interleaved",
            Self::WidthSharded => "width-sharded",
            Self::Squares => "squares",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tile_has_the_size_that_the_device_gives_it() {
        let tile = |dtype| Layout::Interleaved.bytes([1, 1], dtype);
        assert_eq!(
            [DType::F32, DType::Bf16, DType::Bfp8, DType::Bfp4].map(tile),
            [4096, 2048, 1088, 576]
        );
    }

    #[test]
    fn columns_are_padded_to_whole_tiles_in_every_bank() {
        // Columns of 8B's w1 on 1, 2 and 8 chips; 3B's qkv; 1B's and 8B's w2;
        // 70B's qkv and w1 on 8.
        let cases = [
            (14_336, 14_592),
            (7168, 7296),
            (1792, 1920),
            (5120, 5376),
            (2048, 2304),
            (4096, 4224),
            (1280, 1536),
            (3584, 3840),
        ];
        for (cols, padded) in cases {
            assert_eq!(Layout::WidthSharded.padded([33, cols]), [64, padded]);
        }
    }
}
