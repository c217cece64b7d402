//! Flags of `llama-mesh eval`.

use std::path::PathBuf;

use clap::Args;

use super::ModelArgs;

#[derive(Debug, Clone, Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Reference to compare with: a file of --make-reference, or one of the
    /// original's .refpt files. Without it, the reference is computed first, in
    /// f32.
    #[arg(long, value_name = "FILE")]
    pub(crate) reference: Option<PathBuf>,
    /// Only compute the reference and write it, in f32 unless --optimizations
    /// says otherwise.
    #[arg(long, value_name = "OUT", conflicts_with_all = ["reference", "prefill", "decode",
          "compare_optimizations", "compare_device", "compare_chips", "min_top1", "min_top5",
          "min_pcc", "verbose"])]
    pub(crate) make_reference: Option<PathBuf>,
    /// Text to be scored [default: the long text that comes with the program].
    #[arg(long, value_name = "FILE", conflicts_with = "reference")]
    pub(crate) text: Option<PathBuf>,
    /// Tokens of it that are used [default: 1024, or all of a shorter text].
    #[arg(long, value_name = "TOKENS", conflicts_with = "reference",
          value_parser = clap::value_parser!(u32).range(2..=1 << 20))]
    pub(crate) total_length: Option<u32>,
    /// Tokens that are prefilled [default: 512, or half of a shorter reference].
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) prefill: Option<u32>,
    /// Tokens that are decoded after them, each compared with the reference
    /// [default: all that are left].
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) decode: Option<u32>,
    /// Correlate the logits with those of another policy.
    #[arg(long, value_name = "POLICY")]
    pub(crate) compare_optimizations: Option<String>,
    /// Correlate the logits with those on another device (with --simulate, its
    /// plan on simulated chips).
    #[arg(long, value_name = "DEVICE")]
    pub(crate) compare_device: Option<String>,
    /// Correlate the logits with those of another number of chips.
    #[arg(long, value_name = "N")]
    pub(crate) compare_chips: Option<usize>,
    /// Percentage of top-1 agreement to pass, instead of the table's.
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub(crate) min_top1: Option<f64>,
    /// The same for top-5.
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub(crate) min_top5: Option<f64>,
    /// Correlation that every position must reach to pass.
    #[arg(long, value_name = "PCC", value_parser = correlation)]
    pub(crate) min_pcc: Option<f64>,
    /// Accuracy of every hundred tokens, and all errors.
    #[arg(long)]
    pub(crate) verbose: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

impl EvalArgs {
    /// The other run to correlate with, if there is to be one.
    pub(crate) fn compared_model(&self) -> Option<ModelArgs> {
        let Self { compare_optimizations, compare_device, compare_chips, .. } = self;
        if compare_optimizations.is_none() && compare_device.is_none() && compare_chips.is_none() {
            return None;
        }
        let mut model = self.model.clone();
        if let Some(device) = compare_device {
            // The chips of one device are not those of another, and a CPU
            // simulates nothing.
            model.device = Some(device.clone());
            model.chips = None;
            model.simulate &= !device.eq_ignore_ascii_case("cpu");
        }
        model.chips = compare_chips.or(model.chips);
        if compare_optimizations.is_some() {
            model.optimizations.clone_from(compare_optimizations);
        }
        Some(model)
    }
}

fn percent(text: &str) -> Result<f64, String> {
    number_in(text, 0.0, 100.0)
}

fn correlation(text: &str) -> Result<f64, String> {
    number_in(text, -1.0, 1.0)
}

fn number_in(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("must be {least} to {most}"))
}
