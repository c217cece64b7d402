//! What to run on: the settings, and the environment variables of Tenstorrent's
//! own software that stand in where a setting is left open.

use std::path::Path;

use common::config::ConfigError;
use llama::{Device, Dispatch};
use mesh_ttnn::board::{BoardKind, detect_board};
use serde::{Deserialize, Serialize};

use super::ttnn::IN_THIS_BUILD;
use super::{MAX_CHIPS, WorkerConfig};

/// What to run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[value(rename_all = "verbatim")]
pub enum DeviceKind {
    /// What `$MESH_DEVICE` names, else a card if this build has support for
    /// one, else the CPU.
    #[serde(rename = "auto")]
    #[value(name = "auto")]
    Auto,
    /// The CPU mesh.
    #[serde(rename = "CPU", alias = "cpu")]
    #[value(name = "CPU", alias = "cpu")]
    Cpu,
    /// One Wormhole chip.
    #[serde(alias = "n150")]
    N150,
    /// One card of two chips.
    #[serde(alias = "n300")]
    N300,
    /// Four cards of two chips.
    #[serde(alias = "t3k", alias = "T3000", alias = "t3000")]
    #[value(alias = "T3000")]
    T3K,
}

/// The mesh that a device setting comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MeshChoice {
    /// Simulated chips on this machine's threads.
    Cpu {
        /// How many.
        num_chips: u32,
        /// The card whose plan and limits they follow.
        simulates: Option<Device>,
    },
    /// Tenstorrent chips.
    Card {
        /// Which.
        device: Device,
        /// Which cores dispatch commands.
        dispatch: Dispatch,
    },
}

/// Variables that other software for these devices reads too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceEnvironment {
    /// `MESH_DEVICE`: N150, N300, T3K (or T3000), CPU.
    pub mesh_device: Option<String>,
    /// `FAKE_DEVICE`, its older spelling.
    pub fake_device: Option<String>,
    /// `WH_ARCH_YAML`: decides which cores dispatch commands.
    pub wh_arch_yaml: Option<String>,
    /// `TT_METAL_MOCK_CLUSTER_DESC_PATH`: mock devices stand in for cards.
    pub mock_cluster: Option<String>,
}

/// Where commands are dispatched, and what that leaves to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DispatchReport {
    /// Which cores dispatch.
    pub dispatch: Dispatch,
    /// Columns and rows of cores that compute; none on the CPU.
    pub grid: Option<[usize; 2]>,
    /// What is amiss, if anything.
    pub warning: Option<&'static str>,
}

impl DeviceEnvironment {
    /// Of this process. A variable that is empty counts as unset.
    #[must_use]
    pub fn read() -> Self {
        let read = |name: &str| {
            let value = std::env::var_os(name)?.to_string_lossy().into_owned();
            (!value.trim().is_empty()).then(|| value.trim().to_owned())
        };
        Self {
            mesh_device: read("MESH_DEVICE"),
            fake_device: read("FAKE_DEVICE"),
            wh_arch_yaml: read("WH_ARCH_YAML"),
            mock_cluster: read("TT_METAL_MOCK_CLUSTER_DESC_PATH"),
        }
    }

    /// The device that the environment names, and the variable that does.
    ///
    /// # Errors
    /// A name that is no device's.
    pub fn device(&self) -> Result<Option<(&'static str, Device)>, ConfigError> {
        let variables = [("MESH_DEVICE", &self.mesh_device), ("FAKE_DEVICE", &self.fake_device)];
        let Some((variable, name)) =
            variables.into_iter().find_map(|(variable, name)| Some((variable, name.as_ref()?)))
        else {
            return Ok(None);
        };
        let device = name.parse().map_err(|error: llama::UnknownDevice| {
            ConfigError::Environment { name: variable.to_owned(), reason: error.to_string() }
        })?;
        Ok(Some((variable, device)))
    }

    /// Where commands are dispatched on `device`. Unset, it is Ethernet, which
    /// a chip of an N300 or a T3K needs for the 8 × 8 grid that Llama runs on.
    #[must_use]
    pub fn dispatch(&self, device: Device) -> DispatchReport {
        const UNSET: &str = "WH_ARCH_YAML is unset: set it to \
                             wormhole_b0_80_arch_eth_dispatch.yaml, as N300 and T3K need; \
                             dispatch on Ethernet cores is taken to be meant";
        const SMALL: &str = "WH_ARCH_YAML puts dispatch on worker cores, which leaves a grid of \
                             8x7: Llama on N300 and T3K needs 8x8, and with it \
                             wormhole_b0_80_arch_eth_dispatch.yaml";
        let dispatch =
            self.wh_arch_yaml.as_deref().map_or(Dispatch::Ethernet, Dispatch::from_arch_yaml);
        let needs_ethernet = device.is_card() && device.num_chips() > 1;
        let warning = match (&self.wh_arch_yaml, dispatch) {
            (None, _) if needs_ethernet => Some(UNSET),
            (_, Dispatch::Worker) if needs_ethernet => Some(SMALL),
            _ => None,
        };
        DispatchReport { dispatch, grid: device.compute_grid(dispatch), warning }
    }
}

impl MeshChoice {
    /// The device whose plan is followed: a card, or the CPU itself.
    #[must_use]
    pub fn device(self) -> Device {
        match self {
            Self::Cpu { num_chips, simulates } => {
                simulates.unwrap_or(Device::Cpu { num_chips: num_chips as usize })
            }
            Self::Card { device, .. } => device,
        }
    }

    /// Whether it is a card itself.
    #[must_use]
    pub fn is_card(self) -> bool {
        matches!(self, Self::Card { .. })
    }
}

impl From<Device> for DeviceKind {
    fn from(device: Device) -> Self {
        match device {
            Device::Cpu { .. } => Self::Cpu,
            Device::N150 => Self::N150,
            Device::N300 => Self::N300,
            Device::T3K => Self::T3K,
        }
    }
}

impl WorkerConfig {
    /// Fills in the device from the environment where it is left open, or else,
    /// in a build that can drive cards, from the cards that this host has.
    ///
    /// # Errors
    /// A variable that names no device, or one that cannot be used; cards that
    /// are no device.
    pub fn apply_environment(
        &mut self,
        environment: &DeviceEnvironment,
    ) -> Result<(), ConfigError> {
        if let Some(path) = &environment.mock_cluster {
            self.ttnn.mock.get_or_insert_with(|| path.into());
        }
        if let Some(yaml) = &environment.wh_arch_yaml {
            self.ttnn.dispatch.get_or_insert_with(|| Dispatch::from_arch_yaml(yaml).into());
        }
        if self.device != DeviceKind::Auto {
            return Ok(());
        }
        let Some((variable, device)) = environment.device()? else {
            return self.detect_card(Path::new("/"));
        };
        self.device = device.into();
        // The setting is not the user's: say where it is from.
        self.mesh().map(|_| ()).map_err(|error| ConfigError::Environment {
            name: variable.to_owned(),
            reason: format!("is {device}: {error}"),
        })
    }

    /// Takes the cards of the host whose file system starts at `root`.
    fn detect_card(&mut self, root: &Path) -> Result<(), ConfigError> {
        if !IN_THIS_BUILD || self.simulate {
            return Ok(());
        }
        let board = detect_board(root)
            .map_err(|error| ConfigError::value("device", format!("is auto: {error}")))?;
        if let Some(board) = board {
            self.device = match board.kind {
                BoardKind::N150 => DeviceKind::N150,
                BoardKind::N300 => DeviceKind::N300,
                BoardKind::T3k => DeviceKind::T3K,
            };
        }
        Ok(())
    }

    /// The mesh to run on.
    ///
    /// # Errors
    /// A device that this build has no support for, or a number of chips that
    /// the device does not have.
    pub fn mesh(&self) -> Result<MeshChoice, ConfigError> {
        let card = match self.device {
            DeviceKind::Auto | DeviceKind::Cpu => None,
            DeviceKind::N150 => Some(Device::N150),
            DeviceKind::N300 => Some(Device::N300),
            DeviceKind::T3K => Some(Device::T3K),
        };
        let of_card = card.map(|card| card.num_chips() as u32);
        if let Some(name) = card.filter(|_| !self.simulate && !IN_THIS_BUILD) {
            let reason = format!(
                "{name} needs the ttnn build (cargo build --features ttnn); use --simulate to \
                 run the same plan on simulated chips"
            );
            return Err(ConfigError::value("device", reason));
        }
        let num_chips = self.chips.or(of_card).unwrap_or(1);
        if let (Some(name), Some(of_card)) = (card, of_card)
            && of_card != num_chips
        {
            let reason = format!("is {num_chips}, an {name} has {of_card}");
            return Err(ConfigError::value("chips", reason));
        }
        if !(1..=MAX_CHIPS).contains(&num_chips) {
            let reason = format!("is {num_chips}, it must be 1 to {MAX_CHIPS}");
            return Err(ConfigError::value("chips", reason));
        }
        Ok(match card {
            Some(device) if !self.simulate => {
                let dispatch = self.ttnn.dispatch.map_or(Dispatch::Ethernet, Dispatch::from);
                MeshChoice::Card { device, dispatch }
            }
            simulates => MeshChoice::Cpu { num_chips, simulates },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DispatchKind;

    fn named(mesh_device: Option<&str>, fake_device: Option<&str>) -> DeviceEnvironment {
        DeviceEnvironment {
            mesh_device: mesh_device.map(Into::into),
            fake_device: fake_device.map(Into::into),
            ..DeviceEnvironment::default()
        }
    }

    fn device(config: &WorkerConfig, environment: &DeviceEnvironment) -> DeviceKind {
        let mut config = config.clone();
        config.apply_environment(environment).unwrap();
        config.device
    }

    #[test]
    fn the_environment_names_the_device_where_nothing_else_does() {
        let open = WorkerConfig { simulate: true, ..WorkerConfig::default() };
        assert_eq!(device(&open, &named(None, None)), DeviceKind::Auto);
        assert_eq!(device(&open, &named(Some("T3000"), None)), DeviceKind::T3K);
        assert_eq!(device(&open, &named(None, Some("n300"))), DeviceKind::N300);
        assert_eq!(device(&open, &named(Some("N150"), Some("T3K"))), DeviceKind::N150);
        assert_eq!(device(&open, &named(Some("CPU"), None)), DeviceKind::Cpu);
        let said = WorkerConfig { device: DeviceKind::Cpu, ..open.clone() };
        assert_eq!(device(&said, &named(Some("T3K"), None)), DeviceKind::Cpu);
        // Not even looked at then.
        assert_eq!(device(&said, &named(Some("nonsense"), None)), DeviceKind::Cpu);
    }

    #[test]
    fn a_variable_that_cannot_be_used_is_refused_by_its_name() {
        let refusal = |config: WorkerConfig, environment| {
            config.clone().apply_environment(&environment).unwrap_err().to_string()
        };
        let text = refusal(WorkerConfig::default(), named(Some("TG"), None));
        assert!(text.contains("MESH_DEVICE") && text.contains("\"TG\""), "{text}");
        let text = refusal(WorkerConfig::default(), named(None, Some("x")));
        assert!(text.contains("FAKE_DEVICE") && text.contains("T3000"), "{text}");
        if !IN_THIS_BUILD {
            let text = refusal(WorkerConfig::default(), named(Some("N300"), None));
            assert!(text.contains("MESH_DEVICE") && text.contains("--simulate"), "{text}");
        }
        let three = WorkerConfig { chips: Some(3), simulate: true, ..WorkerConfig::default() };
        let text = refusal(three, named(Some("N300"), None));
        assert!(text.contains("MESH_DEVICE") && text.contains("an N300 has 2"), "{text}");
    }

    #[test]
    fn a_card_of_this_build_follows_the_environment_and_the_settings_go_over_it() {
        let environment = DeviceEnvironment {
            mock_cluster: Some("/m.yaml".into()),
            wh_arch_yaml: Some("other.yaml".into()),
            ..named(Some("N300"), None)
        };
        let mut open = WorkerConfig::default();
        let applied = open.apply_environment(&environment);
        assert_eq!(applied.is_ok(), IN_THIS_BUILD);
        assert_eq!(open.ttnn.mock.as_deref(), Some(Path::new("/m.yaml")));
        assert_eq!(open.ttnn.dispatch, Some(DispatchKind::Worker));
        let mut said = WorkerConfig { device: DeviceKind::T3K, ..WorkerConfig::default() };
        said.ttnn.dispatch = Some(DispatchKind::Eth);
        said.apply_environment(&environment).unwrap();
        assert_eq!(said.ttnn.dispatch, Some(DispatchKind::Eth));
        let card = MeshChoice::Card { device: Device::T3K, dispatch: Dispatch::Ethernet };
        assert_eq!(said.mesh().ok(), IN_THIS_BUILD.then_some(card));
        let tokens = if IN_THIS_BUILD { 2048 } else { 256 };
        assert_eq!(said.num_batched_tokens(), tokens);
    }

    #[test]
    fn an_open_device_is_the_cards_that_are_there() {
        let host = tempfile::tempdir().unwrap();
        let detect = |config: &WorkerConfig| {
            let mut config = config.clone();
            config.detect_card(host.path()).unwrap();
            config.device
        };
        let open = WorkerConfig::default();
        assert_eq!(detect(&open), DeviceKind::Auto);
        let write = |path: &str, text: &str| {
            let path = host.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("dev/tenstorrent/0", "");
        write("sys/class/tenstorrent/tenstorrent!0/tt_card_type", "n300");
        let found = if IN_THIS_BUILD { DeviceKind::N300 } else { DeviceKind::Auto };
        assert_eq!(detect(&open), found);
        let simulated = WorkerConfig { simulate: true, ..open };
        assert_eq!(detect(&simulated), DeviceKind::Auto);
    }

    #[test]
    fn dispatch_follows_the_variable_and_warns_where_it_matters() {
        let with = |yaml: Option<&str>| DeviceEnvironment {
            wh_arch_yaml: yaml.map(Into::into),
            ..DeviceEnvironment::default()
        };
        let ethernet = with(Some("/x/wormhole_b0_80_arch_eth_dispatch.yaml"));
        let worker = with(Some("other.yaml"));
        for card in [Device::N300, Device::T3K] {
            let report = ethernet.dispatch(card);
            assert_eq!((report.grid, report.warning), (Some([8, 8]), None));
            let report = worker.dispatch(card);
            assert_eq!(report.grid, Some([8, 7]));
            assert!(report.warning.is_some_and(|text| text.contains("8x7")));
            let report = with(None).dispatch(card);
            assert_eq!(report.dispatch, Dispatch::Ethernet);
            assert!(report.warning.is_some_and(|text| text.contains("unset")));
        }
        for environment in [&ethernet, &worker, &with(None)] {
            let one = environment.dispatch(Device::N150);
            assert_eq!((one.grid, one.warning), (Some([8, 8]), None));
            let cpu = environment.dispatch(Device::Cpu { num_chips: 8 });
            assert_eq!((cpu.grid, cpu.warning), (None, None));
        }
    }
}
