//! The `gateway` binary; the story is told in `gateway::cli`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    gateway::cli::run(std::env::args_os().collect())
}
