//! Sixteen lanes in two AVX2 registers.

use std::arch::x86_64::{
    __m256, __m256i, _CMP_GE_OQ, _CMP_LT_OQ, _CMP_NEQ_UQ, _MM_HINT_T0, _mm_cvtsi32_si128,
    _mm_loadl_epi64, _mm_prefetch, _mm256_add_epi32, _mm256_add_ps, _mm256_and_ps,
    _mm256_and_si256, _mm256_andnot_ps, _mm256_castps_si256, _mm256_castsi256_ps, _mm256_cmp_ps,
    _mm256_cmpeq_epi32, _mm256_cmpgt_epi32, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps,
    _mm256_cvtepu8_epi32, _mm256_div_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256,
    _mm256_max_ps, _mm256_min_ps, _mm256_movemask_ps, _mm256_mul_ps, _mm256_or_ps, _mm256_or_si256,
    _mm256_permutevar8x32_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_ps, _mm256_setzero_ps,
    _mm256_setzero_si256, _mm256_slli_epi32, _mm256_srl_epi32, _mm256_storeu_ps, _mm256_sub_epi32,
    _mm256_sub_ps,
};

use super::Lanes;
use crate::gemm::{Gemm, gemm_kernel};

#[derive(Clone, Copy)]
pub(crate) struct Avx2Lanes(__m256, __m256);

// Each `unsafe` below runs an instruction of AVX2 or FMA, which the machine
// has by the invariant of `super`, or reads or writes memory by the method's contract.
macro_rules! avx2 {
    ($($body:tt)*) => {{
        // SAFETY: the invariant of `super`, and the method's contract.
        unsafe { $($body)* }
    }};
}

/// The same operation on both halves.
macro_rules! halves {
    ($f:ident($($arg:expr),*)) => {
        avx2!(Self($f($($arg.0),*), $f($($arg.1),*)))
    };
}

#[inline(always)]
fn scales_of(exponents: __m256i, shift: i32) -> __m256 {
    avx2!({
        let biased = _mm256_sub_epi32(exponents, _mm256_set1_epi32(shift));
        let usable = _mm256_cmpgt_epi32(biased, _mm256_setzero_si256());
        let special = _mm256_cmpeq_epi32(exponents, _mm256_set1_epi32(255));
        let scales = _mm256_and_si256(usable, _mm256_slli_epi32::<23>(biased));
        let nan = _mm256_and_si256(special, _mm256_set1_epi32(0x7fc0_0000));
        _mm256_castsi256_ps(_mm256_or_si256(scales, nan))
    })
}

#[inline(always)]
fn pow2(shifted: __m256) -> __m256 {
    avx2!({
        let biased = _mm256_add_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
    })
}

#[inline(always)]
fn zero_where_less(value: __m256, x: __m256, threshold: __m256) -> __m256 {
    avx2!(_mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x, threshold), value))
}

#[inline(always)]
fn inexact_scaling(product: __m256, x: __m256) -> bool {
    avx2!({
        let nonzero = _mm256_cmp_ps::<_CMP_NEQ_UQ>(x, _mm256_setzero_ps());
        let magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0), product);
        let large = _mm256_cmp_ps::<_CMP_GE_OQ>(magnitude, _mm256_set1_ps(f32::MIN_POSITIVE));
        let finite = _mm256_cmp_ps::<_CMP_LT_OQ>(magnitude, _mm256_set1_ps(f32::INFINITY));
        let normal = _mm256_and_ps(large, finite);
        _mm256_movemask_ps(_mm256_andnot_ps(normal, nonzero)) != 0
    })
}

#[inline(always)]
fn high_bf16(words: __m256i) -> __m256 {
    avx2!({
        let high = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
        _mm256_castsi256_ps(_mm256_and_si256(words, high))
    })
}

#[inline(always)]
fn nibble<const SHIFT: u32>(words: __m256i) -> __m256 {
    avx2!({
        let table = _mm256_setr_ps(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0);
        let code = _mm256_srl_epi32(words, _mm_cvtsi32_si128(SHIFT.cast_signed()));
        // The permutation looks at the low 3 bits of each index only.
        let magnitude = _mm256_permutevar8x32_ps(table, code);
        let sign = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(code));
        _mm256_or_ps(magnitude, _mm256_and_ps(sign, _mm256_set1_ps(-0.0)))
    })
}

impl Lanes for Avx2Lanes {
    const BLOCK_ROWS: usize = 6;
    const BLOCK_PANELS: usize = 1;
    type Words = (__m256i, __m256i);

    #[inline(always)]
    fn splat(value: f32) -> Self {
        let half = avx2!(_mm256_set1_ps(value));
        Self(half, half)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        avx2!(Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        avx2!({
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        });
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        halves!(_mm256_add_ps(self, other))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        halves!(_mm256_sub_ps(self, other))
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        halves!(_mm256_mul_ps(self, other))
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        halves!(_mm256_div_ps(self, other))
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        halves!(_mm256_fmadd_ps(self, factor, addend))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        halves!(_mm256_max_ps(self, other))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        halves!(_mm256_min_ps(self, other))
    }
    #[inline(always)]
    fn zero_where_less(self, x: Self, threshold: Self) -> Self {
        Self(zero_where_less(self.0, x.0, threshold.0), zero_where_less(self.1, x.1, threshold.1))
    }
    #[inline(always)]
    fn pow2_of_shifted(self) -> Self {
        Self(pow2(self.0), pow2(self.1))
    }
    #[inline(always)]
    fn inexact_scaling_of(self, x: Self) -> bool {
        inexact_scaling(self.0, x.0) | inexact_scaling(self.1, x.1)
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Self {
        avx2!({
            let low = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()));
            let high = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.add(8).cast()));
            Self(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        })
    }
    #[inline(always)]
    unsafe fn load_scales(from: *const u8, shift: i32) -> Self {
        avx2!({
            let low = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()));
            let high = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.add(8).cast()));
            Self(scales_of(low, shift), scales_of(high, shift))
        })
    }
    #[inline(always)]
    unsafe fn load_words(from: *const u8) -> Self::Words {
        avx2!((_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())))
    }
    #[inline(always)]
    fn low_bf16(words: Self::Words) -> Self {
        avx2!(Self(
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words.0)),
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words.1))
        ))
    }
    #[inline(always)]
    fn high_bf16(words: Self::Words) -> Self {
        Self(high_bf16(words.0), high_bf16(words.1))
    }
    #[inline(always)]
    fn nibble<const SHIFT: u32>(words: Self::Words) -> Self {
        Self(nibble::<SHIFT>(words.0), nibble::<SHIFT>(words.1))
    }
    #[inline(always)]
    unsafe fn gemm(gemm: &Gemm) {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn compiled(gemm: &Gemm) {
            // SAFETY: by the method's contract.
            unsafe { gemm_kernel::<Avx2Lanes>(gemm) };
        }
        avx2!(compiled(gemm));
    }
    #[inline(always)]
    fn prefetch(address: *const u8) {
        avx2!(_mm_prefetch::<_MM_HINT_T0>(address.cast()));
    }
}
