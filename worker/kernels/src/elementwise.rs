//! Row-wise operations between the matrix products.

use crate::lanes::{LANES, Lanes, simd_entry};

/// e^x per lane: the same polynomial, and so the same bits, everywhere.
///
/// Relative error below 2 · 2^-24 on [−87.33, 88.37]; 0 below, e^88.37
/// (2.4e38, not infinity) above; NaN for NaN.
#[inline(always)]
pub(crate) fn exp_lanes<V: Lanes>(x: V) -> V {
    /// 1.5 · 2^23: adding it rounds to an integer, held in the low bits.
    const SHIFTER: f32 = 12_582_912.0;
    /// ln 2, its upper bits exact in a product with a small integer.
    const LN2_HIGH: f32 = 0.693_145_75;
    const LN2_LOW: f32 = 1.428_606_8e-6;
    const LOWEST: f32 = -87.33;
    const HIGHEST: f32 = 88.37;
    /// Taylor: 1/7!, …, 1/2!.
    const COEFFICIENTS: [f32; 6] =
        [1.984_127e-4, 1.388_888_9e-3, 8.333_334e-3, 4.166_666_8e-2, 0.166_666_67, 0.5];
    // `max` and `min` return their second operand for a NaN, so x stays NaN.
    let clamped = V::splat(HIGHEST).min(V::splat(LOWEST).max(x));
    let shifted = clamped.mul_add(V::splat(std::f32::consts::LOG2_E), V::splat(SHIFTER));
    let n = shifted.sub(V::splat(SHIFTER));
    let r = n.mul_add(V::splat(-LN2_HIGH), clamped);
    let r = n.mul_add(V::splat(-LN2_LOW), r);
    // |r| <= ln 2 / 2, so what Taylor leaves out, r^8 / 8!, is below 2^-27.
    let mut sum = V::splat(COEFFICIENTS[0]);
    let mut i = 1;
    while i < COEFFICIENTS.len() {
        sum = sum.mul_add(r, V::splat(COEFFICIENTS[i]));
        i += 1;
    }
    let sum = sum.mul_add(r.mul(r), r).add(V::splat(1.0));
    sum.mul(shifted.pow2_of_shifted()).zero_where_less(x, V::splat(LOWEST))
}

/// Calls `$body` for every group of 16 of `$len`, the last one padded.
macro_rules! for_lanes {
    ($len:expr, |$start:ident, $count:ident| $body:block) => {
        let mut $start = 0;
        while $start < $len {
            let $count = LANES.min($len - $start);
            $body
            $start += LANES;
        }
    };
}

/// Loads `count <= 16` values, the rest 0.
///
/// # Safety
/// `from` is valid for reading `count` f32.
#[inline(always)]
pub(crate) unsafe fn load_partial<V: Lanes>(from: *const f32, count: usize) -> V {
    // SAFETY: by this function's contract; the array holds 16.
    unsafe {
        if count == LANES {
            return V::load(from);
        }
        let mut values = [0.0; LANES];
        from.copy_to_nonoverlapping(values.as_mut_ptr(), count);
        V::load(values.as_ptr())
    }
}

/// Stores the first `count <= 16` lanes.
///
/// # Safety
/// `to` is valid for writing `count` f32.
#[inline(always)]
pub(crate) unsafe fn store_partial<V: Lanes>(lanes: V, to: *mut f32, count: usize) {
    // SAFETY: by this function's contract; the array holds 16.
    unsafe {
        if count == LANES {
            return lanes.store(to);
        }
        let values = lanes.to_array();
        values.as_ptr().copy_to_nonoverlapping(to, count);
    }
}

/// `out = x / sqrt(mean(x²) + eps) * gain`, all `[dim]`.
///
/// The squares are summed in 16 striped chains, then by a fixed tree.
///
/// # Panics
/// If the lengths differ, or the machine lacks `isa`.
pub fn rms_norm(isa: crate::Isa, x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
    assert_eq!(x.len(), gain.len(), "one gain for every value");
    assert_eq!(x.len(), out.len(), "one output for every value");
    rms_norm_entry(isa, x, gain, eps, out);
}

simd_entry! {
    fn rms_norm_entry(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) = rms_norm_kernel
}

#[inline(always)]
fn rms_norm_kernel<V: Lanes>(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
    let mut squares = V::splat(0.0);
    for_lanes!(x.len(), |i, count| {
        // SAFETY: i + count <= x.len().
        let values = unsafe { load_partial::<V>(x.as_ptr().add(i), count) };
        squares = values.mul_add(values, squares);
    });
    let mean = squares.sum() / x.len() as f32;
    let scale = V::splat(1.0 / (mean + eps).sqrt());
    for_lanes!(x.len(), |i, count| {
        // SAFETY: i + count <= len of x, gain and out, which the entry asserts equal.
        unsafe {
            let values = load_partial::<V>(x.as_ptr().add(i), count);
            let gains = load_partial::<V>(gain.as_ptr().add(i), count);
            store_partial(values.mul(scale).mul(gains), out.as_mut_ptr().add(i), count);
        }
    });
}

/// `out = gate / (1 + e^-gate) * up`.
///
/// # Panics
/// If the lengths differ, or the machine lacks `isa`.
pub fn silu_mul(isa: crate::Isa, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert_eq!(gate.len(), up.len(), "one up for every gate");
    assert_eq!(gate.len(), out.len(), "one output for every gate");
    silu_mul_entry(isa, gate, up, out);
}

simd_entry! { fn silu_mul_entry(gate: &[f32], up: &[f32], out: &mut [f32]) = silu_mul_kernel }

#[inline(always)]
fn silu_mul_kernel<V: Lanes>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for_lanes!(gate.len(), |i, count| {
        // SAFETY: i + count <= len of gate, up and out, which the entry asserts equal.
        unsafe {
            let gates = load_partial::<V>(gate.as_ptr().add(i), count);
            let ups = load_partial::<V>(up.as_ptr().add(i), count);
            let denominator = exp_lanes(V::splat(0.0).sub(gates)).add(V::splat(1.0));
            store_partial(gates.div(denominator).mul(ups), out.as_mut_ptr().add(i), count);
        }
    });
}

simd_entry! {
    /// `x = e^x`; relative error below 2 · 2^-24, 0 below −87.33, 2.4e38 above 88.37.
    ///
    /// # Panics
    /// If the machine lacks `isa`.
    pub fn exp(x: &mut [f32]) = exp_kernel
}

#[inline(always)]
fn exp_kernel<V: Lanes>(x: &mut [f32]) {
    for_lanes!(x.len(), |i, count| {
        // SAFETY: i + count <= x.len().
        unsafe {
            let at = x.as_mut_ptr().add(i);
            store_partial(exp_lanes(load_partial::<V>(at, count)), at, count);
        }
    });
}

/// Rotates the pairs (2i, 2i + 1) of one head by the angles whose cosines and
/// sines are given: `head` is `[head_dim]`, `cos` and `sin` are `[head_dim / 2]`.
///
/// # Panics
/// If the lengths do not fit.
pub fn rope_interleaved(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert_eq!(head.len(), 2 * cos.len(), "one cosine for every pair");
    assert_eq!(head.len(), 2 * sin.len(), "one sine for every pair");
    let pairs = head.as_chunks_mut::<2>().0;
    for (pair, (cos, sin)) in pairs.iter_mut().zip(cos.iter().zip(sin)) {
        let [even, odd] = *pair;
        *pair = [even * cos - odd * sin, odd * cos + even * sin];
    }
}

/// `y += x`.
///
/// # Panics
/// If the lengths differ.
pub fn add_assign(y: &mut [f32], x: &[f32]) {
    assert_eq!(y.len(), x.len(), "one addend for every value");
    for (y, x) in y.iter_mut().zip(x) {
        *y += x;
    }
}

#[cfg(test)]
mod tests;
