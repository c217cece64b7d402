//! f32 ↔ bf16, with the rounding of ttnn's host packing.

/// Rounds to bf16: nearest, ties to even; denormals are kept, values past the
/// largest bf16 become infinite, every NaN becomes 0x7fc0.
#[inline]
#[must_use]
pub fn bf16_from_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    if value.is_nan() { 0x7fc0 } else { rounded as u16 }
}

/// The value of a bf16, exactly.
#[inline]
#[must_use]
pub fn f32_from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_nearest_even() {
        let cases = [
            (0x3f80_0000, 0x3f80), // 1
            (0x3f80_8000, 0x3f80), // tie, even below
            (0x3f81_8000, 0x3f82), // tie, even above
            (0x3f80_8001, 0x3f81), // just over the tie
            (0x7f7f_ffff, 0x7f80), // the largest f32 becomes infinite
            (0x8000_0001, 0x8000), // the smallest denormal
            (0x0000_8001, 0x0001), // a denormal bf16
            (0xff80_0000, 0xff80), // -inf
            (0x7f80_0001, 0x7fc0), // a NaN whose payload is in the lost bits
            (0xffff_ffff, 0x7fc0),
        ];
        for (bits, expected) in cases {
            assert_eq!(bf16_from_f32(f32::from_bits(bits)), expected, "{bits:#x}");
        }
    }

    #[test]
    fn every_bf16_survives_the_round_trip() {
        for before in 0..=u16::MAX {
            let value = f32_from_bf16(before);
            let after = bf16_from_f32(value);
            assert!(before == after || value.is_nan(), "{before:#x} {after:#x}");
        }
    }
}
