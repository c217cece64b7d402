//! The register-blocked inner kernel of matmul and attention.
//!
//! Each output element is one chain of fused multiply-adds over k in
//! ascending order; lanes are outputs. So its bits depend on its own row and
//! column only, not on the rows computed beside it, nor on where k is cut: an
//! unfinished chain is stored and taken up again.

use crate::lanes::{LANES, Lanes};

/// One block product: y `[rows, panels * 16]` (+)= x `[rows, k]` · w `[panels, k, 16]`.
#[derive(Clone, Copy)]
pub(crate) struct Gemm {
    pub(crate) rows: usize,
    pub(crate) panels: usize,
    pub(crate) k: usize,
    /// Elements from one row of x to the next.
    pub(crate) x: *const f32,
    pub(crate) x_stride: usize,
    /// Elements from one panel of w to the next.
    pub(crate) w: *const f32,
    pub(crate) w_stride: usize,
    /// Elements from one row of y to the next.
    pub(crate) y: *mut f32,
    pub(crate) y_stride: usize,
    /// Whether to go on from y's values instead of from 0.
    pub(crate) accumulate: bool,
}

/// Runs a block product of any number of rows and up to 4 panels.
///
/// # Safety
/// The pointers are valid for the shapes and strides given; y overlaps neither x nor w.
#[inline(always)]
pub(crate) unsafe fn gemm_kernel<V: Lanes>(gemm: &Gemm) {
    if gemm.rows == 0 {
        return;
    }
    // As even as possible: 8 rows are 4 + 4 rather than 6 + 2.
    let num_blocks = gemm.rows.div_ceil(V::BLOCK_ROWS);
    let mut row = 0;
    let mut block_idx = 0;
    while block_idx < num_blocks {
        let rows = (gemm.rows - row).div_ceil(num_blocks - block_idx);
        let block = Gemm {
            rows,
            // In bounds: row < gemm.rows.
            x: gemm.x.wrapping_add(row * gemm.x_stride),
            y: gemm.y.wrapping_add(row * gemm.y_stride),
            ..*gemm
        };
        // SAFETY: a sub-range of the caller's rows.
        unsafe { row_block::<V>(&block) };
        row += rows;
        block_idx += 1;
    }
}

/// # Safety
/// As for [`gemm_kernel`]; at most 6 rows.
#[inline(always)]
unsafe fn row_block<V: Lanes>(gemm: &Gemm) {
    macro_rules! panels {
        ($rows:literal) => {{
            let mut done = 0;
            while done < gemm.panels {
                let block = Gemm {
                    w: gemm.w.wrapping_add(done * gemm.w_stride),
                    y: gemm.y.wrapping_add(done * LANES),
                    ..*gemm
                };
                // SAFETY: a sub-range of the caller's panels.
                unsafe {
                    match (gemm.panels - done).min(V::BLOCK_PANELS) {
                        _ if V::BLOCK_PANELS == 1 => micro::<V, $rows, 1>(&block),
                        1 => micro::<V, $rows, 1>(&block),
                        2 => micro::<V, $rows, 2>(&block),
                        3 => micro::<V, $rows, 3>(&block),
                        _ => micro::<V, $rows, 4>(&block),
                    }
                }
                done += V::BLOCK_PANELS;
            }
        }};
    }
    match gemm.rows {
        1 => panels!(1),
        2 => panels!(2),
        3 => panels!(3),
        4 => panels!(4),
        5 => panels!(5),
        6 => panels!(6),
        rows => unreachable!("{rows} rows in a register block"),
    }
}

/// # Safety
/// As for [`gemm_kernel`], for `R` rows and `P` panels.
#[inline(always)]
unsafe fn micro<V: Lanes, const R: usize, const P: usize>(gemm: &Gemm) {
    let Gemm { k, x, x_stride, mut w, w_stride, y, y_stride, accumulate, .. } = *gemm;
    let mut sums = [[V::splat(0.0); P]; R];
    // SAFETY: the caller vouches for R rows of x (k long) and y (P · 16 long),
    // and for P panels of w of k · 16; every index stays inside.
    unsafe {
        if accumulate {
            let mut r = 0;
            while r < R {
                let mut p = 0;
                while p < P {
                    sums[r][p] = V::load(y.add(r * y_stride + p * LANES));
                    p += 1;
                }
                r += 1;
            }
        }
        let mut i = 0;
        while i < k {
            let mut weights = [V::splat(0.0); P];
            let mut p = 0;
            while p < P {
                weights[p] = V::load(w.add(p * w_stride));
                p += 1;
            }
            let mut r = 0;
            while r < R {
                let value = V::splat(*x.add(r * x_stride + i));
                let mut p = 0;
                while p < P {
                    sums[r][p] = value.mul_add(weights[p], sums[r][p]);
                    p += 1;
                }
                r += 1;
            }
            w = w.wrapping_add(LANES);
            i += 1;
        }
        let mut r = 0;
        while r < R {
            let mut p = 0;
            while p < P {
                sums[r][p].store(y.add(r * y_stride + p * LANES));
                p += 1;
            }
            r += 1;
        }
    }
}
