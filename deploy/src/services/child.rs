//! One child process: its standard input is its leash.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{ChildStdin, ChildStdout, Command};

/// Lines of standard error that are kept for an error message.
const LAST_LINES: usize = 8;

/// Where a child's log goes.
#[derive(Debug)]
pub(crate) enum Output {
    /// To this process's standard error.
    Inherit,
    /// To a file, made anew.
    File(PathBuf),
}

/// A service process. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Child {
    name: &'static str,
    process: tokio::process::Child,
    // Apart from `process`, which closes its standard input when waited for.
    leash: Option<ChildStdin>,
    stdout: Option<BufReader<ChildStdout>>,
    log: Output,
}

impl Child {
    /// Starts `llama-mesh NAME ARGS`.
    ///
    /// # Errors
    /// When the process or its log cannot be made.
    pub(crate) fn start(
        name: &'static str,
        args: &[OsString],
        log: Output,
    ) -> anyhow::Result<Self> {
        let executable = std::env::current_exe().context("cannot find this executable")?;
        let mut command = Command::new(executable);
        command.arg(name).args(args);
        Self::spawn(name, command, log)
    }

    fn spawn(name: &'static str, mut command: Command, log: Output) -> anyhow::Result<Self> {
        let stderr = match &log {
            Output::Inherit => Stdio::inherit(),
            Output::File(path) => std::fs::File::create(path)
                .with_context(|| format!("cannot write {}", path.display()))?
                .into(),
        };
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start the {name}"))?;
        let stdout = process.stdout.take().map(BufReader::new);
        let leash = process.stdin.take();
        Ok(Self { name, process, leash, stdout, log })
    }

    /// The first line of standard output that starts so.
    ///
    /// # Errors
    /// When the child ends without saying it.
    pub(crate) async fn line_starting_with(&mut self, prefix: &str) -> anyhow::Result<String> {
        let Some(stdout) = &mut self.stdout else { bail!("the {} says nothing", self.name) };
        loop {
            let mut line = String::new();
            let count = stdout.read_line(&mut line).await.context("cannot read from a service")?;
            if count == 0 {
                return Err(self.ended().await);
            }
            if line.starts_with(prefix) {
                return Ok(line);
            }
        }
    }

    /// Resolves when the child has ended, with what it said last.
    pub(crate) async fn ended(&mut self) -> anyhow::Error {
        match self.process.wait().await {
            Ok(status) => anyhow!("the {} ended ({status}){}", self.name, self.last_words()),
            Err(error) => anyhow!("lost the {}: {error}", self.name),
        }
    }

    fn last_words(&self) -> String {
        let Output::File(path) = &self.log else { return String::new() };
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n  ");
        format!("; it said:\n  {last}\n(all of it is in {})", path.display())
    }

    /// Lets go of the leash, waits for the drain, kills what is left after
    /// `grace`.
    ///
    /// # Errors
    /// When the child had to be killed or failed.
    pub(crate) async fn stop(mut self, grace: Duration) -> anyhow::Result<()> {
        drop(self.leash.take());
        match tokio::time::timeout(grace, self.process.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => bail!("the {} ended ({status}){}", self.name, self.last_words()),
            Ok(Err(error)) => bail!("lost the {}: {error}", self.name),
            Err(_) => {
                let killed = self.process.kill().await;
                killed.with_context(|| format!("cannot kill the {}", self.name))?;
                bail!("the {} did not drain within {grace:?} and was killed", self.name)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, log: Output) -> Child {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Child::spawn("shell", command, log).expect("starts")
    }

    #[tokio::test]
    async fn letting_go_of_the_leash_stops_it() {
        let child = shell("cat > /dev/null", Output::Inherit);
        child.stop(Duration::from_secs(10)).await.expect("drains");
    }

    #[tokio::test]
    async fn a_child_that_does_not_drain_is_killed() {
        let child = shell("exec sleep 100", Output::Inherit);
        let error = child.stop(Duration::from_millis(50)).await.expect_err("killed");
        assert!(error.to_string().contains("did not drain"), "{error}");
    }

    #[tokio::test]
    async fn its_last_words_are_in_the_error() {
        let scratch = tempfile::tempdir().expect("scratch");
        let log = Output::File(scratch.path().join("log"));
        let mut child = shell("echo no such model >&2; exit 1", log);
        let error = child.line_starting_with("listening").await.expect_err("ends");
        assert!(error.to_string().contains("no such model"), "{error}");
    }

    #[tokio::test]
    async fn other_lines_are_passed_over() {
        let mut child = shell("echo hello; echo listening http=x; cat >/dev/null", Output::Inherit);
        let line = child.line_starting_with("listening ").await.expect("says it");
        assert_eq!(line, "listening http=x\n");
    }
}
