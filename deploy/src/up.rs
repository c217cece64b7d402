//! `llama-mesh up`: worker and gateway, until told to stop.

use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::UpArgs;
use crate::client::Client;
use crate::services::{Plan, Services};

/// Starts the services, says where they are, and drains them on SIGTERM or
/// Ctrl-C.
///
/// # Errors
/// When a service cannot start, or ends by itself.
pub(crate) async fn run(args: UpArgs) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::pin!(stop);
    let plan = Plan {
        model: args.model,
        workers: args.workers,
        http: args.http,
        grpc: args.grpc,
        config: args.config,
        quiet: false,
    };
    let mut services = tokio::select! {
        services = Services::start(plan) => services?,
        () = &mut stop => return Ok(ExitCode::SUCCESS),
    };
    announce(&services, args.json).await?;
    tokio::select! {
        () = stop => {}
        error = services.ended() => return Err(error),
    }
    eprintln!("draining");
    services.shutdown().await?;
    Ok(ExitCode::SUCCESS)
}

async fn announce(services: &Services, as_json: bool) -> anyhow::Result<()> {
    let model = Client::new(&services.url())?.first_model().await?;
    let grpc = services.grpc.unwrap_or(services.http);
    if as_json {
        let endpoints = json!({ "http": services.url(), "grpc": grpc.to_string(), "model": model });
        println!("{endpoints}");
        return Ok(());
    }
    println!("ready");
    println!("  model  {model}");
    println!("  HTTP   {}/v1", services.url());
    println!("  gRPC   {grpc}");
    println!();
    println!("try:");
    println!(
        "  curl -N {}/v1/chat/completions -H 'content-type: application/json' \\",
        services.url()
    );
    println!(
        "    -d '{}'",
        json!({
            "model": model,
            "stream": true,
            "messages": [{ "role": "user", "content": "Why is the sky blue?" }],
        })
    );
    Ok(())
}
