//! Stored number formats, decoded to f32.
//!
//! The block formats are ggml's; each decodes to the same bits as ggml's
//! reference code (`dequantize_row_*`). No product is fused with a sum.

use std::fmt;

use half::{bf16, f16};

/// How the values of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Encoding {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl Encoding {
    /// Values that are stored together; a row is whole blocks.
    pub(crate) const fn block_values(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes that a block takes.
    pub(crate) const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes of a row of `cols` values; `None` when that is not whole blocks.
    pub(crate) fn row_bytes(self, cols: usize) -> Option<usize> {
        cols.is_multiple_of(self.block_values())
            .then(|| cols / self.block_values())?
            .checked_mul(self.block_bytes())
    }

    /// Decodes whole blocks.
    ///
    /// # Panics
    /// When `bytes` are not the blocks that `out` needs.
    pub(crate) fn decode(self, bytes: &[u8], out: &mut [f32]) {
        assert!(
            out.len().is_multiple_of(self.block_values())
                && bytes.len() == out.len() / self.block_values() * self.block_bytes(),
            "{} bytes of {self} for {} values",
            bytes.len(),
            out.len()
        );
        match self {
            Self::F32 => blocks(bytes, out, |b: &[u8; 4], out: &mut [f32; 1]| {
                out[0] = f32::from_le_bytes(*b);
            }),
            Self::F16 => blocks(bytes, out, |b: &[u8; 2], out: &mut [f32; 1]| {
                out[0] = f16::from_le_bytes(*b).to_f32();
            }),
            Self::Bf16 => blocks(bytes, out, |b: &[u8; 2], out: &mut [f32; 1]| {
                out[0] = bf16::from_le_bytes(*b).to_f32();
            }),
            Self::Q4_0 => blocks(bytes, out, q4_0),
            Self::Q4_1 => blocks(bytes, out, q4_1),
            Self::Q8_0 => blocks(bytes, out, q8_0),
            Self::Q4K => blocks(bytes, out, q4_k),
            Self::Q5K => blocks(bytes, out, q5_k),
            Self::Q6K => blocks(bytes, out, q6_k),
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        })
    }
}

/// Runs `decode` over blocks of `B` bytes and `V` values.
fn blocks<const B: usize, const V: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; B], &mut [f32; V]),
) {
    let (blocks, _) = bytes.as_chunks::<B>();
    let (outs, _) = out.as_chunks_mut::<V>();
    for (block, out) in blocks.iter().zip(outs) {
        decode(block, out);
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// f16 scale, 16 bytes of nibbles: low ones are values 0–15, high ones 16–31.
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (j, &q) in block[2..].iter().enumerate() {
        out[j] = f32::from((q & 0x0f) as i8 - 8) * d;
        out[j + 16] = f32::from((q >> 4) as i8 - 8) * d;
    }
}

/// f16 scale and minimum, nibbles as in Q4_0.
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (j, &q) in block[4..].iter().enumerate() {
        out[j] = f32::from(q & 0x0f) * d + m;
        out[j + 16] = f32::from(q >> 4) * d + m;
    }
}

/// Bit `j` of `high` as 16.
fn sixteen(high: u8, j: usize) -> u8 {
    ((high >> j) & 1) << 4
}

/// f16 scale, 32 signed bytes.
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (out, &q) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(q as i8) * d;
    }
}

/// The `j`-th 6-bit scale and minimum of the eight packed in 12 bytes.
fn scale_min(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (
            packed[j + 4] & 0x0f | (packed[j - 4] >> 6) << 4,
            packed[j + 4] >> 4 | (packed[j] >> 6) << 4,
        )
    };
    (f32::from(scale), f32::from(min))
}

/// f16 scale and minimum of 256 values, eight 6-bit scales and minima of 32
/// each, 128 bytes of nibbles.
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (scales, qs) = (&block[4..16], &block[16..]);
    for (pair, (qs, out)) in qs.chunks_exact(32).zip(out.chunks_exact_mut(64)).enumerate() {
        let (sc, m) = scale_min(scales, 2 * pair);
        let (d1, m1) = (d * sc, dmin * m);
        let (sc, m) = scale_min(scales, 2 * pair + 1);
        let (d2, m2) = (d * sc, dmin * m);
        for (l, &q) in qs.iter().enumerate() {
            out[l] = d1 * f32::from(q & 0x0f) - m1;
            out[l + 32] = d2 * f32::from(q >> 4) - m2;
        }
    }
}

/// As Q4_K, with 32 bytes of fifth bits before the nibbles.
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (scales, high, qs) = (&block[4..16], &block[16..48], &block[48..]);
    for (pair, (qs, out)) in qs.chunks_exact(32).zip(out.chunks_exact_mut(64)).enumerate() {
        let (sc, m) = scale_min(scales, 2 * pair);
        let (d1, m1) = (d * sc, dmin * m);
        let (sc, m) = scale_min(scales, 2 * pair + 1);
        let (d2, m2) = (d * sc, dmin * m);
        for (l, (&q, &h)) in qs.iter().zip(high).enumerate() {
            out[l] = d1 * f32::from(q & 0x0f | sixteen(h, 2 * pair)) - m1;
            out[l + 32] = d2 * f32::from(q >> 4 | sixteen(h, 2 * pair + 1)) - m2;
        }
    }
}

/// 128 bytes of low nibbles, 64 of high bit pairs, sixteen signed scales of 16
/// values each, f16 scale.
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(block, 208);
    for (half, out) in out.chunks_exact_mut(128).enumerate() {
        let low = &block[half * 64..][..64];
        let high = &block[128 + half * 32..][..32];
        let scales = &block[192 + half * 8..][..8];
        for l in 0..32 {
            let nibbles = [low[l] & 0x0f, low[l + 32] & 0x0f, low[l] >> 4, low[l + 32] >> 4];
            for (quarter, nibble) in nibbles.into_iter().enumerate() {
                let q = (nibble | ((high[l] >> (2 * quarter)) & 3) << 4) as i8 - 32;
                let scale = f32::from(scales[l / 16 + 2 * quarter] as i8);
                out[l + 32 * quarter] = d * scale * f32::from(q);
            }
        }
    }
}

#[cfg(test)]
mod tests;
