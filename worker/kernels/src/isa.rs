//! Which instruction set the kernels use: detected once, or forced.

use std::sync::OnceLock;

/// An instruction set that the kernels are compiled for.
///
/// Every kernel gives the same bits on every `Isa`; only the speed differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Portable code, 16-lane arrays with `f32::mul_add`. The twin that the others are tested against.
    Scalar,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AArch64. NEON is baseline there, so this runs the lane-array code,
    /// which the compiler turns into NEON.
    Neon,
}

impl Isa {
    /// The best instruction set of this machine, or the one that the
    /// environment variable `LLAMA_MESH_ISA` names. Computed once.
    ///
    /// # Panics
    /// If `LLAMA_MESH_ISA` names an unknown instruction set, or one that this
    /// machine lacks: an override that is silently ignored would be worse.
    #[must_use]
    pub fn detect() -> Self {
        static DETECTED: OnceLock<Isa> = OnceLock::new();
        *DETECTED.get_or_init(|| {
            #[expect(
                clippy::disallowed_methods,
                reason = "the one environment variable that belongs to the kernels"
            )]
            let forced = std::env::var("LLAMA_MESH_ISA").ok();
            match forced {
                Some(name) => Self::forced(&name),
                None => *Self::available().last().expect("scalar is always available"),
            }
        })
    }

    fn forced(name: &str) -> Self {
        let isa = match name {
            "scalar" => Self::Scalar,
            "avx2" => Self::Avx2,
            "avx512" => Self::Avx512,
            "neon" => Self::Neon,
            _ => panic!("LLAMA_MESH_ISA is {name:?}, must be scalar, avx2, avx512 or neon"),
        };
        assert!(isa.is_available(), "LLAMA_MESH_ISA is {name:?}, which this machine lacks");
        isa
    }

    /// Every instruction set that this machine can run, slowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        [Self::Scalar, Self::Neon, Self::Avx2, Self::Avx512]
            .into_iter()
            .filter(|isa| isa.is_available())
            .collect()
    }

    /// Whether this machine can run it.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            Self::Neon => cfg!(target_arch = "aarch64"),
            Self::Avx2 => has_avx2(),
            Self::Avx512 => has_avx512(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx2() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalar_is_always_there_and_first() {
        assert_eq!(Isa::available()[0], Isa::Scalar);
        assert!(Isa::detect().is_available());
    }

    #[test]
    #[should_panic(expected = "must be scalar")]
    fn an_unknown_name_is_refused() {
        let _ = Isa::forced("sse9");
    }
}
