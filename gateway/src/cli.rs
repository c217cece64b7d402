//! The command line, and the life of a gateway process: settings → telemetry →
//! build → serve → drain.

use std::ffi::OsString;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use common::config::{self, ConfigError, EXIT_BAD_CONFIG};
use common::shutdown::{Drained, Shutdown};
use common::telemetry::Telemetry;
use serde_json::{Value as Json, json};

use crate::app::App;
use crate::config::{ENV_PREFIX, GatewayConfig};

/// Exit code of wrong usage.
const EXIT_USAGE: u8 = 2;

/// Serve Llama models that workers run: an OpenAI-compatible HTTP endpoint, and
/// gRPC.
#[derive(Debug, Parser)]
#[command(name = "gateway", version)]
struct Flags {
    /// A GGUF file or a checkpoint's directory, for its tokenizer and template;
    /// otherwise $LLAMA_DIR.
    #[arg(long, value_name = "DIR_OR_FILE")]
    model: Option<PathBuf>,
    /// The name that clients use; otherwise the model's own.
    #[arg(long, value_name = "NAME")]
    served_model_name: Option<String>,
    /// HOST:PORT, http://HOST:PORT or unix:/path; may be repeated.
    #[arg(long = "worker", value_name = "ENDPOINT")]
    workers: Vec<String>,
    /// Where HTTP, and gRPC beside it, is served; port 0 picks a free one
    /// [default: 127.0.0.1:8000].
    #[arg(long, value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// A port for gRPC alone.
    #[arg(long, value_name = "ADDR")]
    grpc: Option<SocketAddr>,
    /// A host name to answer to besides addresses and localhost; may be
    /// repeated.
    #[arg(long = "allowed-host", value_name = "NAME")]
    allowed_hosts: Vec<String>,
    /// Most tokens of prompt and answer together; otherwise the model's own.
    #[arg(long, value_name = "TOKENS")]
    max_model_len: Option<u32>,
    /// How long requests in flight may take to end at a shutdown [default: 30].
    #[arg(long, value_name = "SECONDS")]
    grace_seconds: Option<u64>,
    /// Log format: text or json [default: text].
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Log filter, as in RUST_LOG, which goes over it [default: info].
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// OTLP collector (gRPC) [default: $OTEL_EXPORTER_OTLP_ENDPOINT].
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// A TOML file; environment and flags go over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Drain when standard input ends.
    #[arg(long)]
    exit_with_parent: bool,
}

impl Flags {
    /// The settings that were given, by key.
    fn overrides(&self) -> Vec<(String, Json)> {
        let list = |values: &[String]| match values {
            [] => Json::Null,
            values => json!(values),
        };
        [
            ("model", json!(self.model)),
            ("served_model_name", json!(self.served_model_name)),
            ("workers", list(&self.workers)),
            ("listen.http", json!(self.http)),
            ("listen.grpc", json!(self.grpc)),
            ("listen.allowed_hosts", list(&self.allowed_hosts)),
            ("limits.max_model_len", json!(self.max_model_len)),
            ("shutdown.grace_seconds", json!(self.grace_seconds)),
            ("telemetry.log_format", json!(self.log_format)),
            ("telemetry.log", json!(self.log)),
            ("telemetry.otlp_endpoint", json!(self.otlp_endpoint)),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    fn settings(&self) -> Result<GatewayConfig, ConfigError> {
        let mut settings: GatewayConfig =
            config::load(self.config.as_deref(), ENV_PREFIX, self.overrides())?;
        if settings.model.is_none() {
            settings.model = std::env::var_os("LLAMA_DIR").map(PathBuf::from);
        }
        settings.validate()?;
        if settings.model.is_none() {
            return Err(ConfigError::value("model", "is unset, and so is $LLAMA_DIR"));
        }
        Ok(settings)
    }
}

/// Runs a whole command line, program name first. 0: drained; 1: failed; 2:
/// wrong usage; 64: bad settings.
pub fn run(args: Vec<OsString>) -> ExitCode {
    let flags = match Flags::try_parse_from(args) {
        Ok(flags) => flags,
        Err(error) => {
            let usage = error.use_stderr();
            // Nothing can be done about a closed terminal.
            let _ = error.print();
            return if usage { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let settings = match flags.settings() {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(EXIT_BAD_CONFIG);
        }
    };
    let telemetry = match Telemetry::init("llama-mesh-gateway", &settings.telemetry) {
        Ok(guard) => guard,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(EXIT_BAD_CONFIG);
        }
    };
    config::log_effective(&settings);
    let ended = run_until_drained(settings, flags.exit_with_parent);
    drop(telemetry);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_until_drained(settings: GatewayConfig, exit_with_parent: bool) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let shutdown = Shutdown::new(Duration::from_secs(settings.shutdown.grace_seconds));
        shutdown.watch_signals()?;
        if exit_with_parent {
            shutdown.watch_stdin()?;
        }
        let app = App::build(settings, &shutdown).await?;
        announce(&app)?;
        if let Drained::Cut { tasks } = app.run(shutdown).await {
            tracing::warn!(tasks, "the grace has passed, requests were cut");
        }
        anyhow::Ok(())
    });
    // A thread that blocks (a tokenizer, say) does not hold the exit.
    runtime.shutdown_background();
    ended
}

/// The one line on standard output: programs that start a gateway wait for it.
fn announce(app: &App) -> anyhow::Result<()> {
    let mut line = format!("ready http={}", app.http_addr());
    if let Some(grpc) = app.grpc_addr() {
        line.push_str(&format!(" grpc={grpc}"));
    }
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(args: &[&str]) -> Flags {
        Flags::try_parse_from([&["gateway"], args].concat()).unwrap()
    }

    #[test]
    fn flags_become_settings() {
        let settings = flags(&[
            "--model",
            "m.gguf",
            "--worker",
            "unix:/a",
            "--worker",
            "b:1",
            "--http",
            "[::1]:0",
            "--grpc",
            "127.0.0.1:0",
            "--grace-seconds",
            "2",
            "--max-model-len",
            "64",
            "--log-format",
            "json",
            "--log",
            "debug",
            "--otlp-endpoint",
            "http://c:1",
        ])
        .settings()
        .unwrap();
        assert_eq!(settings.model, Some("m.gguf".into()));
        assert_eq!(settings.workers, ["unix:/a", "b:1"]);
        assert_eq!(settings.listen.http, "[::1]:0".parse().unwrap());
        assert_eq!(settings.listen.grpc, Some("127.0.0.1:0".parse().unwrap()));
        assert_eq!(settings.shutdown.grace_seconds, 2);
        assert_eq!(settings.limits.max_model_len, Some(64));
        assert_eq!(settings.telemetry.log_format, common::telemetry::LogFormat::Json);
        assert_eq!(settings.telemetry.log, "debug");
        assert_eq!(settings.telemetry.otlp_endpoint.as_deref(), Some("http://c:1"));
    }

    #[test]
    fn the_shipped_manifests_use_flags_that_exist() {
        for file in ["compose.yaml", "k8s/pod.yaml"] {
            let path = format!("{}/../deploy/{file}", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(&path).unwrap();
            // The block list that begins with the service's name.
            let lines = text.lines().map(str::trim).skip_while(|&line| line != "- gateway");
            let items: Vec<&str> =
                lines.skip(1).map_while(|line| line.strip_prefix("- ")).collect();
            let settings = flags(&items).settings().unwrap();
            assert_eq!(settings.model, Some("/model".into()), "{path}");
            assert_eq!(settings.workers, ["unix:/run/llama-mesh/worker.sock"], "{path}");
            assert_eq!(settings.listen.http.port(), 8000, "{path}");
        }
    }

    #[test]
    fn what_is_not_given_changes_nothing() {
        let settings = flags(&["--model", "m"]).settings().unwrap();
        let defaults = GatewayConfig { model: Some("m".into()), ..Default::default() };
        assert_eq!(settings, defaults);
    }

    #[test]
    fn each_kind_of_failure_has_its_exit_code() {
        let code = |args: &[&str]| {
            let args = ["gateway"].iter().chain(args).map(Into::into).collect();
            format!("{:?}", run(args))
        };
        let wanted = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(code(&["--no-such-flag"]), wanted(2));
        assert_eq!(code(&["--http", "nowhere"]), wanted(2));
        assert_eq!(code(&["--config", "/no/such.toml"]), wanted(64));
        assert_eq!(code(&["--model", "m", "--worker", "nowhere"]), wanted(64));
        assert_eq!(code(&["--version"]), wanted(0));
    }
}
