//! The devices that a model is planned for, as data: chips, memory, limits.
//!
//! Nothing here drives a device. The numbers decide what is refused before a
//! weight is read, and what `plan` prints.

mod layout;
mod limits;
mod plan;

use std::fmt;
use std::str::FromStr;

pub use layout::Layout;
pub use limits::{max_context, max_prefill_chunk};
pub use plan::{
    CacheFootprint, Collective, DevicePlan, DoesNotFit, WeightFootprint, Workload, bytes_text,
};

/// The last part of `$WH_ARCH_YAML` that puts dispatch on Ethernet cores.
const ETHERNET_DISPATCH_YAML: &str = "wormhole_b0_80_arch_eth_dispatch.yaml";

/// What a model runs on. Read from text as people write it: `T3000` is another
/// name of the `T3K`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Device {
    /// Simulated chips in the memory of this machine.
    Cpu {
        /// Degree of tensor parallelism.
        num_chips: usize,
    },
    /// A card with one Wormhole chip.
    N150,
    /// A card with two Wormhole chips.
    N300,
    /// Four cards of two Wormhole chips, wired as a ring of eight.
    T3K,
}

/// Which cores of a Wormhole chip feed commands to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dispatch {
    /// Idle Ethernet cores: all of the 8 × 8 grid computes.
    Ethernet,
    /// A row of worker cores.
    Worker,
}

/// A name that is no device's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no device, must be N150, N300, T3K (or T3000) or CPU")]
pub struct UnknownDevice(String);

impl Device {
    /// The devices with Wormhole chips, smallest first.
    pub const CARDS: [Self; 3] = [Self::N150, Self::N300, Self::T3K];

    /// Banks of GDDR6 on a chip.
    pub const DRAM_BANKS: u64 = 12;
    /// What can be allocated of a bank's nominal gibibyte.
    pub const DRAM_BANK_BYTES: u64 = 1_041_000_000;
    /// What recorded decode steps are kept in.
    pub const TRACE_REGION_BYTES: u64 = 23_887_872;
    /// Nominal DRAM bandwidth of a chip, bytes a second.
    pub const DRAM_BANDWIDTH: f64 = 288e9;

    /// Degree of tensor parallelism.
    pub fn num_chips(self) -> usize {
        match self {
            Self::Cpu { num_chips } => num_chips,
            Self::N150 => 1,
            Self::N300 => 2,
            Self::T3K => 8,
        }
    }

    /// True for a device with chips of its own.
    pub fn is_card(self) -> bool {
        !matches!(self, Self::Cpu { .. })
    }

    /// Bytes of a chip's DRAM for weights, caches and activations. `None` for
    /// the CPU, whose chips share the machine's memory.
    pub fn chip_memory(self) -> Option<u64> {
        self.is_card()
            .then_some(Self::DRAM_BANKS * Self::DRAM_BANK_BYTES - Self::TRACE_REGION_BYTES)
    }

    /// Columns and rows of the cores that compute. An N150 has a row to spare
    /// for dispatch, the chips of the others have not.
    pub fn compute_grid(self, dispatch: Dispatch) -> Option<[usize; 2]> {
        match (self, dispatch) {
            (Self::Cpu { .. }, _) => None,
            (Self::N300 | Self::T3K, Dispatch::Worker) => Some([8, 7]),
            _ => Some([8, 8]),
        }
    }
}

impl Dispatch {
    /// What a value of `$WH_ARCH_YAML` asks for.
    pub fn from_arch_yaml(value: &str) -> Self {
        if value.trim_end().ends_with(ETHERNET_DISPATCH_YAML) {
            Self::Ethernet
        } else {
            Self::Worker
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu { .. } => "CPU",
            Self::N150 => "N150",
            Self::N300 => "N300",
            Self::T3K => "T3K",
        })
    }
}

impl FromStr for Device {
    type Err = UnknownDevice;

    /// The CPU has one chip until told otherwise.
    fn from_str(name: &str) -> Result<Self, UnknownDevice> {
        match name.to_ascii_uppercase().as_str() {
            "CPU" => Ok(Self::Cpu { num_chips: 1 }),
            "N150" => Ok(Self::N150),
            "N300" => Ok(Self::N300),
            "T3K" | "T3000" => Ok(Self::T3K),
            _ => Err(UnknownDevice(name.to_owned())),
        }
    }
}

impl fmt::Display for Dispatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ethernet => "ethernet",
            Self::Worker => "worker",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_by_every_name_that_they_have() {
        for device in Device::CARDS {
            assert_eq!(device.to_string().parse(), Ok(device));
            assert_eq!(device.to_string().to_lowercase().parse(), Ok(device));
        }
        assert_eq!("T3000".parse(), Ok(Device::T3K));
        assert_eq!("cpu".parse(), Ok(Device::Cpu { num_chips: 1 }));
        let error = "TG".parse::<Device>().unwrap_err().to_string();
        assert!(error.contains("\"TG\"") && error.contains("T3000"), "{error}");
    }

    #[test]
    fn a_chip_has_its_banks_without_the_trace_region() {
        assert_eq!(Device::N150.chip_memory(), Some(12 * 1_041_000_000 - 23_887_872));
        assert_eq!(Device::Cpu { num_chips: 8 }.chip_memory(), None);
    }

    #[test]
    fn dispatch_takes_a_row_where_there_is_none_to_spare() {
        let ethernet = "/opt/tt/wormhole_b0_80_arch_eth_dispatch.yaml";
        assert_eq!(Dispatch::from_arch_yaml(ethernet), Dispatch::Ethernet);
        assert_eq!(Dispatch::from_arch_yaml("wormhole_b0_80_arch.yaml"), Dispatch::Worker);
        let grids = |dispatch| Device::CARDS.map(|card| card.compute_grid(dispatch).unwrap());
        assert_eq!(grids(Dispatch::Ethernet), [[8, 8]; 3]);
        assert_eq!(grids(Dispatch::Worker), [[8, 8], [8, 7], [8, 7]]);
        assert_eq!(Device::Cpu { num_chips: 2 }.compute_grid(Dispatch::Worker), None);
    }
}
