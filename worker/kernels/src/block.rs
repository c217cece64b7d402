//! A 16×16 piece of a matrix in one of the storage formats.
//!
//! Rows run along the accumulation (k of a weight, tokens of V, head-dim
//! channels of K), lanes across the outputs. Layout by format:
//!
//! | format | bytes | layout |
//! |---|---|---|
//! | F32 | 1024 | `[row][lane]` |
//! | Bf16 | 512 | u32 `[row / 2][lane]`: even row in the low half, odd row in the high half |
//! | Bfp8 | 272 | 16 exponents, then two's-complement bytes `[row][lane]` |
//! | Bfp4 | 144 | 16 exponents, then u32 `[row / 8][lane]`: 8 rows' codes, lowest row in the lowest 4 bits |
//!
//! The exponents belong to the rows ([`Exponents::OfRows`]) in weights and V, to
//! the lanes ([`Exponents::OfLanes`]) in K, whose groups run along the rows.

use crate::bfp;
use crate::convert::{bf16_from_f32, f32_from_bf16};
use crate::lanes::{LANES, Lanes, from_memory};
use crate::packed::Format;

/// Rows of a block.
pub(crate) const ROWS: usize = 16;
/// Values of a block.
pub(crate) const VALUES: usize = ROWS * LANES;
/// Bytes of the exponents before the codes.
pub(crate) const EXPONENTS: usize = 16;

/// What the 16 exponents of a block belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exponents {
    OfRows,
    OfLanes,
}

pub(crate) const fn block_bytes(format: Format) -> usize {
    match format {
        Format::F32 => VALUES * 4,
        Format::Bf16 => VALUES * 2,
        Format::Bfp8 => EXPONENTS + VALUES,
        Format::Bfp4 => EXPONENTS + VALUES / 2,
    }
}

/// What `load_scales` subtracts so that scale · integer magnitude is the value.
pub(crate) const fn exponent_shift(format: Format) -> i32 {
    match format {
        Format::Bfp8 => 6,
        _ => 2,
    }
}

/// Encodes one group of 16 values: row `idx` of the block, or lane `idx` with
/// [`Exponents::OfLanes`].
pub(crate) fn encode_group(
    format: Format,
    exponents: Exponents,
    idx: usize,
    values: &[f32; 16],
    block: &mut [u8],
) {
    let place = |i: usize| match exponents {
        Exponents::OfRows => (idx, i),
        Exponents::OfLanes => (i, idx),
    };
    match format {
        Format::F32 => {
            for (i, value) in values.iter().enumerate() {
                let (row, lane) = place(i);
                let at = (row * LANES + lane) * 4;
                block[at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
        }
        Format::Bf16 => {
            for (i, &value) in values.iter().enumerate() {
                let at = bf16_offset(place(i));
                block[at..at + 2].copy_from_slice(&bf16_from_f32(value).to_le_bytes());
            }
        }
        Format::Bfp8 | Format::Bfp4 => {
            let group = bfp::encode_group(format, values);
            block[idx] = group.exponent;
            for (i, &code) in group.codes.iter().enumerate() {
                let (row, lane) = place(i);
                if format == Format::Bfp8 {
                    let magnitude = (code & 0x7f).cast_signed();
                    let signed = if code & 0x80 == 0 { magnitude } else { -magnitude };
                    block[EXPONENTS + row * LANES + lane] = signed.cast_unsigned();
                } else {
                    let (at, shift) = bfp4_offset((row, lane));
                    block[at] = (block[at] & !(0xf << shift)) | (code << shift);
                }
            }
        }
    }
}

fn bf16_offset((row, lane): (usize, usize)) -> usize {
    (row / 2) * 64 + lane * 4 + (row % 2) * 2
}

fn bfp4_offset((row, lane): (usize, usize)) -> (usize, usize) {
    (EXPONENTS + (row / 8) * 64 + lane * 4 + (row % 8) / 2, 4 * (row % 2))
}

/// One value of a block whose exponents belong to the rows.
pub(crate) fn value(format: Format, row: usize, lane: usize, block: &[u8]) -> f32 {
    let integer = match format {
        Format::F32 => {
            let at = (row * LANES + lane) * 4;
            return f32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
        }
        Format::Bf16 => {
            let at = bf16_offset((row, lane));
            return f32_from_bf16(u16::from_le_bytes([block[at], block[at + 1]]));
        }
        Format::Bfp8 => f32::from(block[EXPONENTS + row * LANES + lane].cast_signed()),
        Format::Bfp4 => {
            let (at, shift) = bfp4_offset((row, lane));
            let code = (block[at] >> shift) & 0xf;
            let magnitude = f32::from(code & 7);
            if code & 8 == 0 { magnitude } else { -magnitude }
        }
    };
    let biased = i32::from(block[row]) - exponent_shift(format);
    let scale = match block[row] {
        255 => f32::NAN,
        _ if biased <= 0 => 0.0,
        _ => f32::from_bits((biased as u32) << 23),
    };
    integer * scale
}

/// Decodes a block to f32 `[row][lane]`.
///
/// # Safety
/// `block` is valid for reading [`block_bytes`], `out` for writing [`VALUES`] f32.
#[inline(always)]
pub(crate) unsafe fn decode<V: Lanes>(
    format: Format,
    exponents: Exponents,
    block: *const u8,
    out: *mut f32,
) {
    // SAFETY (all below): every offset is inside the block, by its layout, or
    // inside `out`, which has 16 rows of 16.
    match format {
        // SAFETY: as above.
        Format::F32 => unsafe { block.cast::<f32>().copy_to_nonoverlapping(out, VALUES) },
        Format::Bf16 => {
            let mut pair = 0;
            while pair < ROWS / 2 {
                // SAFETY: as above.
                unsafe {
                    let words = V::load_words(block.add(pair * 64));
                    V::low_bf16(words).store(out.add(pair * 2 * LANES));
                    V::high_bf16(words).store(out.add((pair * 2 + 1) * LANES));
                }
                pair += 1;
            }
        }
        // SAFETY: as above.
        Format::Bfp8 => unsafe { decode_bfp8::<V>(exponents, block, out) },
        Format::Bfp4 => {
            // SAFETY: as above.
            unsafe {
                let mut scales = V::load_scales(block, exponent_shift(format)).to_array();
                let scales = from_memory(&mut scales);
                decode_bfp4_half::<V>(exponents, scales, 0, block.add(EXPONENTS), out);
                decode_bfp4_half::<V>(exponents, scales, 8, block.add(EXPONENTS + 64), out);
            }
        }
    }
}

/// # Safety
/// As for [`decode`].
#[inline(always)]
unsafe fn decode_bfp8<V: Lanes>(exponents: Exponents, block: *const u8, out: *mut f32) {
    // SAFETY: by this function's contract: 16 exponents, then 16 rows of 16 bytes.
    unsafe {
        let lane_scales = V::load_scales(block, exponent_shift(Format::Bfp8));
        let mut row_scales = lane_scales.to_array();
        let row_scales = from_memory(&mut row_scales);
        let mut row = 0;
        while row < ROWS {
            let scale = match exponents {
                Exponents::OfRows => V::splat(row_scales[row]),
                Exponents::OfLanes => lane_scales,
            };
            V::load_i8(block.add(EXPONENTS + row * LANES)).mul(scale).store(out.add(row * LANES));
            row += 1;
        }
    }
}

/// Decodes 8 rows from the words at `words` to `out`'s rows `first_row`….
///
/// # Safety
/// `words` is valid for reading 64 bytes, `out` for writing [`VALUES`] f32.
#[inline(always)]
unsafe fn decode_bfp4_half<V: Lanes>(
    exponents: Exponents,
    scales: &[f32; 16],
    first_row: usize,
    words: *const u8,
    out: *mut f32,
) {
    // SAFETY: by this function's contract.
    let words = unsafe { V::load_words(words) };
    macro_rules! rows {
        ($($row:literal)*) => {$(
            // SAFETY: `scales` and the rows of `out` are 16 each, `first_row` is 0 or 8.
            unsafe {
                let row = first_row + $row;
                let scale = match exponents {
                    Exponents::OfRows => V::splat(scales[row]),
                    Exponents::OfLanes => V::load(scales.as_ptr()),
                };
                V::nibble::<{ 4 * $row }>(words).mul(scale).store(out.add(row * LANES));
            }
        )*};
    }
    rows!(0 1 2 3 4 5 6 7);
}
