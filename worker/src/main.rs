//! The `worker` binary; `llama-mesh worker` is the same.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    worker::cli::run(std::env::args_os())
}
