//! The command line of `worker` and of `llama-mesh worker`.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use common::config;
use common::shutdown::Shutdown;
use common::telemetry::Telemetry;
use serde_json::{Value as Json, json};
use tokio::sync::oneshot;

use crate::app::App;
use crate::backend;
use crate::config::{
    DeviceEnvironment, DeviceKind, DispatchKind, DispatchReport, ENV_PREFIX, KvDType, MeshChoice,
    OptimizationsKind, WorkerConfig,
};
use crate::error::WorkerError;
use crate::metrics;

/// How long the runtime's own threads may take to end.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long a process may take to end once its device has failed.
const LAST_PATIENCE: Duration = Duration::from_secs(10);

/// Serve a Llama model over gRPC: tokens in, tokens out.
///
/// Each flag has a key in the configuration file and a variable in the
/// environment: --max-num-seqs is `max_num_seqs` and
/// LLAMA_MESH_WORKER__MAX_NUM_SEQS; flags go over variables, variables over the
/// file.
#[derive(Debug, Parser)]
#[command(name = "worker", version)]
struct Args {
    /// Configuration file (TOML); deploy/worker.toml shows every key.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A .gguf file, or a directory with a checkpoint [default: $LLAMA_DIR].
    #[arg(long, visible_alias = "model-dir", value_name = "DIR_OR_FILE")]
    model: Option<PathBuf>,
    /// The name that clients use [default: the model's own].
    #[arg(long, value_name = "NAME")]
    served_model_name: Option<String>,
    /// Serve a Meta directory whose path names another model of the family.
    #[arg(long)]
    ignore_model_name: bool,
    /// IP:PORT or unix:/path [default: 127.0.0.1:50051].
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Listen on other than loopback without TLS.
    #[arg(long)]
    insecure_listen: bool,
    /// Prometheus endpoint, IP:PORT [default: none].
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<String>,
    /// What to run on [default: auto: $MESH_DEVICE, else the CPU].
    #[arg(long, ignore_case = true)]
    device: Option<DeviceKind>,
    /// Run the device's plan on simulated chips.
    #[arg(long)]
    simulate: bool,
    /// Cores of a card that dispatch commands [default: by $WH_ARCH_YAML, else eth].
    #[arg(long)]
    dispatch: Option<DispatchKind>,
    /// Folder with the Python package ttnn [default: where Python looks itself].
    #[arg(long, value_name = "DIR")]
    ttnn_site_packages: Option<PathBuf>,
    /// Degree of tensor parallelism, 1 to 8 [default: the device's].
    #[arg(long, value_name = "N")]
    chips: Option<u32>,
    /// Threads of the CPU mesh [default: all cores].
    #[arg(long, value_name = "N")]
    threads: Option<u32>,
    /// Number formats [default: performance].
    #[arg(long)]
    optimizations: Option<OptimizationsKind>,
    /// Keep packed weights in the model's directory for the next start
    /// [default: true].
    #[arg(long, value_name = "BOOL")]
    weight_cache: Option<bool>,
    /// Most tokens of a sequence [default: the model's own].
    #[arg(long, value_name = "TOKENS")]
    max_model_len: Option<u32>,
    /// Most sequences in one step [default: 32].
    #[arg(long, value_name = "N")]
    max_num_seqs: Option<u32>,
    /// Sequences accepted beyond those [default: a quarter of them].
    #[arg(long, value_name = "N")]
    max_waiting_seqs: Option<u32>,
    /// Most tokens in one step [default: 256, on a card 2048].
    #[arg(long, value_name = "TOKENS")]
    max_num_batched_tokens: Option<u32>,
    /// Most alternatives reported beside a token [default: 20].
    #[arg(long, value_name = "N")]
    max_logprobs: Option<u32>,
    /// Find KV blocks again by content [default: true].
    #[arg(long, value_name = "BOOL")]
    prefix_cache: Option<bool>,
    /// Storage type of keys and values [default: that of the optimizations].
    #[arg(long, value_name = "DTYPE")]
    kv_dtype: Option<KvDType>,
    /// Tokens in a KV block [default: 32].
    #[arg(long, value_name = "TOKENS")]
    kv_block_size: Option<u32>,
    /// KV blocks [default: by memory].
    #[arg(long, value_name = "N")]
    kv_blocks: Option<u32>,
    /// Memory of the KV cache [default: by need, at most 1024].
    #[arg(long, value_name = "MIB")]
    kv_memory_mib: Option<u64>,
    /// How long admitted sequences may take to finish at the end [default: 30000].
    #[arg(long, value_name = "MS")]
    grace_ms: Option<u64>,
    /// Log format: text or json [default: text].
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Log filter, as in RUST_LOG, which goes over it [default: info].
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// OTLP collector (gRPC) [default: $OTEL_EXPORTER_OTLP_ENDPOINT].
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// Drain and exit when standard input closes: for a parent process.
    #[arg(long)]
    exit_with_parent: bool,
}

impl Args {
    fn overrides(&self) -> Vec<(String, Json)> {
        let yes = |given: bool| given.then_some(true);
        let pairs = [
            ("model", json!(self.model)),
            ("served_model_name", json!(self.served_model_name)),
            ("ignore_model_name", json!(yes(self.ignore_model_name))),
            ("listen", json!(self.listen)),
            ("insecure_listen", json!(yes(self.insecure_listen))),
            ("metrics_listen", json!(self.metrics_listen)),
            ("device", json!(self.device)),
            ("simulate", json!(yes(self.simulate))),
            ("ttnn.dispatch", json!(self.dispatch)),
            ("ttnn.site_packages", json!(self.ttnn_site_packages)),
            ("chips", json!(self.chips)),
            ("threads", json!(self.threads)),
            ("optimizations", json!(self.optimizations)),
            ("weight_cache", json!(self.weight_cache)),
            ("max_model_len", json!(self.max_model_len)),
            ("max_num_seqs", json!(self.max_num_seqs)),
            ("max_waiting_seqs", json!(self.max_waiting_seqs)),
            ("max_num_batched_tokens", json!(self.max_num_batched_tokens)),
            ("max_logprobs", json!(self.max_logprobs)),
            ("prefix_cache", json!(self.prefix_cache)),
            ("kv.dtype", json!(self.kv_dtype)),
            ("kv.block_size", json!(self.kv_block_size)),
            ("kv.blocks", json!(self.kv_blocks)),
            ("kv.memory_mib", json!(self.kv_memory_mib)),
            ("grace_ms", json!(self.grace_ms)),
            ("telemetry.log_format", json!(self.log_format)),
            ("telemetry.log", json!(self.log)),
            ("telemetry.otlp_endpoint", json!(self.otlp_endpoint)),
        ];
        pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

/// Runs a worker until it is told to stop. `args` begins with the program's
/// name, as in `std::env::args_os`.
///
/// Prints `listening grpc=ADDRESS` and `ready grpc=ADDRESS` on standard output;
/// logs go to standard error. Exit codes: 0 stopped when told, 1 failed, 2 wrong
/// usage, 64 bad configuration, 75 the device failed and the worker can be started
/// again.
pub fn run<I>(args: I) -> ExitCode
where
    I: IntoIterator,
    I::Item: Into<OsString> + Clone,
{
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(error) => {
            // Help goes to standard output with code 0, usage to standard error
            // with 2; a closed pipe is no reason to say more.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match run_with(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Telemetry may not be set up, and is flushed by now.
            let _ = writeln!(std::io::stderr(), "worker: {error}");
            if matches!(error, WorkerError::DeviceFailed(_)) {
                abort_if_stuck();
            }
            ExitCode::from(error.exit_code())
        }
    }
}

/// A device that hangs may keep the process from ending: then it is cut.
fn abort_if_stuck() {
    // Detached on purpose: the process ends before it, or by it.
    let watch = std::thread::Builder::new().name("exit watch".to_owned()).spawn(|| {
        #[expect(clippy::disallowed_methods, reason = "nothing else is left to wait for")]
        std::thread::sleep(LAST_PATIENCE);
        std::process::abort();
    });
    drop(watch);
}

fn run_with(args: &Args) -> Result<(), WorkerError> {
    let mut settings: WorkerConfig =
        config::load(args.config.as_deref(), ENV_PREFIX, args.overrides())?;
    settings.model = backend::model_path(&settings, std::env::var_os("LLAMA_DIR").map(Into::into));
    let environment = DeviceEnvironment::read();
    settings.apply_environment(&environment)?;
    settings.validate()?;
    let _telemetry = Telemetry::init("llama-mesh-worker", &settings.telemetry)?;
    config::log_effective(&settings);
    log_dispatch(&environment, settings.mesh()?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("worker")
        .enable_all()
        .build()?;
    let result = runtime.block_on(serve(settings, args.exit_with_parent));
    // A load that was told to stop may still hold a thread.
    runtime.shutdown_timeout(FAREWELL);
    if let Err(error) = &result {
        tracing::error!(%error, "the worker failed");
    }
    result
}

/// What settings and environment mean for the cores of a card.
fn log_dispatch(environment: &DeviceEnvironment, mesh: MeshChoice) {
    let device = mesh.device();
    let mut report = environment.dispatch(device);
    if let MeshChoice::Card { dispatch, .. } = mesh
        && dispatch != report.dispatch
    {
        // A setting goes over the variable.
        let grid = device.compute_grid(dispatch);
        report = DispatchReport { dispatch, grid, warning: None };
    }
    let DispatchReport { dispatch, grid, warning } = report;
    let wh_arch_yaml = environment.wh_arch_yaml.as_deref().unwrap_or("unset");
    if let Some([columns, rows]) = grid {
        let grid = format!("{columns}x{rows}");
        tracing::info!(%device, %dispatch, grid, wh_arch_yaml, "compute grid");
    }
    if let Some(warning) = warning {
        tracing::warn!(%device, wh_arch_yaml, "{warning}");
    }
}

async fn serve(settings: WorkerConfig, exit_with_parent: bool) -> Result<(), WorkerError> {
    let shutdown = Shutdown::new(settings.grace());
    shutdown.watch_signals()?;
    if exit_with_parent {
        shutdown.watch_stdin()?;
    }
    let recorder = settings.metrics_listen.as_ref().map(|_| metrics::install()).transpose()?;
    let app: App = settings.build(shutdown.clone(), recorder).await?;
    let address = app.address().to_string();
    let mut listening = format!("listening grpc={address}");
    if let Some(metrics) = app.metrics_address() {
        listening.push_str(&format!(" metrics={metrics}"));
    }
    say(&listening);
    tracing::info!(%address, "listening");
    let (sender, ready) = oneshot::channel();
    shutdown.spawn("ready line", async move {
        if ready.await.is_ok() {
            say(&format!("ready grpc={address}"));
        }
    });
    app.run(sender).await
}

/// A line for the parent, which may have stopped reading.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_become_keys_that_the_settings_know() {
        let all = [
            "worker",
            "--model",
            "/m",
            "--served-model-name",
            "n",
            "--ignore-model-name",
            "--listen",
            "unix:/s",
            "--insecure-listen",
            "--metrics-listen",
            "127.0.0.1:0",
            "--device",
            "t3k",
            "--simulate",
            "--dispatch",
            "worker",
            "--ttnn-site-packages",
            "/p",
            "--chips",
            "8",
            "--threads",
            "2",
            "--optimizations",
            "f32",
            "--weight-cache",
            "false",
            "--max-model-len",
            "64",
            "--max-num-seqs",
            "2",
            "--max-waiting-seqs",
            "1",
            "--max-num-batched-tokens",
            "8",
            "--max-logprobs",
            "3",
            "--prefix-cache",
            "false",
            "--kv-dtype",
            "bf16",
            "--kv-block-size",
            "16",
            "--kv-blocks",
            "9",
            "--kv-memory-mib",
            "1",
            "--grace-ms",
            "5",
            "--log-format",
            "json",
            "--log",
            "debug",
            "--otlp-endpoint",
            "http://o:4317",
            "--exit-with-parent",
        ];
        let args = Args::try_parse_from(all).unwrap();
        let overrides = args.overrides();
        assert!(overrides.iter().all(|(_, value)| !value.is_null()));
        let settings: WorkerConfig = config::load_from(None, ENV_PREFIX, [], overrides).unwrap();
        settings.validate().unwrap();
        assert_eq!((settings.device, settings.kv.block_size), (DeviceKind::T3K, 16));
        assert_eq!(settings.telemetry.otlp_endpoint.as_deref(), Some("http://o:4317"));
        let none = Args::try_parse_from(["worker"]).unwrap();
        let settings: WorkerConfig =
            config::load_from(None, ENV_PREFIX, [], none.overrides()).unwrap();
        assert_eq!(settings, WorkerConfig::default());
        assert!(Args::try_parse_from(["worker", "--model-dir", "/m"]).unwrap().model.is_some());
    }

    #[test]
    fn exit_codes_are_the_contracts() {
        let code = |args: &[&str]| {
            let args = std::iter::once("worker").chain(args.iter().copied());
            run(args.map(OsString::from))
        };
        assert_eq!(code(&["--nonsense"]), ExitCode::from(2));
        assert_eq!(code(&["--help"]), ExitCode::SUCCESS);
        assert_eq!(code(&["--config", "/no/such/file"]), ExitCode::from(64));
        assert_eq!(code(&["--listen", "0.0.0.0:0"]), ExitCode::from(64));
        assert_eq!(code(&["--device", "N150"]), ExitCode::from(64));
    }
}
