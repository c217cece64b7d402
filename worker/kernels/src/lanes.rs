//! Sixteen f32 lanes: what every kernel is written in, once.
//!
//! A kernel is an `#[inline(always)]` function generic in [`Lanes`];
//! [`simd_entry`] instantiates it for each [`Isa`](crate::Isa) inside a
//! function that enables the instruction set. All implementations give the
//! same bits: each method is one IEEE operation (or an exact one) per lane.
//!
//! Invariant: a value of an x86 implementation exists only inside a function
//! entered through [`simd_entry`], which has checked that the machine has the
//! instructions. That is what the SAFETY lines of the implementations rely on.

mod array;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

pub(crate) use array::ArrayLanes;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2Lanes;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512Lanes;

use crate::gemm::Gemm;

/// The number of lanes.
pub(crate) const LANES: usize = 16;

/// Sixteen f32 values.
pub(crate) trait Lanes: Copy {
    /// Rows of the matrix kernel's register block.
    const BLOCK_ROWS: usize;
    /// Panels of 16 columns of the matrix kernel's register block.
    const BLOCK_PANELS: usize;
    /// Sixteen u32 values.
    type Words: Copy;

    fn splat(value: f32) -> Self;
    /// # Safety
    /// `from` is valid for reading 16 f32, at any alignment of f32.
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// `to` is valid for writing 16 f32, at any alignment of f32.
    unsafe fn store(self, to: *mut f32);

    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// `self * factor + addend`, rounded once.
    fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// `if self > other { self } else { other }`: a NaN in either gives `other`.
    fn max(self, other: Self) -> Self;
    /// `if self < other { self } else { other }`: a NaN in either gives `other`.
    fn min(self, other: Self) -> Self;
    /// 0 in the lanes where `x < threshold`.
    fn zero_where_less(self, x: Self, threshold: Self) -> Self;
    /// 2^n of lanes that hold n + 1.5 · 2^23, for n in −126..=127.
    fn pow2_of_shifted(self) -> Self;
    /// Whether in some lane `x` is not 0 and `self`, its product with a power
    /// of two, is not a normal number: then that product may be inexact.
    fn inexact_scaling_of(self, x: Self) -> bool;

    /// Sixteen two's-complement bytes as f32.
    /// # Safety
    /// `from` is valid for reading 16 bytes.
    unsafe fn load_i8(from: *const u8) -> Self;
    /// Sixteen exponent bytes e as 2^(e − 127 − `shift`); 0 if that were below
    /// the smallest normal number, NaN for e = 255.
    /// # Safety
    /// `from` is valid for reading 16 bytes.
    unsafe fn load_scales(from: *const u8, shift: i32) -> Self;
    /// # Safety
    /// `from` is valid for reading 64 bytes.
    unsafe fn load_words(from: *const u8) -> Self::Words;
    /// The low 16 bits of each word, as bf16.
    fn low_bf16(words: Self::Words) -> Self;
    /// The high 16 bits of each word, as bf16.
    fn high_bf16(words: Self::Words) -> Self;
    /// The `INDEX`-th 4 bits of each word: sign and 3-bit magnitude.
    fn nibble<const SHIFT: u32>(words: Self::Words) -> Self;

    /// [`gemm_kernel`](crate::gemm::gemm_kernel) for these lanes: a function of
    /// its own, not inlined, because its register blocks are many.
    ///
    /// # Safety
    /// The pointers of `gemm` are valid for the shapes and strides given; y
    /// overlaps neither x nor w.
    unsafe fn gemm(gemm: &Gemm);

    /// Asks for a cache line that will be read soon; any address is allowed.
    fn prefetch(address: *const u8);

    /// The lanes as an array.
    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        // SAFETY: `out` holds 16 f32.
        unsafe { self.store(out.as_mut_ptr()) };
        out
    }

    /// The sum of the lanes by a fixed tree: i with i + 8, then 4, 2, 1.
    #[inline(always)]
    fn sum(self) -> f32 {
        let mut lanes = self.to_array();
        let mut width = LANES / 2;
        while width > 0 {
            let mut i = 0;
            while i < width {
                lanes[i] += lanes[i + width];
                i += 1;
            }
            width /= 2;
        }
        lanes[0]
    }

    /// The largest lane; NaN lanes are passed over where another follows.
    #[inline(always)]
    fn largest(self) -> f32 {
        let lanes = self.to_array();
        let mut largest = lanes[0];
        let mut i = 1;
        while i < LANES {
            if lanes[i] > largest {
                largest = lanes[i];
            }
            i += 1;
        }
        largest
    }
}

/// The same values, but to be read from memory: otherwise the compiler keeps a
/// just stored vector in its register and broadcasts each lane by two
/// shuffles, on the one port that the decoding of weights needs most.
#[inline(always)]
pub(crate) fn from_memory<T>(values: &mut T) -> &T {
    std::hint::black_box(values)
}

/// `$visibility fn $name(isa, args…)` that runs the generic kernel `$kernel`
/// compiled for `isa`.
///
/// The entry panics if the machine lacks `isa`.
macro_rules! simd_entry {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $kernel:ident) => {
        #[inline]
        $(#[$attribute])*
        $visibility fn $name(isa: $crate::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512($($arg: $ty),*) {
                $kernel::<$crate::lanes::Avx512Lanes>($($arg),*);
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) {
                $kernel::<$crate::lanes::Avx2Lanes>($($arg),*);
            }
            assert!(isa.is_available(), "this machine lacks {isa:?}");
            match isa {
                // SAFETY: the machine has the instructions, asserted above.
                #[cfg(target_arch = "x86_64")]
                $crate::Isa::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => $kernel::<$crate::lanes::ArrayLanes>($($arg),*),
            }
        }
    };
}
pub(crate) use simd_entry;
