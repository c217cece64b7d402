//! Real `llama-mesh` processes on free ports, for one test.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http::Client;
use crate::packaged_model;

/// How long a process may take to become ready or to end.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The executable under test, beside this test's own.
///
/// # Panics
/// When it has not been built.
pub fn executable() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let profile = test.parent().and_then(Path::parent).expect("tests live in target/PROFILE/deps");
    let path = profile.join("llama-mesh");
    assert!(path.exists(), "{} is missing: cargo build -p llama-mesh", path.display());
    path
}

/// One process; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts `llama-mesh ARGS`, with standard output piped.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(args: &[&str], env: &[(&str, &str)]) -> Self {
        let child = Command::new(executable())
            .args(args)
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the executable starts");
        Self { child }
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the line of standard output that starts so.
    ///
    /// # Panics
    /// When the process ends without it.
    pub fn line_starting_with(&mut self, prefix: &str) -> String {
        let stdout = self.child.stdout.as_mut().expect("piped");
        let mut lines = BufReader::new(stdout).lines();
        lines
            .find_map(|line| line.ok().filter(|line| line.starts_with(prefix)))
            .expect("the process says that it is ready")
    }

    /// Sends a signal by name.
    ///
    /// # Panics
    /// When there is no `kill`.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status().expect("kill runs");
        assert!(status.success(), "kill -s {name} failed");
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// When it takes longer than `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                return status;
            }
            assert!(start.elapsed() < limit, "still running after {limit:?}");
            pause();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Workers and a gateway over Unix sockets, ready to serve.
#[derive(Debug)]
pub struct Sandbox {
    /// The gateway process.
    pub gateway: Process,
    /// The worker processes.
    pub workers: Vec<Process>,
    /// Where HTTP, and gRPC beside it, is served.
    pub address: SocketAddr,
    /// Socket paths of the workers.
    pub sockets: Vec<PathBuf>,
    _directory: tempfile::TempDir,
}

/// What a sandbox runs.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// The packaged model where unset.
    pub model: Option<String>,
    /// Further flags of the worker.
    pub worker_args: Vec<String>,
    /// Further flags of the gateway.
    pub gateway_args: Vec<String>,
    /// Environment of both.
    pub env: Vec<(String, String)>,
}

impl Layout {
    /// Serves another model than the packaged one.
    #[must_use]
    pub fn model(mut self, path: &str) -> Self {
        self.model = Some(path.to_owned());
        self
    }

    /// Adds worker flags.
    #[must_use]
    pub fn worker(mut self, args: &[&str]) -> Self {
        self.worker_args.extend(args.iter().map(ToString::to_string));
        self
    }

    /// Adds gateway flags.
    #[must_use]
    pub fn gateway(mut self, args: &[&str]) -> Self {
        self.gateway_args.extend(args.iter().map(ToString::to_string));
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts everything and waits until it can serve.
    ///
    /// # Panics
    /// When it does not become ready in time.
    pub fn start(self) -> Sandbox {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let packaged = || packaged_model().display().to_string();
        let model = self.model.unwrap_or_else(packaged);
        let socket = directory.path().join("worker.sock");
        let endpoint = format!("unix:{}", socket.display());
        let env: Vec<(&str, &str)> = self.env.iter().map(|(k, v)| (&**k, &**v)).collect();
        let mut args = vec!["worker", "--model", &model, "--listen", &endpoint];
        args.extend(self.worker_args.iter().map(String::as_str));
        let worker = Process::start(&args, &env);
        let mut args = vec!["gateway", "--model", &model, "--worker", &endpoint];
        args.extend(["--http", "127.0.0.1:0"]);
        args.extend(self.gateway_args.iter().map(String::as_str));
        let mut gateway = Process::start(&args, &env);
        let line = gateway.line_starting_with("ready ");
        let address = line
            .split_whitespace()
            .find_map(|word| word.strip_prefix("http="))
            .and_then(|address| address.parse().ok())
            .expect("the ready line names the HTTP address");
        let sandbox = Sandbox {
            gateway,
            workers: vec![worker],
            address,
            sockets: vec![socket],
            _directory: directory,
        };
        sandbox.wait_until_ready();
        sandbox
    }
}

impl Sandbox {
    /// The packaged model with default settings.
    pub fn start() -> Self {
        Layout::default().start()
    }

    /// Ids of the prompt that `messages` become, and of a greedy answer of twelve
    /// tokens, whatever they are.
    ///
    /// # Panics
    /// When the gateway does not answer.
    pub fn greedy_ids(&self, messages: &Value) -> (Value, Value) {
        let client = self.client();
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let models = client.get("/v1/models").await.expect("answers").json();
            let body = json!({
                "model": models["data"][0]["id"], "messages": messages,
                "temperature": 0, "max_tokens": 12, "ignore_eos": true, "return_token_ids": true,
            });
            let reply = client.post("/v1/chat/completions", &body).await.expect("answers").json();
            let prompt =
                reply.pointer("/choices/0/prompt_token_ids").or(reply.get("prompt_token_ids"));
            (prompt.cloned().unwrap_or_default(), reply["choices"][0]["token_ids"].clone())
        })
    }

    /// A client of its HTTP port.
    pub fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// Base URL for other people's clients.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn wait_until_ready(&self) {
        let start = Instant::now();
        while self.client().get_blocking("/ready").is_none_or(|reply| reply.status != 200) {
            assert!(start.elapsed() < PATIENCE, "not ready after {PATIENCE:?}");
            pause();
        }
    }

    /// Polls `/metrics` until a sample has the value; all blocks and slots are
    /// free when the gauges say so.
    ///
    /// # Panics
    /// When it does not come true in time.
    pub fn wait_for_metric(&self, name: &str, value: f64) {
        let start = Instant::now();
        loop {
            let seen = self.metric(name);
            if seen == Some(value) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{name} is {seen:?}, must become {value}");
            pause();
        }
    }

    /// The sum of a metric's samples over its labels.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let reply = self.client().get_blocking("/metrics")?;
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        let samples = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        samples
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .reduce(|sum, value| sum + value)
    }
}

/// A short wait between two looks at another process.
pub fn pause() {
    #[expect(clippy::disallowed_methods, reason = "another process cannot be awaited")]
    std::thread::sleep(Duration::from_millis(20));
}
