//! Flags of `llama-mesh demo`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::ModelArgs;
use crate::demo::{Preset, select_preset};

/// What a prompt is to the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DemoMode {
    /// A user's turn, by the model's chat template.
    Instruct,
    /// The beginning of a text to go on with.
    General,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DemoArgs {
    /// Run the preset that this expression selects, as in pytest: words that a
    /// preset's name must contain, with and, or, not and parentheses. For
    /// example: -k 'instruct and 1_batch', -k 'general and 2_batch',
    /// -k long-performance, -k long-accuracy.
    #[arg(short = 'k', value_name = "EXPR", value_parser = select_preset,
          conflicts_with_all = ["mode", "batches", "long"])]
    pub(crate) preset: Option<Preset>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Chat turns, or texts to go on with [default: instruct].
    #[arg(long)]
    pub(crate) mode: Option<DemoMode>,
    /// Batches of users, one after another; the next one starts from an empty
    /// KV cache, and user j of batch i gets prompt j + i [default: 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) batches: Option<u32>,
    /// Users of a batch, who decode together. With more users than prompts, the
    /// prompts start over.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=32))]
    pub(crate) batch_size: u32,
    /// Most decode iterations; each is one token for every user, after the
    /// first token, which prefill gives.
    #[arg(long, value_name = "N", default_value_t = 120)]
    pub(crate) iterations: u32,
    /// The long prompt instead of the short ones.
    #[arg(long)]
    pub(crate) long: bool,
    /// Prompts of your own: a JSON array of {"prompt": TEXT, "context":
    /// LOCAL_FILE, "max_length": CHARACTERS}, the last two optional.
    #[arg(long, value_name = "FILE")]
    pub(crate) prompts: Option<PathBuf>,
    /// Most tokens of a prompt and its answer [default: the model's context].
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_seq_len: Option<u32>,
    /// Shorten prompts that are too long instead of refusing them.
    #[arg(long)]
    pub(crate) clip: bool,
    /// Go on after the model has ended its answer.
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// 0 always takes the likeliest token; up to 2.
    #[arg(long, default_value_t = 0.0, value_parser = temperature)]
    pub(crate) temperature: f32,
    /// Draw from the smallest set of tokens with this probability.
    #[arg(long, default_value_t = 1.0, value_parser = top_p)]
    pub(crate) top_p: f32,
    /// Of the random numbers; user j draws with SEED + j.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Tokens in a block of the paged KV cache [default: 32].
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) block_size: Option<u32>,
    /// Blocks of the paged KV cache [default: as many as are needed].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_num_blocks: Option<u32>,
    /// Run the first prompt and one decode step before the clock starts.
    #[arg(long)]
    pub(crate) warm_up: bool,
    /// A line for every step.
    #[arg(long)]
    pub(crate) verbose: bool,
    /// Print one JSON object instead of text and table.
    #[arg(long)]
    pub(crate) json: bool,
}

fn temperature(text: &str) -> Result<f32, String> {
    number_in(text, 0.0..=2.0)
}

fn top_p(text: &str) -> Result<f32, String> {
    number_in(text, f32::MIN_POSITIVE..=1.0).map_err(|_| "must be above 0 and at most 1".to_owned())
}

fn number_in(text: &str, range: std::ops::RangeInclusive<f32>) -> Result<f32, String> {
    let number = text.parse::<f32>().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("must be {} to {}", range.start(), range.end()))
}
