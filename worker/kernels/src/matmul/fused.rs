//! One row times packed weights, decoded in registers.
//!
//! Decode reads every weight once, so it must do little beside reading. The
//! block's scales go to x instead of to the weights: fma(x · 2^s, q, sum) is
//! fma(x, q · 2^s, sum) bit for bit as long as x · 2^s is a normal number,
//! which is checked for every block; the rare other blocks are decoded first.

use super::Tile;
use crate::Format;
use crate::block::{self, EXPONENTS, Exponents, ROWS, VALUES, block_bytes, exponent_shift};
use crate::elementwise::load_partial;
use crate::lanes::{LANES, Lanes, from_memory};

/// How far ahead of its use a panel's memory is asked for. The hardware's
/// prefetchers stop at pages, and four panels at once are four streams.
const PREFETCH_BYTES: usize = 2048;

/// Computes the tile's only row to `y`, `[panels * 16]`.
///
/// # Safety
/// The tile has one row, `y` is valid for writing, and the format is not F32.
#[inline(always)]
pub(super) unsafe fn multiply_row<V: Lanes>(tile: &Tile<'_>, y: *mut f32) {
    // SAFETY: by this function's contract.
    unsafe {
        match tile.panels {
            1 => multiply_panels::<V, 1>(tile, y),
            2 => multiply_panels::<V, 2>(tile, y),
            3 => multiply_panels::<V, 3>(tile, y),
            4 => multiply_panels::<V, 4>(tile, y),
            panels => unreachable!("{panels} panels in a tile"),
        }
    }
}

/// # Safety
/// As for [`multiply_row`], for `P` panels.
#[inline(always)]
unsafe fn multiply_panels<V: Lanes, const P: usize>(tile: &Tile<'_>, y: *mut f32) {
    let panels = std::array::from_fn(|p| tile.weight.panel(tile.first_panel + p));
    // SAFETY: by this function's contract; the panels have the tile's format and k.
    let sums: [V; P] = unsafe {
        match tile.weight.format() {
            Format::Bf16 => bf16(tile.x, panels),
            Format::Bfp8 => bfp8(tile.x, panels),
            Format::Bfp4 => bfp4(tile.x, panels),
            Format::F32 => unreachable!("f32 needs no decoding"),
        }
    };
    let mut p = 0;
    while p < P {
        // SAFETY: y has P · 16 values.
        unsafe { sums[p].store(y.add(p * LANES)) };
        p += 1;
    }
}

/// Asks for the part of every panel that is read [`PREFETCH_BYTES`] later.
#[inline(always)]
fn prefetch<V: Lanes, const P: usize>(blocks: &[*const u8; P], format: Format) {
    let mut p = 0;
    while p < P {
        let mut line = 0;
        while line < block_bytes(format).div_ceil(64) {
            V::prefetch(blocks[p].wrapping_add(PREFETCH_BYTES + line * 64));
            line += 1;
        }
        p += 1;
    }
}

/// # Safety
/// The panels are bfp8 with `x.len()` inputs.
#[inline(always)]
unsafe fn bfp8<V: Lanes, const P: usize>(x: &[f32], mut blocks: [*const u8; P]) -> [V; P] {
    let mut sums = [V::splat(0.0); P];
    let mut scaled = [[0.0_f32; ROWS]; P];
    let mut first = 0;
    while first < x.len() {
        let count = ROWS.min(x.len() - first);
        prefetch::<V, P>(&blocks, Format::Bfp8);
        // SAFETY: the panels have a block for these inputs; rows below 16 are inside it.
        unsafe {
            let exact = scale_block::<V, P>(x, first, Format::Bfp8, &blocks, &mut scaled);
            let scaled = from_memory(&mut scaled);
            if exact && count == ROWS {
                let mut row = 0;
                while row < ROWS {
                    let mut p = 0;
                    while p < P {
                        let weights = V::load_i8(blocks[p].add(EXPONENTS + row * LANES));
                        sums[p] = weights.mul_add(V::splat(scaled[p][row]), sums[p]);
                        p += 1;
                    }
                    row += 1;
                }
            } else {
                decoded_block(&x[first..first + count], Format::Bfp8, &blocks, &mut sums);
            }
        }
        advance(&mut blocks, Format::Bfp8);
        first += ROWS;
    }
    sums
}

/// # Safety
/// The panels are bfp4 with `x.len()` inputs.
#[inline(always)]
unsafe fn bfp4<V: Lanes, const P: usize>(x: &[f32], mut blocks: [*const u8; P]) -> [V; P] {
    let mut sums = [V::splat(0.0); P];
    let mut scaled = [[0.0_f32; ROWS]; P];
    let mut first = 0;
    while first < x.len() {
        let count = ROWS.min(x.len() - first);
        prefetch::<V, P>(&blocks, Format::Bfp4);
        // SAFETY: the panels have a block for these inputs.
        unsafe {
            let exact = scale_block::<V, P>(x, first, Format::Bfp4, &blocks, &mut scaled);
            let scaled = from_memory(&mut scaled);
            if exact && count == ROWS {
                bfp4_half(&blocks, 0, scaled, &mut sums);
                bfp4_half(&blocks, 8, scaled, &mut sums);
            } else {
                decoded_block(&x[first..first + count], Format::Bfp4, &blocks, &mut sums);
            }
        }
        advance(&mut blocks, Format::Bfp4);
        first += ROWS;
    }
    sums
}

/// Rows `first_row..first_row + 8` of a bfp4 block of every panel.
///
/// # Safety
/// The blocks are bfp4, `first_row` is 0 or 8.
#[inline(always)]
unsafe fn bfp4_half<V: Lanes, const P: usize>(
    blocks: &[*const u8; P],
    first_row: usize,
    scaled: &[[f32; ROWS]; P],
    sums: &mut [V; P],
) {
    // A loop, not a closure: that would be compiled without the instruction set.
    // SAFETY: each half block is 64 bytes, after the exponents.
    let mut words = [unsafe { V::load_words(blocks[0].add(EXPONENTS + first_row * 8)) }; P];
    let mut p = 1;
    while p < P {
        // SAFETY: as above.
        words[p] = unsafe { V::load_words(blocks[p].add(EXPONENTS + first_row * 8)) };
        p += 1;
    }
    macro_rules! rows {
        ($($row:literal)*) => {$({
            let mut p = 0;
            while p < P {
                let x = V::splat(scaled[p][first_row + $row]);
                sums[p] = V::nibble::<{ 4 * $row }>(words[p]).mul_add(x, sums[p]);
                p += 1;
            }
        })*};
    }
    rows!(0 1 2 3 4 5 6 7);
}

/// # Safety
/// The panels are bf16 with `x.len()` inputs.
#[inline(always)]
unsafe fn bf16<V: Lanes, const P: usize>(x: &[f32], mut blocks: [*const u8; P]) -> [V; P] {
    let mut sums = [V::splat(0.0); P];
    let mut first = 0;
    while first < x.len() {
        let count = ROWS.min(x.len() - first);
        prefetch::<V, P>(&blocks, Format::Bf16);
        let mut row = 0;
        while row < count {
            let mut p = 0;
            while p < P {
                // SAFETY: pairs of rows below 16 are inside the block; x has
                // `row`, and `row + 1` where it is read.
                unsafe {
                    let words = V::load_words(blocks[p].add(row / 2 * 64));
                    let low = V::splat(*x.as_ptr().add(first + row));
                    sums[p] = V::low_bf16(words).mul_add(low, sums[p]);
                    if row + 1 < count {
                        let high = V::splat(*x.as_ptr().add(first + row + 1));
                        sums[p] = V::high_bf16(words).mul_add(high, sums[p]);
                    }
                }
                p += 1;
            }
            row += 2;
        }
        advance(&mut blocks, Format::Bf16);
        first += ROWS;
    }
    sums
}

/// `scaled[p][row]` = x[first + row] · the scale of that row in panel p;
/// returns whether all of them are exact.
///
/// # Safety
/// The blocks are of `format`, which is a block float; `first < x.len()`.
#[inline(always)]
unsafe fn scale_block<V: Lanes, const P: usize>(
    x: &[f32],
    first: usize,
    format: Format,
    blocks: &[*const u8; P],
    scaled: &mut [[f32; ROWS]; P],
) -> bool {
    // SAFETY: x has that many values; a block begins with 16 exponents.
    unsafe {
        let count = ROWS.min(x.len() - first);
        let values = load_partial::<V>(x.as_ptr().add(first), count);
        let mut inexact = false;
        let mut p = 0;
        while p < P {
            let product = values.mul(V::load_scales(blocks[p], exponent_shift(format)));
            inexact |= product.inexact_scaling_of(values);
            product.store(scaled[p].as_mut_ptr());
            p += 1;
        }
        !inexact
    }
}

/// The slow way: decode the block, then multiply. Also used for the last block
/// of a k that 16 does not divide.
///
/// # Safety
/// The blocks are of `format`; x has at most 16 values.
#[inline(always)]
unsafe fn decoded_block<V: Lanes, const P: usize>(
    x: &[f32],
    format: Format,
    blocks: &[*const u8; P],
    sums: &mut [V; P],
) {
    let mut weights = [0.0; VALUES];
    for p in 0..P {
        // SAFETY: by this function's contract.
        unsafe { block::decode::<V>(format, Exponents::OfRows, blocks[p], weights.as_mut_ptr()) };
        for (row, &x) in x.iter().enumerate() {
            // SAFETY: there are 16 rows of 16 weights.
            let weights = unsafe { V::load(weights.as_ptr().add(row * LANES)) };
            sums[p] = V::splat(x).mul_add(weights, sums[p]);
        }
    }
}

#[inline(always)]
fn advance<const P: usize>(blocks: &mut [*const u8; P], format: Format) {
    for block in blocks {
        // The last step leads to one past the panel, which is not read.
        *block = block.wrapping_add(block_bytes(format));
    }
}
