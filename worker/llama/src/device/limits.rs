//! How long a context each model may have on each device.
//!
//! Two tables exist: that of December 2024, before prompts were read in chunks,
//! and the later one. Prompts are read in chunks here, so the later one holds,
//! with 8B and 11B on an N150 at the 32k that they can really be used with. The
//! memory of a chip may be exhausted before; [`super::DevicePlan`] tells.

use super::Device;
use crate::config::Llama3Size;

const K: usize = 1024;

/// Prefill chunk of a pair that no table lists.
const DEFAULT_CHUNK: usize = 4 * K;

/// Most tokens of one sequence; `None` where no table limits the pair (a model
/// of another family, or the CPU). 70B runs on a T3K alone.
pub fn max_context(model: Option<Llama3Size>, device: Device) -> Option<usize> {
    use Llama3Size::{B8, B11};
    let model = model?;
    match (model, device) {
        (_, Device::Cpu { .. }) => None,
        (B8 | B11, Device::N150) => Some(32 * K),
        _ => Some(128 * K),
    }
}

/// Most prompt tokens that one prefill step reads on the device itself.
pub fn max_prefill_chunk(model: Option<Llama3Size>, device: Device) -> usize {
    use Llama3Size::{B1, B3, B8, B11, B70};
    let Some(model) = model else { return DEFAULT_CHUNK };
    let row = match model {
        B1 => [128, 128, 128],
        B3 => [8, 128, 128],
        B8 | B11 => [4, 64, 128],
        B70 => [4, 4, 32],
    };
    let [n150, n300, t3k] = row.map(|chunk| chunk * K);
    match device {
        Device::Cpu { .. } => DEFAULT_CHUNK,
        Device::N150 => n150,
        Device::N300 => n300,
        Device::T3K => t3k,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_has_its_row_of_the_later_table() {
        use Llama3Size as S;
        let contexts = |size| Device::CARDS.map(|card| max_context(Some(size), card).unwrap() / K);
        for size in [S::B1, S::B3, S::B70] {
            assert_eq!(contexts(size), [128; 3], "{size}");
        }
        assert_eq!(contexts(S::B8), [32, 128, 128]);
        assert_eq!(contexts(S::B11), [32, 128, 128]);
        assert_eq!(max_context(None, Device::T3K), None);
        assert_eq!(max_context(Some(S::B1), Device::Cpu { num_chips: 8 }), None);
        let chunks = |size| Device::CARDS.map(|card| max_prefill_chunk(Some(size), card) / K);
        assert_eq!(chunks(S::B3), [8, 128, 128]);
        assert_eq!(chunks(S::B11), [4, 64, 128]);
        assert_eq!(max_prefill_chunk(Some(S::B70), Device::T3K), 32 * K);
        assert_eq!(max_prefill_chunk(None, Device::N150), 4 * K);
    }
}
