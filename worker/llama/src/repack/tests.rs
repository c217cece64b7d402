//! Repacking tiny models, whose every byte is known.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::checkpoint::Checkpoint;
use crate::config::LlamaConfig;
use crate::names::WeightName;
use crate::pth::{PthFile, PthWriteError, PthWriter};
use crate::tiny::{self, TinyModel};

/// As 70B is to its eight shards: a KV head for each.
fn like_70b(num_layers: usize) -> TinyModel {
    let config = LlamaConfig {
        hidden_size: 64,
        intermediate_size: 96,
        num_hidden_layers: num_layers,
        num_attention_heads: 16,
        num_key_value_heads: 8,
        head_dim: 4,
        vocab_size: 80,
        ..tiny::config()
    };
    TinyModel::new(config, 70)
}

/// A checkpoint and a directory to repack to, which is not made yet.
struct Case {
    root: TempDir,
    model: TinyModel,
}

impl Case {
    fn new(model: TinyModel, num_shards: usize) -> Self {
        let case = Self { root: tempfile::tempdir().unwrap(), model };
        case.model.write_meta(&case.checkpoint(), num_shards).unwrap();
        fs::write(case.checkpoint().join(TOKENIZER), "tokens").unwrap();
        case
    }

    fn checkpoint(&self) -> PathBuf {
        self.root.path().join("checkpoint")
    }

    fn output(&self) -> PathBuf {
        self.root.path().join("made/here")
    }

    fn repack(&self, chunk_size: usize) -> RepackReport {
        self.try_repack(&self.output(), chunk_size, false).unwrap()
    }

    fn try_repack(
        &self,
        output: &Path,
        chunk_size: usize,
        force: bool,
    ) -> Result<RepackReport, RepackError> {
        let options = RepackOptions { chunk_size, force };
        repack(&self.checkpoint(), output, options, &mut |_| ControlFlow::Continue(()))
    }

    /// Every tensor of the model is in exactly one of the files, whole.
    fn check(&self, output: &Path, report: &RepackReport) {
        let mut seen = BTreeSet::new();
        for file in &report.files {
            let path = output.join(&file.name);
            assert_eq!(fs::metadata(&path).unwrap().len(), file.num_bytes);
            let pth = PthFile::open(&path).unwrap();
            for (name, tensor) in pth.tensors() {
                assert!(seen.insert(name.clone()), "{name} comes twice");
                let mut bytes = vec![0; (tensor.num_elements() * 2) as usize];
                pth.read_at(tensor.offset, &mut bytes).unwrap();
                let weight = self.weight(name);
                assert_eq!(bytes, self.model.bf16_bytes(weight), "{name}");
                let shape: Vec<_> =
                    weight.shape(self.model.config()).map(|size| size as u64).into();
                let is_gain = shape[0] == 1;
                assert_eq!(tensor.shape, shape[usize::from(is_gain)..], "{name}");
            }
        }
        let mut expected: BTreeSet<_> =
            WeightName::stored(self.model.config()).into_iter().map(WeightName::meta).collect();
        expected.insert("output.weight".to_owned());
        assert_eq!(seen, expected);
    }

    fn weight(&self, meta: &str) -> WeightName {
        let mut weights = WeightName::stored(self.model.config());
        weights.push(WeightName::LmHead);
        weights.into_iter().find(|weight| weight.meta() == meta).expect("a weight of the model")
    }
}

fn names(report: &RepackReport) -> Vec<(&str, bool)> {
    report.files.iter().map(|file| (file.name.as_str(), file.written)).collect()
}

fn listing(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn files_are_named_by_their_first_and_last_layers() {
    let case = Case::new(like_70b(7), 8);
    for (chunk_size, expected) in [
        (1, (0..7).map(|layer| format!("layers_{layer}-{layer}.pth")).collect::<Vec<_>>()),
        (3, vec!["layers_0-2.pth".into(), "layers_3-5.pth".into(), "layers_6-6.pth".into()]),
        (7, vec!["layers_0-6.pth".into()]),
        (10, vec!["layers_0-6.pth".into()]),
        (usize::MAX, vec!["layers_0-6.pth".into()]),
    ] {
        let output = case.root.path().join(chunk_size.to_string());
        let report = case.try_repack(&output, chunk_size, false).unwrap();
        let expected: Vec<_> = expected.iter().map(|name| (name.as_str(), true)).collect();
        assert_eq!(names(&report), expected);
        assert_eq!(report.copied, [PARAMS, TOKENIZER]);
        case.check(&output, &report);
        // What belongs to no layer is in the first file.
        let first = PthFile::open(&output.join(&report.files[0].name)).unwrap();
        for name in ["tok_embeddings.weight", "norm.weight", "output.weight"] {
            assert!(first.tensors().contains_key(name), "{name}");
        }
    }
}

#[test]
fn the_loader_prefers_the_chunks_of_the_same_directory_and_reads_the_same() {
    let case = Case::new(like_70b(5), 8);
    let before = Checkpoint::open(&case.checkpoint()).unwrap();
    let report = case.try_repack(&case.checkpoint(), 2, false).unwrap();
    assert!(report.copied.is_empty() && report.missing.is_empty());
    case.check(&case.checkpoint(), &report);
    // Whoever opened the shards would fail.
    for shard in 0..8 {
        let path = case.checkpoint().join(format!("consolidated.{shard:02}.pth"));
        fs::write(path, "not read").unwrap();
    }
    let after = Checkpoint::open(&case.checkpoint()).unwrap();
    assert_eq!(after.config(), before.config());
    assert_eq!(after.weight_fingerprint(), before.weight_fingerprint());
}

#[test]
fn one_file_is_divided_by_layers() {
    let mut config = tiny::config();
    config.num_hidden_layers = 3;
    config.tie_word_embeddings = true;
    let case = Case::new(TinyModel::new(config, 1), 1);
    let report = case.repack(2);
    assert_eq!(names(&report), [("layers_0-1.pth", true), ("layers_2-2.pth", true)]);
    case.check(&case.output(), &report);
    // The table is stored once.
    let first = PthFile::open(&case.output().join("layers_0-1.pth")).unwrap();
    let tensors = first.tensors();
    assert_eq!(tensors["output.weight"], tensors["tok_embeddings.weight"]);
    assert!(Checkpoint::open(&case.output()).unwrap().config().tie_word_embeddings);
}

#[test]
fn a_second_run_changes_nothing() {
    let case = Case::new(like_70b(4), 8);
    case.repack(2);
    let stamps = || {
        listing(&case.output())
            .into_iter()
            .map(|name| fs::metadata(case.output().join(name)).unwrap().modified().unwrap())
            .collect::<Vec<_>>()
    };
    let before = stamps();
    let report = case.repack(2);
    assert_eq!(names(&report), [("layers_0-1.pth", false), ("layers_2-3.pth", false)]);
    assert!(report.copied.is_empty());
    assert_eq!(stamps(), before);
    let report = case.try_repack(&case.output(), 2, true).unwrap();
    assert_eq!(names(&report), [("layers_0-1.pth", true), ("layers_2-3.pth", true)]);
    assert_ne!(stamps(), before);
    case.check(&case.output(), &report);
}

/// What may lie there under a chunk's name, and is not that chunk.
#[test]
fn whatever_is_not_this_chunk_of_this_model_is_written_again() {
    let case = Case::new(like_70b(4), 8);
    case.repack(2);
    let chunk = case.output().join("layers_2-3.pth");
    let whole = fs::read(&chunk).unwrap();
    let other = Case::new(TinyModel::new(case.model.config().clone(), 71), 8);
    other.repack(2);
    let of_other_weights = fs::read(other.output().join("layers_2-3.pth")).unwrap();
    let first_chunk = fs::read(case.output().join("layers_0-1.pth")).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    let (mut missing, mut reshaped) = (Vec::new(), Vec::new());
    for (changed, drop_last) in [(&mut missing, true), (&mut reshaped, false)] {
        let mut writer = PthWriter::new("layers_2-3").unwrap();
        let pth = PthFile::open(&chunk).unwrap();
        for (name, tensor) in pth.tensors().iter().skip(usize::from(drop_last)) {
            let flat = [tensor.num_elements()];
            let shape = if drop_last { &tensor.shape[..] } else { &flat };
            writer.tensor(name, tensor.dtype, shape).unwrap();
        }
        *changed = writer
            .write(Vec::new(), |name, storage| {
                let bytes = case.model.bf16_bytes(case.weight(name));
                std::io::Write::write_all(storage, &bytes)?;
                Ok::<_, PthWriteError>(())
            })
            .unwrap();
    }
    for (what, content) in [
        ("cut", &whole[..whole.len() - 1]),
        ("half", &whole[..whole.len() / 2]),
        ("empty", &[]),
        ("text", b"layers"),
        ("damaged", &damaged),
        ("another model's", &of_other_weights),
        ("another chunk", &first_chunk),
        ("missing tensor", &missing),
        ("other shapes", &reshaped),
    ] {
        fs::write(&chunk, content).unwrap();
        let report = case.repack(2);
        let expected = [("layers_0-1.pth", false), ("layers_2-3.pth", true)];
        assert_eq!(names(&report), expected, "{what}");
        assert!(fs::read(&chunk).unwrap() == whole, "{what}");
    }
}

#[test]
fn chunks_of_another_size_are_refused_or_replaced() {
    let case = Case::new(like_70b(4), 8);
    case.repack(2);
    let before = listing(&case.output());
    let error = case.try_repack(&case.output(), 3, false).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("layers_0-1.pth, layers_2-3.pth"), "{message}");
    assert_eq!(listing(&case.output()), before);
    let report = case.try_repack(&case.output(), 3, true).unwrap();
    assert_eq!(report.removed, ["layers_0-1.pth", "layers_2-3.pth"]);
    case.check(&case.output(), &report);
    let expected = ["layers_0-2.pth", "layers_3-3.pth", PARAMS, TOKENIZER];
    assert_eq!(listing(&case.output()), expected);
}

#[test]
fn a_run_that_is_stopped_leaves_complete_files_and_the_next_goes_on() {
    let case = Case::new(like_70b(6), 8);
    let stop_after = |num_bytes: u64| {
        let options = RepackOptions { chunk_size: 2, force: false };
        repack(&case.checkpoint(), &case.output(), options, &mut |progress| {
            assert!(progress.done_bytes <= progress.total_bytes);
            if progress.done_bytes > num_bytes {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
    };
    let error = stop_after(0).unwrap_err();
    assert!(matches!(error, RepackError::Stopped { complete: 0, total: 3 }), "{error}");
    assert_eq!(listing(&case.output()), [PARAMS, TOKENIZER]);
    let first = Case::new(like_70b(6), 8).repack(2).files[0].num_bytes;
    let error = stop_after(first).unwrap_err();
    assert!(matches!(error, RepackError::Stopped { complete: 1, total: 3 }), "{error}");
    assert_eq!(listing(&case.output()), ["layers_0-1.pth", PARAMS, TOKENIZER]);
    // As after a power failure, which leaves no time to tidy.
    fs::write(case.output().join("layers_4-5.pth.tmp"), "half").unwrap();
    fs::write(case.output().join("layers_0-3.pth.tmp"), "of another size").unwrap();
    fs::write(case.output().join("mine.tmp"), "not ours").unwrap();
    let report = case.repack(2);
    let expected = [("layers_0-1.pth", false), ("layers_2-3.pth", true), ("layers_4-5.pth", true)];
    assert_eq!(names(&report), expected);
    case.check(&case.output(), &report);
    let expected =
        ["layers_0-1.pth", "layers_2-3.pth", "layers_4-5.pth", "mine.tmp", PARAMS, TOKENIZER];
    assert_eq!(listing(&case.output()), expected);
}

#[test]
fn files_of_the_output_are_not_overwritten() {
    let case = Case::new(like_70b(2), 8);
    fs::create_dir_all(case.output()).unwrap();
    fs::write(case.output().join(TOKENIZER), "my own").unwrap();
    let params = case.model.params_json();
    // The same in other words.
    fs::write(case.output().join(PARAMS), format!(" {params:#}")).unwrap();
    assert!(case.repack(10).copied.is_empty());
    assert_eq!(fs::read(case.output().join(TOKENIZER)).unwrap(), b"my own");
    fs::write(case.output().join(PARAMS), r#"{"dim": 8192}"#).unwrap();
    for force in [false, true] {
        let error = case.try_repack(&case.output(), 10, force).unwrap_err();
        assert!(matches!(error, RepackError::OtherModel { .. }), "{error}");
    }
}

#[test]
fn what_is_missing_is_named() {
    let case = Case::new(like_70b(2), 8);
    fs::remove_file(case.checkpoint().join(TOKENIZER)).unwrap();
    assert_eq!(case.repack(10).missing, [TOKENIZER]);
    let refused = |expected: &str| {
        let output = case.root.path().join("never made");
        let message = case.try_repack(&output, 10, false).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        assert!(!output.exists(), "made for nothing: {message}");
    };
    let shard = |n: usize| case.checkpoint().join(format!("consolidated.{n:02}.pth"));
    fs::rename(shard(3), case.root.path().join("3")).unwrap();
    refused("consolidated.03.pth is missing");
    fs::rename(case.root.path().join("3"), shard(3)).unwrap();
    fs::rename(shard(7), case.root.path().join("7")).unwrap();
    refused("consolidated.07.pth");
    fs::copy(shard(0), shard(7)).unwrap();
    let full = fs::read(shard(1)).unwrap();
    fs::write(shard(1), &full[..full.len() / 3]).unwrap();
    refused("consolidated.01.pth");
    fs::write(shard(1), full).unwrap();
    let mut params = case.model.params_json();
    params["vocab_size"] = 88.into();
    fs::write(case.checkpoint().join(PARAMS), params.to_string()).unwrap();
    refused("tok_embeddings.weight has shape [10, 64], expected [11, 64]");
    params["vocab_size"] = 80.into();
    params["vision_num_cross_attention_layers"] = 8.into();
    fs::write(case.checkpoint().join(PARAMS), params.to_string()).unwrap();
    refused("images");
    fs::remove_file(case.checkpoint().join(PARAMS)).unwrap();
    refused("no params.json");
}

#[test]
fn sizes_and_places_that_cannot_be_are_refused() {
    let case = Case::new(like_70b(2), 8);
    let error = case.try_repack(&case.output(), 0, false).unwrap_err();
    assert!(matches!(error, RepackError::ChunkSize), "{error}");
    let file = case.root.path().join("file");
    fs::write(&file, "").unwrap();
    let error = case.try_repack(&file.join("below"), 1, false).unwrap_err();
    assert!(matches!(error, RepackError::Write { .. }), "{error}");
    fs::create_dir_all(case.output()).unwrap();
    let other_process = fs::File::open(case.output()).unwrap();
    other_process.lock().unwrap();
    let error = case.try_repack(&case.output(), 1, false).unwrap_err();
    assert!(matches!(error, RepackError::Busy { .. }), "{error}");
    drop(other_process);
    case.repack(1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn repacking_any_shards_gives_back_every_tensor(
        shards_log in 0_u32..4, heads in 1_usize..3, group in 1_usize..4, half_head in 1_usize..5,
        width in 1_usize..9, vocabulary in 1_usize..9, num_layers in 1_usize..5,
        chunk_size in 1_usize..6, tie_word_embeddings: bool, seed: u64,
    ) {
        let num_shards = 1 << shards_log;
        let (kv_heads, head_dim) = (heads * num_shards, 2 * half_head);
        let hidden_size = kv_heads * group * head_dim;
        let config = LlamaConfig {
            hidden_size,
            intermediate_size: width * num_shards,
            num_hidden_layers: num_layers,
            num_attention_heads: kv_heads * group,
            num_key_value_heads: kv_heads,
            head_dim,
            vocab_size: vocabulary * num_shards,
            tie_word_embeddings,
            ..tiny::config()
        };
        let case = Case::new(TinyModel::new(config, seed), num_shards);
        let report = case.repack(chunk_size);
        prop_assert_eq!(report.files.len(), num_layers.div_ceil(chunk_size));
        case.check(&case.output(), &report);
        let whole = Checkpoint::open(&case.checkpoint()).unwrap();
        let chunks = Checkpoint::open(&case.output()).unwrap();
        prop_assert_eq!(whole.weight_fingerprint(), chunks.weight_fingerprint());
    }
}
