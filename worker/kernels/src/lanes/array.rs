//! The portable twin: arrays of 16, in code that a compiler can vectorise.

use std::array::from_fn;

use super::{LANES, Lanes};
use crate::gemm::{Gemm, gemm_kernel};

#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct ArrayLanes([f32; LANES]);

/// The f32 of a sign and a 3-bit magnitude.
const NIBBLES: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, -0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0];

impl Lanes for ArrayLanes {
    const BLOCK_ROWS: usize = 4;
    const BLOCK_PANELS: usize = 1;
    type Words = [u32; LANES];

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: by this function's contract.
        Self(unsafe { from.cast::<[f32; LANES]>().read() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: by this function's contract.
        unsafe { to.cast::<[f32; LANES]>().write(self.0) };
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(from_fn(|i| self.0[i] + other.0[i]))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(from_fn(|i| self.0[i] - other.0[i]))
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(from_fn(|i| self.0[i] * other.0[i]))
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self(from_fn(|i| self.0[i] / other.0[i]))
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(from_fn(|i| self.0[i].mul_add(factor.0[i], addend.0[i])))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self(from_fn(|i| if self.0[i] > other.0[i] { self.0[i] } else { other.0[i] }))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Self(from_fn(|i| if self.0[i] < other.0[i] { self.0[i] } else { other.0[i] }))
    }
    #[inline(always)]
    fn zero_where_less(self, x: Self, threshold: Self) -> Self {
        Self(from_fn(|i| if x.0[i] < threshold.0[i] { 0.0 } else { self.0[i] }))
    }
    #[inline(always)]
    fn pow2_of_shifted(self) -> Self {
        Self(self.0.map(|lane| f32::from_bits(lane.to_bits().wrapping_add(127) << 23)))
    }
    #[inline(always)]
    fn inexact_scaling_of(self, x: Self) -> bool {
        (0..LANES).any(|i| x.0[i] != 0.0 && !self.0[i].is_normal())
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Self {
        // SAFETY: by this function's contract.
        let bytes = unsafe { from.cast::<[i8; LANES]>().read() };
        Self(bytes.map(f32::from))
    }
    #[inline(always)]
    unsafe fn load_scales(from: *const u8, shift: i32) -> Self {
        // SAFETY: by this function's contract.
        let bytes = unsafe { from.cast::<[u8; LANES]>().read() };
        Self(bytes.map(|exponent| {
            let biased = i32::from(exponent) - shift;
            match exponent {
                255 => f32::NAN,
                _ if biased <= 0 => 0.0,
                _ => f32::from_bits((biased as u32) << 23),
            }
        }))
    }
    #[inline(always)]
    unsafe fn load_words(from: *const u8) -> Self::Words {
        // SAFETY: by this function's contract.
        unsafe { from.cast::<[u32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    fn low_bf16(words: Self::Words) -> Self {
        Self(words.map(|word| f32::from_bits(word << 16)))
    }
    #[inline(always)]
    fn high_bf16(words: Self::Words) -> Self {
        Self(words.map(|word| f32::from_bits(word & 0xffff_0000)))
    }
    #[inline(always)]
    fn nibble<const SHIFT: u32>(words: Self::Words) -> Self {
        Self(words.map(|word| NIBBLES[(word >> SHIFT) as usize & 15]))
    }
    #[inline(never)]
    unsafe fn gemm(gemm: &Gemm) {
        // SAFETY: by this function's contract.
        unsafe { gemm_kernel::<Self>(gemm) };
    }
    #[inline(always)]
    fn prefetch(_address: *const u8) {}
}
