//! Starts of one model, one after another.

use std::fs::{self, OpenOptions};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use llama::tiny::TinyModel;
use mesh::{SequenceSlice, StepBatch, StepOutput, WeightCacheUse};
use tempfile::TempDir;
use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::backend::{LoadedModel, load_model};
use crate::config::{KvConfig, OptimizationsKind};
use crate::load_stage::LoadStage;

fn config(model: &Path) -> WorkerConfig {
    WorkerConfig {
        model: Some(model.to_owned()),
        threads: NonZeroUsize::new(2),
        kv: KvConfig { blocks: Some(8), ..KvConfig::default() },
        ..WorkerConfig::default()
    }
}

fn hugging_face() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    TinyModel::new(llama::tiny::config(), 7).write_hugging_face(directory.path()).unwrap();
    fs::write(directory.path().join("tokenizer.json"), "{}").unwrap();
    directory
}

fn load(config: &WorkerConfig) -> LoadedModel {
    load_model(config, &mut |_| {}).unwrap()
}

/// What became of the cache, and the bits of the logits of some tokens.
fn start(config: &WorkerConfig) -> (WeightCacheUse, Vec<u32>) {
    let LoadedModel { mut forward, report, .. } = load(config);
    assert!(!report.took.is_zero());
    let token_ids = vec![1, 90, 200, 3, 3];
    let slice =
        SequenceSlice { first_row: 0, num_tokens: 5, first_position: 0, block_table: vec![2] };
    let batch =
        StepBatch { sequences: vec![slice], logit_rows: vec![0, 4], token_ids, choices: None };
    let mut out = StepOutput::default();
    forward.forward(&batch, &mut out).unwrap();
    (report.weight_cache, out.logits.into_iter().map(f32::to_bits).collect())
}

#[test]
fn each_way_of_running_a_model_has_its_own_file() {
    let files = ModelFiles::Meta("/llama".into());
    let config = WorkerConfig::default();
    let path_of = |config: &WorkerConfig, num_chips| path(config, &files, num_chips);
    assert_eq!(path_of(&config, 1), Some("/llama/CPU/performance.weights".into()));
    assert_eq!(path_of(&config, 3), Some("/llama/CPU/performance-3chips.weights".into()));
    let bf16 = WorkerConfig { optimizations: OptimizationsKind::Bf16, ..config.clone() };
    assert_eq!(path_of(&bf16, 1), Some("/llama/CPU/bf16.weights".into()));
    let t3k = WorkerConfig { device: DeviceKind::T3K, simulate: true, ..config.clone() };
    assert_eq!(path_of(&t3k, 8), Some("/llama/T3K/performance-simulated.weights".into()));
    let off = WorkerConfig { weight_cache: false, ..config.clone() };
    assert_eq!(path_of(&off, 1), None);
    assert_eq!(path(&config, &ModelFiles::Gguf("/llama/a.gguf".into()), 1), None);
}

#[test]
fn a_second_start_has_the_bits_of_the_first() {
    let directory = hugging_face();
    let config = config(directory.path());
    let ways = [
        WorkerConfig { optimizations: OptimizationsKind::Performance, ..config.clone() },
        WorkerConfig { optimizations: OptimizationsKind::F32, ..config.clone() },
        WorkerConfig { chips: Some(2), ..config.clone() },
        WorkerConfig { device: DeviceKind::N300, simulate: true, ..config.clone() },
    ];
    let packed = ways.clone().map(|config| {
        let (used, logits) = start(&WorkerConfig { weight_cache: false, ..config });
        assert_eq!(used, WeightCacheUse::Unused);
        logits
    });
    assert!(!directory.path().join("CPU").exists());
    for used in [WeightCacheUse::Written, WeightCacheUse::Hit] {
        for (config, packed) in ways.iter().zip(&packed) {
            assert_eq!(start(config), (used, packed.clone()));
        }
    }
}

#[test]
fn a_gguf_file_is_loaded_without() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.gguf");
    TinyModel::new(llama::tiny::config(), 7).write_gguf(&path).unwrap();
    for model in [path.as_path(), directory.path()] {
        assert_eq!(start(&config(model)).0, WeightCacheUse::Unused);
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

/// A place in the middle of a tensor, outside the fingerprint's samples, is
/// changed without a trace in size or time: a start that reads it has other
/// logits, and one that does not, has not.
#[test]
fn a_second_start_reads_no_weight_of_the_checkpoint() {
    let directory = hugging_face();
    let config = config(directory.path());
    let (used, first) = start(&config);
    assert_eq!(used, WeightCacheUse::Written);
    let uncached = WorkerConfig { weight_cache: false, ..config.clone() };
    let path = directory.path().join("model.safetensors");
    let fingerprint = load(&uncached).identity.model.weight_fingerprint;
    // The embedding of token 90, whose row the prompt uses: rows have 256 bytes,
    // the samples 4096, and there are 65,536.
    let model = TinyModel::new(llama::tiny::config(), 7);
    let row = &model.weight(llama::WeightName::EmbedTokens)[90 * 64..91 * 64];
    let row: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
    let content = fs::read(&path).unwrap();
    let at = content.windows(row.len()).position(|window| window == row).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(&[0x3f; 256], at as u64).unwrap();
    file.set_modified(modified).unwrap();
    let (used, again) = start(&config);
    assert_eq!((used, &again), (WeightCacheUse::Hit, &first));
    assert_ne!(start(&uncached).1, first, "the place matters");
    assert_eq!(load(&uncached).identity.model.weight_fingerprint, fingerprint, "and is no sample");
    // With its trace, the cache is of another checkpoint.
    file.set_modified(modified + std::time::Duration::from_nanos(1)).unwrap();
    let (used, changed) = start(&config);
    assert_eq!((used, changed), (WeightCacheUse::Written, start(&uncached).1));
}

#[test]
fn progress_counts_every_byte_either_way() {
    let directory = hugging_face();
    let config = config(directory.path());
    let [first, second] = [(), ()].map(|()| {
        let mut seen = Vec::new();
        load_model(&config, &mut |stage: LoadStage| seen.push(stage)).unwrap();
        seen
    });
    assert_eq!(first, second);
    assert_eq!(first.last().unwrap().percent(), 100);
}

/// Collects what is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[test]
fn one_line_says_why_a_cache_was_not_used() {
    let directory = hugging_face();
    let config = config(directory.path());
    let path = directory.path().join("CPU/performance.weights");
    // While there is only one subscriber, an event that another thread is the
    // first to reach is switched off for all, by that thread having none.
    let _second =
        tracing::Dispatch::new(tracing_subscriber::fmt().with_writer(Log::default()).finish());
    let lines = |config: &WorkerConfig| {
        let log = Log::default();
        let subscriber =
            tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
        tracing::subscriber::with_default(subscriber, || start(config));
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let about = |line: &&str| line.contains("weight cache") || line.contains(".weights");
        text.lines().filter(about).map(str::to_owned).collect::<Vec<_>>()
    };
    let only = |lines: &[String], wanted: &[&str]| {
        let reasons: Vec<_> =
            lines.iter().filter(|line| line.contains("mesh_cpu::cache")).collect();
        let found = wanted.iter().all(|wanted| reasons[0].contains(wanted));
        assert!(found, "{lines:#?} does not say {wanted:?}");
        assert!(lines.iter().all(|line| line.contains("CPU/performance.weights")), "{lines:#?}");
    };
    only(&lines(&config), &["there is no weight cache", "writing it"]);
    only(&lines(&config), &["came from the weight cache"]);
    let weights = directory.path().join("model.safetensors");
    let file = OpenOptions::new().write(true).open(weights).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    only(&lines(&config), &["WARN", "is stale: the checkpoint has changed; rebuilding"]);
    OpenOptions::new().write(true).open(&path).unwrap().set_len(5000).unwrap();
    only(&lines(&config), &["WARN", "is damaged: it has not its full length; rebuilding"]);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let lines = lines(&config);
    only(&lines, &["WARN", "is not a regular file; going without a weight cache"]);
    assert_eq!(lines.len(), 1);
}

#[test]
fn a_card_keeps_its_weights_beside_those_of_its_simulation() {
    let files = ModelFiles::Meta("/m".into());
    let mut config = WorkerConfig::default();
    let of = |config: &WorkerConfig, files: &ModelFiles| {
        card_directory(config, files, llama::Device::T3K)
    };
    assert_eq!(of(&config, &files), Some("/m/T3K/performance".into()));
    assert_eq!(of(&config, &ModelFiles::Gguf("/m.gguf".into())), None);
    config.weight_cache = false;
    assert_eq!(of(&config, &files), None);
}
