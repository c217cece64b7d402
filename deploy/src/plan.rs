//! `llama-mesh plan`: where every weight of a model would lie on a device, what
//! it takes there, and whether it fits. Needs no weights: people plan before
//! they download.

mod json;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use llama::{Device, DevicePlan, DoesNotFit, LlamaConfig, PlanError, Workload, max_prefill_chunk};
use worker::config::{DeviceEnvironment, DispatchReport, OptimizationsKind, WorkerConfig};

use crate::cli::PlanArgs;

/// Exit code of bad settings, those of the environment among them.
const BAD_CONFIGURATION: u8 = 64;
/// Context of a plan of which not even a short one fits.
const SHORT_CONTEXT: usize = 4096;

/// A plan and all that is said about it.
pub(crate) struct Report {
    /// The model's directory or file, as it was given.
    pub(crate) model: PathBuf,
    pub(crate) plan: DevicePlan,
    pub(crate) optimizations: &'static str,
    pub(crate) max_num_seqs: usize,
    /// Of this machine, where the plan is for it.
    pub(crate) host_memory: Option<u64>,
    pub(crate) dispatch: DispatchReport,
    pub(crate) result: Result<(), DoesNotFit>,
}

/// What the environment says.
pub(crate) struct Surroundings {
    pub(crate) llama_dir: Option<PathBuf>,
    pub(crate) devices: DeviceEnvironment,
    pub(crate) host_memory: Option<u64>,
}

/// Prints the plan; exit code 1 when the device cannot hold it.
///
/// # Errors
/// When the model's configuration cannot be read, or cannot be cut for the
/// device.
pub(crate) fn run(args: &PlanArgs) -> anyhow::Result<ExitCode> {
    let surroundings = Surroundings {
        llama_dir: std::env::var_os("LLAMA_DIR").map(PathBuf::from),
        devices: DeviceEnvironment::read(),
        host_memory: worker::memory::available_bytes(),
    };
    let device = match device(args, &surroundings.devices) {
        Ok(device) => device,
        Err(reason) => {
            eprintln!("error: {reason}");
            return Ok(ExitCode::from(BAD_CONFIGURATION));
        }
    };
    let path = args
        .model
        .clone()
        .or_else(|| surroundings.llama_dir.clone().filter(|path| !path.as_os_str().is_empty()))
        .context("no model: give --model-dir, or set LLAMA_DIR")?;
    let report = report(args, &path, device, &surroundings)?;
    if args.json {
        println!("{}", json::object(&report));
    } else {
        print!("{}", table::text(&report));
    }
    if let Some(warning) = report.dispatch.warning {
        eprintln!("warning: {warning}");
    }
    match &report.result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(reason) => {
            eprintln!("error: does not fit: {reason}");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The flag, else the environment, else the CPU.
fn device(args: &PlanArgs, environment: &DeviceEnvironment) -> Result<Device, String> {
    let named = match args.device {
        Some(device) => Some(device),
        None => environment.device().map_err(|error| error.to_string())?.map(|(_, device)| device),
    };
    let device = named.unwrap_or(Device::Cpu { num_chips: 1 });
    match (device, args.chips) {
        (Device::Cpu { .. }, Some(num_chips)) => {
            Ok(Device::Cpu { num_chips: usize::from(num_chips) })
        }
        (card, Some(chips)) if card.num_chips() != usize::from(chips) => {
            Err(format!("--chips is {chips}, an {card} has {}", card.num_chips()))
        }
        (device, _) => Ok(device),
    }
}

fn report(
    args: &PlanArgs,
    path: &Path,
    device: Device,
    surroundings: &Surroundings,
) -> anyhow::Result<Report> {
    let config = LlamaConfig::from_path(path)?;
    let host_memory = surroundings.host_memory.filter(|_| !device.is_card());
    let plan = plan(args, &config, device, host_memory)?;
    Ok(Report {
        model: path.to_owned(),
        result: plan.check(host_memory),
        optimizations: match args.optimizations {
            OptimizationsKind::Performance => "performance",
            OptimizationsKind::Accuracy => "accuracy",
            OptimizationsKind::Bf16 => "bf16",
            OptimizationsKind::F32 => "f32",
        },
        max_num_seqs: args.max_num_seqs as usize,
        host_memory,
        dispatch: surroundings.devices.dispatch(device),
        plan,
    })
}

/// The plan for the context that was asked for, else for the longest that fits.
fn plan(
    args: &PlanArgs,
    config: &LlamaConfig,
    device: Device,
    host_memory: Option<u64>,
) -> Result<DevicePlan, PlanError> {
    // The worker's own choice of formats and steps.
    let mut settings =
        WorkerConfig { optimizations: args.optimizations, ..WorkerConfig::default() };
    settings.kv.dtype = args.kv_dtype;
    let policy = settings.policy(config);
    let kv_block_size = settings.kv.block_size as usize;
    let prefill_chunk = if device.is_card() {
        max_prefill_chunk(config.llama3_size(), device)
    } else {
        settings.num_batched_tokens() as usize
    };
    let seqs = args.max_num_seqs as usize;
    let of = |max_model_len: usize| {
        let kv_tokens = max_model_len.next_multiple_of(kv_block_size) * seqs;
        let workload = Workload { max_model_len, kv_tokens, kv_block_size, prefill_chunk };
        DevicePlan::new(config, device, policy, workload)
    };
    let limit = of(1)?.context_limit();
    match args.max_model_len {
        Some(max_model_len) => of(max_model_len as usize),
        None => match of(limit)?.longest_context(seqs, host_memory) {
            0 => of(limit.min(SHORT_CONTEXT)),
            longest => of(longest),
        },
    }
}

#[cfg(test)]
mod tests;
