//! The machine-readable table of expected accuracy, `deploy/accuracy.toml`.

use anyhow::{Context as _, ensure};
use llama::{Llama3Size, LlamaConfig};
use serde::{Deserialize, Serialize};
use worker::identity::Identity;

const TABLE: &str = include_str!("../../accuracy.toml");
const VERSION: u32 = 1;
/// A row's device that stands for all.
const ANY: &str = "any";

/// The whole table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Thresholds {
    version: u32,
    /// Points below a row that still pass.
    pub(super) tolerance: f64,
    #[serde(default)]
    row: Vec<Row>,
}

/// What is expected of one model, device and policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Row {
    /// Size in the Llama 3 family, or the served name.
    pub(super) model: String,
    pub(super) device: String,
    pub(super) optimizations: String,
    /// Percent.
    pub(super) top1: f64,
    /// Percent.
    pub(super) top5: f64,
    /// Correlation of the logits with those of f32 that every position has,
    /// where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pcc: Option<f64>,
    /// Who measured it, on what.
    pub(super) source: String,
}

impl Thresholds {
    /// The table that comes with the program.
    ///
    /// # Errors
    /// None with the file that the tests have checked.
    pub(super) fn built_in() -> anyhow::Result<Self> {
        Self::parse(TABLE).context("the table of expected accuracy")
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let table: Self = toml::from_str(text)?;
        ensure!(table.version == VERSION, "its version is {}, not {VERSION}", table.version);
        Ok(table)
    }

    /// The row for a model under its two names: its size in the Llama 3 family,
    /// if it has one, and the name that is served.
    pub(super) fn row(&self, names: &[&str], device: &str, optimizations: &str) -> Option<&Row> {
        let fits =
            |row: &&Row| names.contains(&row.model.as_str()) && row.optimizations == optimizations;
        let on = |device: &str| self.row.iter().filter(fits).find(|row| row.device == device);
        on(device).or_else(|| on(ANY))
    }

    /// The row for a loaded model. Simulated chips run the plan of the device
    /// that they stand for, and are held to its row.
    pub(super) fn row_of(&self, config: &LlamaConfig, identity: &Identity) -> Option<&Row> {
        let size = config.llama3_size().map(size_name);
        let names: Vec<&str> = size.into_iter().chain([identity.model.name.as_str()]).collect();
        let device = identity.device.simulates.as_ref().unwrap_or(&identity.device.name);
        self.row(&names, device, &identity.device.optimizations)
    }
}

fn size_name(size: Llama3Size) -> &'static str {
    match size {
        Llama3Size::B1 => "1B",
        Llama3Size::B3 => "3B",
        Llama3Size::B8 => "8B",
        Llama3Size::B11 => "11B",
        Llama3Size::B70 => "70B",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_that_comes_with_the_program_can_be_used() {
        let table = Thresholds::built_in().unwrap();
        assert_eq!(table.tolerance, 0.5);
        for row in &table.row {
            assert!(row.top1 <= row.top5 && row.top1 > 50.0 && row.top5 <= 100.0, "{row:?}");
            let devices = ["N150", "N300", "T3K", "CPU", ANY];
            assert!(devices.contains(&row.device.as_str()), "{row:?}");
            let policies = ["performance", "accuracy", "bf16", "f32"];
            assert!(policies.contains(&row.optimizations.as_str()), "{row:?}");
            assert!(row.source.starts_with("ours, measured") || row.source.contains("hardware"));
            let same = table.row.iter().filter(|other| {
                (&other.model, &other.device, &other.optimizations)
                    == (&row.model, &row.device, &row.optimizations)
            });
            assert_eq!(same.count(), 1, "{row:?}");
        }
        // The published rows: five models where they were measured, two presets.
        let published = table.row.iter().filter(|row| row.source.contains("December 2024"));
        assert_eq!(published.count(), 24);
        let row = table.row(&["3B"], "N300", "performance").unwrap();
        assert_eq!((row.top1, row.top5), (91.0, 98.0));
        assert!(table.row(&["70B"], "N300", "performance").is_none());
        assert!(table.row(&["3B"], "N300", "bf16").is_none());
        // The packaged model has a row wherever it runs.
        for policy in ["performance", "accuracy", "bf16"] {
            assert!(table.row(&["SmolLM2-135M-Instruct"], "CPU", policy).is_some(), "{policy}");
        }
    }

    #[test]
    fn a_devices_own_row_goes_before_the_general_one() {
        let row = |device: &str, top1: u32| {
            format!(
                "[[row]]\nmodel = \"m\"\ndevice = \"{device}\"\noptimizations = \"f32\"\n\
                 top1 = {top1}\ntop5 = 99\nsource = \"s\"\n"
            )
        };
        let text = format!("version = 1\ntolerance = 0.5\n{}{}", row(ANY, 1), row("N150", 2));
        let table = Thresholds::parse(&text).unwrap();
        let top1 = |device| table.row(&["8B", "m"], device, "f32").map(|row| row.top1);
        assert_eq!((top1("N150"), top1("CPU")), (Some(2.0), Some(1.0)));
        assert_eq!(table.row(&["m"], "CPU", "bf16"), None);
        assert_eq!(table.row(&["n"], "CPU", "f32"), None);
        assert!(Thresholds::parse(&text.replace("version = 1", "version = 2")).is_err());
        assert!(Thresholds::parse(&text.replace("top5", "top6")).is_err());
    }
}
