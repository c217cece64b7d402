//! The `llama-mesh` binary.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    llama_mesh::run(std::env::args_os().collect())
}
