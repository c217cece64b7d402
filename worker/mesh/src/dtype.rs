//! Storage types of weights and KV cache.

use std::fmt;
use std::str::FromStr;

/// How numbers are stored. Arithmetic precision is the mesh's own business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision: reference work.
    F32,
    /// bfloat16.
    Bf16,
    /// `bfloat8_b`: 16 values share an exponent, 8.5 bits a value.
    Bfp8,
    /// `bfloat4_b`: 16 values share an exponent, 4.5 bits a value.
    Bfp4,
}

impl DType {
    /// Bits that one value takes, shared exponent included.
    pub fn bits_per_value(self) -> f64 {
        match self {
            Self::F32 => 32.0,
            Self::Bf16 => 16.0,
            Self::Bfp8 => 8.5,
            Self::Bfp4 => 4.5,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Bfp8 => "bfp8",
            Self::Bfp4 => "bfp4",
        })
    }
}

impl FromStr for DType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "bfp8" => Ok(Self::Bfp8),
            "bfp4" => Ok(Self::Bfp4),
            _ => Err(format!("dtype is {name:?}, must be f32, bf16, bfp8 or bfp4")),
        }
    }
}
