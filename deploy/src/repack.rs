//! `llama-mesh repack`: Meta's shards of 70B as files of whole layers.

use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use llama::repack::{RepackError, RepackOptions, RepackReport, repack};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::RepackArgs;
use crate::progress::Progress;

/// Repacks, until it is done or told to stop by SIGTERM or Ctrl-C, which leave
/// complete files only.
///
/// # Errors
/// When the checkpoint is not one of Meta's or the output cannot be written.
pub(crate) async fn run(args: RepackArgs) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
    let stop = Arc::new(AtomicBool::new(false));
    let (json, work_stop) = (args.json, Arc::clone(&stop));
    let work = tokio::task::spawn_blocking(move || work(&args, &work_stop));
    tokio::pin!(work);
    let finished = tokio::select! {
        finished = &mut work => finished,
        _ = terminate.recv() => { stop.store(true, Ordering::Relaxed); work.await }
        _ = interrupt.recv() => { stop.store(true, Ordering::Relaxed); work.await }
    };
    let (report, time) = finished.context("repacking panicked")??;
    if json {
        println!("{}", as_json(&report, time));
    } else {
        print(&report, time);
    }
    Ok(ExitCode::SUCCESS)
}

fn work(args: &RepackArgs, stop: &AtomicBool) -> Result<(RepackReport, Duration), RepackError> {
    let options = RepackOptions { chunk_size: args.chunk_size, force: args.force };
    let started = Instant::now();
    let mut progress = None;
    let result = repack(&args.checkpoint_dir, &args.output_dir, options, &mut |now| {
        let bar = progress.get_or_insert_with(|| Progress::bytes("repacking", now.total_bytes));
        bar.set(now.done_bytes);
        if stop.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    match (&result, progress) {
        (Ok(_), Some(progress)) => progress.finish(),
        (Err(_), Some(progress)) => progress.abandon(),
        (_, None) => {}
    }
    Ok((result?, started.elapsed()))
}

fn as_json(report: &RepackReport, time: Duration) -> Value {
    let files: Vec<_> = report
        .files
        .iter()
        .map(|file| json!({ "name": file.name, "bytes": file.num_bytes, "written": file.written }))
        .collect();
    json!({
        "files": files,
        "copied": report.copied,
        "removed": report.removed,
        "missing": report.missing,
        "written_bytes": written_bytes(report),
        "seconds": time.as_secs_f64(),
    })
}

fn print(report: &RepackReport, time: Duration) {
    for file in &report.files {
        let verb = if file.written { "written" } else { "kept" };
        println!("{verb:8} {:>15} bytes  {}", file.num_bytes, file.name);
    }
    for name in &report.copied {
        println!("{:8} {:>15}        {name}", "copied", "");
    }
    for name in &report.removed {
        println!("{:8} {:>15}        {name}", "removed", "");
    }
    let (bytes, seconds) = (written_bytes(report), time.as_secs_f64());
    if bytes > 0 {
        let rate = bytes as f64 / 1e6 / seconds;
        eprintln!("{:.2} GB in {seconds:.1} s ({rate:.0} MB/s)", bytes as f64 / 1e9);
    } else {
        eprintln!("everything is there already; --force writes it again");
    }
    for name in &report.missing {
        eprintln!(
            "warning: neither directory has {name}, without which the model cannot be served"
        );
    }
}

fn written_bytes(report: &RepackReport) -> u64 {
    report.files.iter().filter(|file| file.written).map(|file| file.num_bytes).sum()
}
