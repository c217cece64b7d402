//! From the command line to a loaded model.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use common::model::ModelFiles;
use gateway::text::TextModel;
use llama::LlamaConfig;
use mesh::WeightCacheUse;
use serde_json::json;
use worker::backend::{self, LoadedModel};
use worker::config::{DeviceEnvironment, ENV_PREFIX, WorkerConfig};
use worker::error::WorkerError;
use worker::identity::Identity;
use worker::load_stage::LoadStage;

use super::{BlockTables, Driver};
use crate::cli::ModelArgs;
use crate::progress::Progress;

/// A model whose small files are read, and whose weights are not looked at.
#[derive(Debug)]
pub(crate) struct Opened {
    /// Tokenizer and chat template.
    pub(crate) text: TextModel,
    /// Its shape.
    pub(crate) config: LlamaConfig,
    /// As a worker would be set up.
    settings: WorkerConfig,
}

/// What the KV cache must hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Sequences in one step.
    pub(crate) num_sequences: usize,
    /// Positions of each.
    pub(crate) max_len: usize,
    /// Positions in a block; the worker's own default where unset.
    pub(crate) block_size: Option<u32>,
    /// Blocks; as many as are needed where unset.
    pub(crate) num_blocks: Option<u32>,
}

/// A model that can be stepped.
pub(crate) struct Loaded {
    /// To step it.
    pub(crate) driver: Driver,
    /// To deal out its KV cache.
    pub(crate) tables: BlockTables,
    /// What it is and what it runs on.
    pub(crate) identity: Identity,
    /// From opening the device to the last weight.
    pub(crate) load_time: Duration,
    /// Whether the weights came packed from disk.
    pub(crate) weight_cache: WeightCacheUse,
}

impl Opened {
    /// Opens the model at `path` for the device and formats that `args` ask for.
    /// What they leave open is as for a worker: its environment, its defaults.
    ///
    /// # Errors
    /// Bad settings, or files that are missing or damaged, by name.
    pub(crate) fn open(path: &Path, args: &ModelArgs) -> anyhow::Result<Self> {
        let flags = [
            ("model", json!(path)),
            ("device", json!(args.device)),
            ("simulate", json!(args.simulate.then_some(true))),
            ("chips", json!(args.chips)),
            ("optimizations", json!(args.optimizations)),
            ("kv.dtype", json!(args.kv_dtype)),
            ("ignore_model_name", json!(args.ignore_model_name.then_some(true))),
        ];
        let flags = flags.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let mut settings: WorkerConfig =
            common::config::load(None, ENV_PREFIX, flags).map_err(WorkerError::from)?;
        let environment = DeviceEnvironment::read();
        settings.apply_environment(&environment).map_err(WorkerError::from)?;
        settings.validate().map_err(WorkerError::from)?;
        let device = settings.mesh().map_err(WorkerError::from)?.device();
        if let Some(warning) = environment.dispatch(device).warning {
            eprintln!("warning: {warning}");
        }
        let files = ModelFiles::locate(path).map_err(WorkerError::from)?;
        let config = LlamaConfig::from_path(files.path()).map_err(WorkerError::from)?;
        let text = TextModel::load(&files)
            .with_context(|| format!("cannot use the tokenizer of {}", path.display()))?;
        Ok(Self { text, config, settings })
    }

    /// Loads the weights, with a KV cache of the given size.
    ///
    /// # Errors
    /// As [`backend::load_model`].
    pub(crate) fn load(&self, sizes: &Sizes) -> anyhow::Result<Loaded> {
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let mut settings = self.settings.clone();
        settings.kv.block_size = sizes.block_size.unwrap_or(settings.kv.block_size);
        let needed = sizes.max_len.div_ceil(settings.kv.block_size.max(1) as usize);
        let needed = needed.saturating_mul(sizes.num_sequences);
        settings.kv.blocks = Some(sizes.num_blocks.unwrap_or_else(|| number(needed)));
        settings.max_model_len = Some(number(sizes.max_len));
        settings.max_num_seqs = number(sizes.num_sequences);
        let tokens = settings.num_batched_tokens().max(settings.max_num_seqs);
        settings.max_num_batched_tokens = Some(tokens);
        settings.validate().map_err(WorkerError::from)?;
        eprintln!("Initializing device");
        let start = Instant::now();
        let LoadedModel { forward, identity, report } = load_with_progress(&settings)?;
        let load_time = start.elapsed();
        let limits = identity.limits;
        let tables = BlockTables {
            block_size: limits.kv_block_size as usize,
            num_blocks: limits.num_kv_blocks as usize,
        };
        let driver = Driver::new(forward, limits.max_num_batched_tokens as usize);
        Ok(Loaded { driver, tables, identity, load_time, weight_cache: report.weight_cache })
    }
}

fn load_with_progress(settings: &WorkerConfig) -> Result<LoadedModel, WorkerError> {
    let mut progress = None;
    let mut compiling = None;
    let loaded = backend::load_model(settings, &mut |stage| match stage {
        LoadStage::Weights(load) => progress
            .get_or_insert_with(|| Progress::bytes("Loading weights", load.total_bytes))
            .set(load.done_bytes),
        LoadStage::Compiling { done, total, .. } => compiling
            .get_or_insert_with(|| Progress::steps("Compiling", total as u64))
            .set(done as u64),
    });
    if let Some(compiling) = compiling {
        if loaded.is_ok() { compiling.finish() } else { compiling.abandon() }
    }
    if let Some(progress) = progress {
        if loaded.is_ok() { progress.finish() } else { progress.abandon() }
    }
    loaded
}
