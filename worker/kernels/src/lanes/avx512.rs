//! Sixteen lanes in one AVX-512 register.

use std::arch::x86_64::{
    __m512, __m512i, _CMP_LT_OQ, _CMP_NEQ_UQ, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch,
    _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512, _mm512_castps_si512, _mm512_castsi512_ps,
    _mm512_cmp_ps_mask, _mm512_cmpeq_epi32_mask, _mm512_cmpgt_epi32_mask, _mm512_cvtepi8_epi32,
    _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_div_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_mask_fpclass_ps_mask, _mm512_mask_mov_ps, _mm512_maskz_mov_ps,
    _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_permutexvar_ps, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setr_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_slli_epi32,
    _mm512_srli_epi32, _mm512_storeu_ps, _mm512_sub_epi32, _mm512_sub_ps,
};

use super::Lanes;
use crate::gemm::{Gemm, gemm_kernel};

#[derive(Clone, Copy)]
pub(crate) struct Avx512Lanes(__m512);

/// `vfpclassps`: quiet NaN, both zeros, both infinities, denormal, signalling NaN.
const NOT_NORMAL: i32 = 0x01 | 0x02 | 0x04 | 0x08 | 0x10 | 0x20 | 0x80;

// Each `unsafe` below runs an instruction of AVX-512 F or DQ, which the machine
// has by the invariant of `super`, or reads or writes memory by the method's contract.
macro_rules! avx512 {
    ($($body:tt)*) => {{
        // SAFETY: the invariant of `super`, and the method's contract.
        unsafe { $($body)* }
    }};
}

impl Lanes for Avx512Lanes {
    const BLOCK_ROWS: usize = 6;
    const BLOCK_PANELS: usize = 4;
    type Words = __m512i;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self(avx512!(_mm512_set1_ps(value)))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(avx512!(_mm512_loadu_ps(from)))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        avx512!(_mm512_storeu_ps(to, self.0));
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(avx512!(_mm512_add_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(avx512!(_mm512_sub_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(avx512!(_mm512_mul_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self(avx512!(_mm512_div_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(avx512!(_mm512_fmadd_ps(self.0, factor.0, addend.0)))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self(avx512!(_mm512_max_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Self(avx512!(_mm512_min_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn zero_where_less(self, x: Self, threshold: Self) -> Self {
        Self(avx512!({
            let less = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x.0, threshold.0);
            _mm512_maskz_mov_ps(!less, self.0)
        }))
    }
    #[inline(always)]
    fn pow2_of_shifted(self) -> Self {
        Self(avx512!({
            let biased = _mm512_add_epi32(_mm512_castps_si512(self.0), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }))
    }
    #[inline(always)]
    fn inexact_scaling_of(self, x: Self) -> bool {
        avx512!({
            let nonzero = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(x.0, _mm512_setzero_ps());
            _mm512_mask_fpclass_ps_mask::<NOT_NORMAL>(nonzero, self.0) != 0
        })
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Self {
        Self(avx512!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())))))
    }
    #[inline(always)]
    unsafe fn load_scales(from: *const u8, shift: i32) -> Self {
        Self(avx512!({
            let exponents = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
            let biased = _mm512_sub_epi32(exponents, _mm512_set1_epi32(shift));
            let usable = _mm512_cmpgt_epi32_mask(biased, _mm512_setzero_si512());
            let special = _mm512_cmpeq_epi32_mask(exponents, _mm512_set1_epi32(255));
            let scales = _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased));
            let scales = _mm512_maskz_mov_ps(usable, scales);
            _mm512_mask_mov_ps(scales, special, _mm512_set1_ps(f32::NAN))
        }))
    }
    #[inline(always)]
    unsafe fn load_words(from: *const u8) -> Self::Words {
        avx512!(_mm512_loadu_si512(from.cast()))
    }
    #[inline(always)]
    fn low_bf16(words: Self::Words) -> Self {
        Self(avx512!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))))
    }
    #[inline(always)]
    fn high_bf16(words: Self::Words) -> Self {
        Self(avx512!({
            let high = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
            _mm512_castsi512_ps(_mm512_and_si512(words, high))
        }))
    }
    #[inline(always)]
    fn nibble<const SHIFT: u32>(words: Self::Words) -> Self {
        Self(avx512!({
            let table = _mm512_setr_ps(
                0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, -0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0,
                -7.0,
            );
            // The permutation looks at the low 4 bits of each index only.
            _mm512_permutexvar_ps(_mm512_srli_epi32::<SHIFT>(words), table)
        }))
    }
    #[inline(always)]
    unsafe fn gemm(gemm: &Gemm) {
        #[inline(never)]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        unsafe fn compiled(gemm: &Gemm) {
            // SAFETY: by the method's contract.
            unsafe { gemm_kernel::<Avx512Lanes>(gemm) };
        }
        avx512!(compiled(gemm));
    }
    #[inline(always)]
    fn prefetch(address: *const u8) {
        avx512!(_mm_prefetch::<_MM_HINT_T0>(address.cast()));
    }
}
