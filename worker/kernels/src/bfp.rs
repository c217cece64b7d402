//! Block floats as ttnn packs them on the host, bit for bit.
//!
//! A group of 16 values shares an 8-bit exponent E; each value is a sign and
//! an integer magnitude of 7 bits ([`Format::Bfp8`]) or 3 bits
//! ([`Format::Bfp4`]): (−1)^s · magnitude · 2^(E − 127 − (bits − 1)).

use crate::Isa;
use crate::lanes::{Lanes, simd_entry};
use crate::packed::Format;

/// Values that share an exponent.
pub const GROUP: usize = 16;
/// Rows and columns of a tile.
const TILE: usize = 32;
/// Rows and columns of a face.
const FACE: usize = 16;
/// Groups, and so exponent bytes, of a tile.
const GROUPS_PER_TILE: usize = TILE * TILE / GROUP;

/// Sixteen encoded values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// The shared exponent, biased by 127.
    pub exponent: u8,
    /// Sign above magnitude: `sign << 7 | magnitude` in bfp8, `sign << 3 | magnitude` in bfp4.
    pub codes: [u8; GROUP],
}

/// Bits of a magnitude: 7 or 3.
pub(crate) fn magnitude_bits(format: Format) -> u32 {
    match format {
        Format::Bfp8 => 7,
        Format::Bfp4 => 3,
        Format::F32 | Format::Bf16 => panic!("{format:?} is not a block float"),
    }
}

/// Encodes 16 values: the group's exponent is the largest of the 16, each
/// magnitude is aligned to it (bits shifted out are dropped), rounded to
/// nearest, ties to even, and clamped; the exponent is never raised for a
/// carry. Denormals become 0, and 0 has no sign. With an infinity or a NaN the
/// exponent is 255 and the finite values are lost.
///
/// # Panics
/// If `format` is not a block float.
#[inline(always)]
#[must_use]
pub fn encode_group(format: Format, values: &[f32; GROUP]) -> Group {
    let bits = magnitude_bits(format);
    let exponent = values.iter().fold(0, |max, value| max.max((value.to_bits() >> 23) & 0xff));
    let mut codes = [0; GROUP];
    for (code, value) in codes.iter_mut().zip(values) {
        let value = value.to_bits();
        let own_exponent = (value >> 23) & 0xff;
        let significand = if own_exponent == 0 { 0 } else { (value & 0x7f_ffff) | 0x80_0000 };
        let aligned = significand >> (exponent - own_exponent).min(31);
        let shift = 24 - bits;
        let kept = aligned >> shift;
        // Half minus one, plus one if odd: carries exactly when nearest-even rounds up.
        let rounded = (aligned + (1 << (shift - 1)) - 1 + (kept & 1)) >> shift;
        let magnitude = rounded.min((1 << bits) - 1);
        let sign = if magnitude == 0 { 0 } else { value >> 31 };
        *code = ((sign << bits) | magnitude) as u8;
    }
    Group { exponent: exponent as u8, codes }
}

/// The 16 values of a group. Exponent 255 marks a group with an infinity or a
/// NaN: those come back as such, everything else in the group as 0.
///
/// # Panics
/// If `format` is not a block float.
#[must_use]
pub fn decode_group(format: Format, group: &Group) -> [f32; GROUP] {
    let bits = magnitude_bits(format);
    group.codes.map(|code| {
        let magnitude = u32::from(code) & ((1 << bits) - 1);
        let sign = (u32::from(code) >> bits) << 31;
        f32::from_bits(sign | decoded_magnitude(u32::from(group.exponent), magnitude, bits))
    })
}

/// The f32 bits of `magnitude · 2^(exponent − 127 − (bits − 1))`.
fn decoded_magnitude(exponent: u32, magnitude: u32, bits: u32) -> u32 {
    if magnitude == 0 {
        return 0;
    }
    // Normalise: move the leading one to the place of the hidden one.
    let shift = magnitude.leading_zeros() - (32 - bits);
    let fraction = (magnitude << (shift + 24 - bits)) & 0x7f_ffff;
    if exponent == 255 {
        return if shift == 0 { 0x7f80_0000 | fraction } else { 0 };
    }
    if exponent > shift { ((exponent - shift) << 23) | fraction } else { 0 }
}

/// Bytes of one encoded tile: 1088 in bfp8, 576 in bfp4.
#[must_use]
pub fn tile_bytes(format: Format) -> usize {
    let codes = TILE * TILE * (magnitude_bits(format) as usize + 1) / 8;
    GROUPS_PER_TILE + codes
}

simd_entry! {
    /// Packs one 32×32 tile of row-major `values` the way ttnn stores it: 64
    /// exponents, then the codes, both over its four 16×16 faces. bfp4 has the
    /// even column in the low nibble. `out` is [`tile_bytes`] long.
    ///
    /// # Panics
    /// If `out` has another length, or `format` is not a block float.
    pub fn encode_tile(values: &[f32; TILE * TILE], format: Format, out: &mut [u8]) = tile
}

#[inline(always)]
fn tile<L: Lanes>(values: &[f32; TILE * TILE], format: Format, out: &mut [u8]) {
    assert_eq!(out.len(), tile_bytes(format), "a tile of {format:?}");
    let (exponents, codes) = out.split_at_mut(GROUPS_PER_TILE);
    for (idx, exponent) in exponents.iter_mut().enumerate() {
        let (row, first_col) = group_origin(idx);
        let start = row * TILE + first_col;
        let values = values[start..].first_chunk().expect("a tile is whole groups");
        let group = encode_group(format, values);
        *exponent = group.exponent;
        if format == Format::Bfp8 {
            codes[idx * GROUP..][..GROUP].copy_from_slice(&group.codes);
        } else {
            let pairs = group.codes.as_chunks::<2>().0;
            let codes = &mut codes[idx * GROUP / 2..][..GROUP / 2];
            for (code, [low, high]) in codes.iter_mut().zip(pairs) {
                *code = low | (high << 4);
            }
        }
    }
}

/// Packs a `[rows, cols]` matrix the way ttnn stores a tensor: 32×32 tiles in
/// row-major order, zero padded, each as by [`encode_tile`].
///
/// # Panics
/// If `values` is not `rows * cols` long, or `format` is not a block float.
#[must_use]
pub fn encode_tiles(values: &[f32], rows: usize, cols: usize, format: Format) -> Vec<u8> {
    assert_eq!(values.len(), rows * cols, "values are [rows, cols]");
    let num_tiles = rows.div_ceil(TILE) * cols.div_ceil(TILE);
    let mut out = vec![0; num_tiles * tile_bytes(format)];
    let tiles = out.chunks_exact_mut(tile_bytes(format));
    for ((tile_row, tile_col), out) in tile_origins(rows, cols).zip(tiles) {
        let tile = std::array::from_fn(|idx| {
            let (row, col) = (tile_row + idx / TILE, tile_col + idx % TILE);
            if row < rows && col < cols { values[row * cols + col] } else { 0.0 }
        });
        encode_tile(Isa::detect(), &tile, format, out);
    }
    out
}

/// The inverse of [`encode_tiles`]: a `[rows, cols]` matrix.
///
/// # Panics
/// If `tiles` has not the length that [`encode_tiles`] gives, or `format` is not a block float.
#[must_use]
pub fn decode_tiles(tiles: &[u8], rows: usize, cols: usize, format: Format) -> Vec<f32> {
    let num_tiles = rows.div_ceil(TILE) * cols.div_ceil(TILE);
    assert_eq!(tiles.len(), num_tiles * tile_bytes(format), "tiles hold [rows, cols]");
    let mut out = vec![0.0; rows * cols];
    for ((tile_row, tile_col), tile) in
        tile_origins(rows, cols).zip(tiles.chunks_exact(tile_bytes(format)))
    {
        let (exponents, codes) = tile.split_at(GROUPS_PER_TILE);
        for (idx, &exponent) in exponents.iter().enumerate() {
            let codes = std::array::from_fn(|i| match format {
                Format::Bfp8 => codes[idx * GROUP + i],
                _ => (codes[(idx * GROUP + i) / 2] >> (4 * (i % 2))) & 0xf,
            });
            let (row, first_col) = group_origin(idx);
            let (row, first_col) = (tile_row + row, tile_col + first_col);
            if row < rows && first_col < cols {
                let len = GROUP.min(cols - first_col);
                let start = row * cols + first_col;
                let group = decode_group(format, &Group { exponent, codes });
                out[start..start + len].copy_from_slice(&group[..len]);
            }
        }
    }
    out
}

/// Row and column of the first element of every tile, in storage order.
fn tile_origins(rows: usize, cols: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).step_by(TILE).flat_map(move |row| (0..cols).step_by(TILE).map(move |col| (row, col)))
}

/// Row and first column, inside its tile, of the `idx`-th group.
fn group_origin(idx: usize) -> (usize, usize) {
    let face = idx / FACE;
    ((face / 2) * FACE + idx % FACE, (face % 2) * FACE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Any bits at all: infinities, NaNs and denormals too.
        #[test]
        fn a_tile_has_the_same_bytes_on_every_isa(
            values in prop::collection::vec(any::<u32>().prop_map(f32::from_bits), TILE * TILE),
        ) {
            let values: [f32; TILE * TILE] = values.try_into().expect("a tile");
            for format in [Format::Bfp8, Format::Bfp4] {
                let packed = |isa| {
                    let mut out = vec![0; tile_bytes(format)];
                    encode_tile(isa, &values, format, &mut out);
                    out
                };
                let expected = packed(Isa::Scalar);
                for isa in Isa::available() {
                    prop_assert!(packed(isa) == expected, "{isa:?}");
                }
            }
        }
    }
}
