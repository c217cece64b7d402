//! Whole checkpoints: both formats load the same weights, and what is wrong
//! with one is said before anything is loaded.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::config::RopeScaling;
use crate::names::LayerWeight;
use crate::tiny::{self, TinyModel};

/// The model in all its forms: GGUF, one safetensors file, three of them.
struct Written {
    directory: TempDir,
    paths: [PathBuf; 3],
}

fn write(model: &TinyModel) -> Written {
    let directory = tempfile::tempdir().unwrap();
    let paths = ["tiny.gguf", "single", "sharded"].map(|name| directory.path().join(name));
    model.write_gguf(&paths[0]).unwrap();
    model.write_hugging_face(&paths[1]).unwrap();
    model.write_sharded(&paths[2], 3).unwrap();
    Written { directory, paths }
}

fn values(checkpoint: &Checkpoint, name: WeightName) -> Vec<f32> {
    let matrix = checkpoint.matrix(name).unwrap();
    let mut values = vec![0.0; matrix.rows() * matrix.cols()];
    matrix.read_rows(0, &mut values).unwrap();
    values
}

fn error_of(path: &Path) -> String {
    Checkpoint::open(path).unwrap_err().to_string()
}

#[test]
fn every_format_loads_the_same_weights() {
    for tied in [false, true] {
        let config = LlamaConfig { tie_word_embeddings: tied, ..tiny::config() };
        let model = TinyModel::new(config.clone(), 7);
        for path in &write(&model).paths {
            let checkpoint = Checkpoint::open(path).unwrap();
            assert_eq!(checkpoint.config(), &config, "{}", path.display());
            for name in WeightName::stored(&config).into_iter().chain([WeightName::LmHead]) {
                assert_eq!(values(&checkpoint, name), model.weight(name), "{name}");
            }
        }
    }
}

#[test]
fn rows_may_be_read_in_any_pieces() {
    let model = TinyModel::new(tiny::config(), 7);
    let written = write(&model);
    for path in &written.paths {
        let checkpoint = Checkpoint::open(path).unwrap();
        let name = WeightName::Layer(1, LayerWeight::QProj);
        let matrix = checkpoint.matrix(name).unwrap();
        for (first, count) in [(0, 1), (17, 2), (63, 1), (5, 40), (64, 0)] {
            let mut rows = vec![0.0; count * matrix.cols()];
            matrix.read_rows(first, &mut rows).unwrap();
            let expected = &model.weight(name)[first * matrix.cols()..][..rows.len()];
            assert_eq!(rows, expected);
        }
    }
}

#[test]
fn a_fingerprint_stays_until_the_weights_change() {
    let write_seed = |seed| write(&TinyModel::new(tiny::config(), seed));
    let fingerprints = |written: &Written| {
        written
            .paths
            .each_ref()
            .map(|path| Checkpoint::open(path).unwrap().weight_fingerprint().to_owned())
    };
    let (one, same, other) = (write_seed(1), write_seed(1), write_seed(2));
    assert_eq!(fingerprints(&one), fingerprints(&same));
    for (a, b) in fingerprints(&one).iter().zip(fingerprints(&other)) {
        assert_ne!(*a, b);
        assert_eq!(a.len(), 32);
    }
    // One bit of the last weight, and one number of the configuration.
    let before = fingerprints(&one);
    let mut file = fs::read(&one.paths[0]).unwrap();
    *file.last_mut().unwrap() ^= 1;
    fs::write(&one.paths[0], file).unwrap();
    let config = LlamaConfig { rms_norm_eps: 2e-5, ..tiny::config() };
    let json = TinyModel::new(config, 1).config_json().to_string();
    fs::write(one.paths[1].join("config.json"), json).unwrap();
    let after = fingerprints(&one);
    assert_ne!(before[0], after[0]);
    assert_ne!(before[1], after[1]);
    assert_eq!(before[2], after[2]);
}

#[test]
fn names_come_from_the_metadata_or_the_directory() {
    let written = write(&TinyModel::new(tiny::config(), 1));
    let names = written.paths.map(|path| Checkpoint::open(&path).unwrap().name().to_owned());
    assert_eq!(names, ["tiny", "single", "sharded"]);
    drop(written.directory);
}

#[test]
fn what_is_no_checkpoint_says_what_would_be() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    assert!(error_of(&path("absent")).contains("No such file"));
    assert!(error_of(Path::new("/dev/null")).contains("neither a file nor a directory"));
    assert!(error_of(directory.path()).contains("neither config.json"));
    fs::write(path("model.gguf"), "GG").unwrap();
    assert!(error_of(&path("model.gguf")).contains("not a GGUF file"));
    fs::write(path("model.safetensors"), "").unwrap();
    assert!(error_of(&path("model.safetensors")).contains("name the directory"));
    fs::write(path("model.pth"), "PK").unwrap();
    assert!(error_of(&path("model.pth")).contains("with its params.json"));
    fs::write(path("params.json"), "{}").unwrap();
    assert!(error_of(directory.path()).contains("no weights: consolidated.00.pth"));
    fs::remove_file(path("params.json")).unwrap();
    fs::write(path("consolidated.00.pth"), "PK").unwrap();
    assert!(error_of(directory.path()).contains("params.json is missing"));
    fs::remove_file(path("model.safetensors")).unwrap();
    let config = TinyModel::new(tiny::config(), 1).config_json().to_string();
    fs::write(path("config.json"), config).unwrap();
    assert!(error_of(directory.path()).contains("has neither model.safetensors nor"));
    fs::write(path("config.json"), "{").unwrap();
    assert!(error_of(directory.path()).contains("config.json: not readable"));
    fs::write(path("config.json"), vec![b' '; 1 << 21]).unwrap();
    assert!(error_of(directory.path()).contains("longer than 1048576 bytes"));
}

/// A directory whose `config.json` is of another model than its weights.
fn error_with_config(config: LlamaConfig) -> String {
    let written = write(&TinyModel::new(tiny::config(), 1));
    let json = TinyModel::new(config, 1).config_json().to_string();
    fs::write(written.paths[1].join("config.json"), json).unwrap();
    error_of(&written.paths[1])
}

#[test]
fn tensors_that_do_not_fit_the_configuration_are_named() {
    let config = tiny::config;
    let cases = [
        (
            LlamaConfig { vocab_size: 300, ..config() },
            "tensor model.embed_tokens.weight has shape [256, 64], expected [300, 64]",
        ),
        (
            LlamaConfig { num_hidden_layers: 3, ..config() },
            "tensor model.layers.2.input_layernorm.weight is missing, \
             expected with shape [1, 64]",
        ),
        (
            LlamaConfig { num_hidden_layers: 1, ..config() },
            "tensor model.layers.1.input_layernorm.weight is not part of a dense Llama model",
        ),
        (
            LlamaConfig { num_key_value_heads: 4, ..config() },
            "tensor model.layers.0.self_attn.k_proj.weight has shape [32, 64], \
             expected [64, 64]",
        ),
    ];
    for (config, message) in cases {
        assert_eq!(error_with_config(config), message);
    }
    // A second copy of a tied table does no harm.
    let written = write(&TinyModel::new(config(), 1));
    let tied = LlamaConfig { tie_word_embeddings: true, ..config() };
    let json = TinyModel::new(tied, 1).config_json().to_string();
    fs::write(written.paths[1].join("config.json"), json).unwrap();
    Checkpoint::open(&written.paths[1]).unwrap();
}

/// The tiny model's GGUF file with `from` replaced by `to`, of equal length.
fn edited_gguf(from: &str, to: &str) -> (TempDir, PathBuf) {
    assert_eq!(from.len(), to.len());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.gguf");
    TinyModel::new(tiny::config(), 1).write_gguf(&path).unwrap();
    let mut file = fs::read(&path).unwrap();
    let at = file.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
    file[at..at + to.len()].copy_from_slice(to.as_bytes());
    fs::write(&path, file).unwrap();
    (directory, path)
}

#[test]
fn gguf_files_of_other_models_are_refused_by_name() {
    let cases = [
        ("blk.0.attn_q.weight", "blk.0.attn_x.weight", "blk.0.attn_q.weight is missing"),
        // A bias in place of a weight, so that both are wrong; the weight comes first.
        ("blk.1.ffn_up.weight", "blk.1.ffn_up.weighs", "blk.1.ffn_up.weight is missing"),
        ("llama.block_count", "llama.block_cound", "llama.block_count is missing"),
    ];
    for (from, to, message) in cases {
        let (_directory, path) = edited_gguf(from, to);
        assert!(error_of(&path).contains(message), "{}", error_of(&path));
    }
    // The architecture's value follows its key, length first.
    let (_directory, path) = edited_gguf("llama\u{c}", "qwen2\u{c}");
    assert!(error_of(&path).contains("general.architecture is qwen2"), "{}", error_of(&path));
    // Without a stated vocabulary, the embedding table's rows count.
    let (_directory, path) = edited_gguf("llama.vocab_size", "llama.vocab_sizx");
    assert_eq!(Checkpoint::open(&path).unwrap().config().vocab_size, 256);
}

#[test]
fn gguf_files_cut_anywhere_are_errors() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.gguf");
    TinyModel::new(tiny::config(), 1).write_gguf(&path).unwrap();
    let file = fs::read(&path).unwrap();
    for length in (0..4096).step_by(61).chain([file.len() / 2, file.len() - 1]) {
        fs::write(&path, &file[..length]).unwrap();
        assert!(Checkpoint::open(&path).is_err(), "{length} bytes");
    }
}

#[test]
fn a_file_that_changes_after_it_was_opened_is_an_error() {
    let written = write(&TinyModel::new(tiny::config(), 1));
    let files = [written.paths[0].clone(), written.paths[1].join("model.safetensors")];
    for (path, file) in written.paths.iter().zip(files) {
        let checkpoint = Checkpoint::open(path).unwrap();
        checkpoint.verify_unchanged().unwrap();
        fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(100).unwrap();
        let matrix = checkpoint.matrix(WeightName::Norm).unwrap();
        let error = matrix.read_rows(0, &mut [0.0; 64]).unwrap_err().to_string();
        assert!(error.contains("changed while it was being read"), "{error}");
        assert!(matches!(checkpoint.verify_unchanged(), Err(CheckpointError::Changed { .. })));
    }
}

#[test]
fn rotary_scaling_comes_from_parameters_or_from_divisors() {
    let scaling = RopeScaling {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 128,
    };
    let config = LlamaConfig { rope_scaling: Some(scaling), ..tiny::config() };
    let scaled = inverse_frequencies(&config);
    let plain = inverse_frequencies(&tiny::config());
    assert_ne!(scaled, plain);
    let model = TinyModel::new(config, 1);
    let written = write(&model);
    let hugging_face = Checkpoint::open(&written.paths[1]).unwrap();
    assert_eq!(hugging_face.inverse_frequencies().unwrap(), scaled);

    let divisors: Vec<f32> = plain.iter().zip(&scaled).map(|(p, s)| p / s).collect();
    model.write_gguf_with_divisors(&written.paths[0], &divisors).unwrap();
    let found = Checkpoint::open(&written.paths[0]).unwrap().inverse_frequencies().unwrap();
    for (found, expected) in found.iter().zip(&scaled) {
        assert!((found - expected).abs() <= expected * 1e-6, "{found} {expected}");
    }
    model.write_gguf_with_divisors(&written.paths[0], &[0.0; 8]).unwrap();
    assert!(error_of(&written.paths[0]).contains("divisor is 0, must be positive"));
    model.write_gguf_with_divisors(&written.paths[0], &[1.0; 7]).unwrap();
    let error = error_of(&written.paths[0]);
    assert!(error.contains("rope_freqs.weight has shape [7], expected [1, 8]"), "{error}");
}

#[test]
fn metadata_of_the_wrong_type_is_named() {
    const KEYS: [&str; 12] = [
        "llama.block_count",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.head_count_kv",
        "llama.attention.key_length",
        "llama.attention.value_length",
        "llama.attention.layer_norm_rms_epsilon",
        "llama.rope.dimension_count",
        "llama.rope.freq_base",
        "llama.context_length",
        "llama.vocab_size",
    ];
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.gguf");
    TinyModel::new(tiny::config(), 1).write_gguf(&path).unwrap();
    let good = fs::read(&path).unwrap();
    for key in KEYS {
        let needle = [&(key.len() as u64).to_le_bytes(), key.as_bytes()].concat();
        let at = good.windows(needle.len()).position(|window| window == needle).unwrap();
        let kind = at + needle.len();
        // u32 ↔ f32, or an i32 (5) in place of either.
        for other in [10 - good[kind], 5] {
            let mut file = good.clone();
            file[kind] = other;
            fs::write(&path, file).unwrap();
            let error = error_of(&path);
            assert!(error.contains(&format!("{key} is ")), "{key}: {error}");
            assert!(error.contains("must be "), "{key}: {error}");
        }
    }
}

/// A safetensors file of one norm gain `[4]` in the given type.
fn half_values(dtype: ::safetensors::Dtype, bytes: &[u8]) -> Vec<f32> {
    let view = ::safetensors::tensor::TensorView::new(dtype, vec![4], bytes).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    fs::write(&path, ::safetensors::serialize([("gain", view)], None).unwrap()).unwrap();
    let mut store = TensorStore::default();
    safetensors::add_file(&mut store, &path).unwrap();
    let gain = TensorMatrix::new(&store, "gain".into(), [1, 4], RowOrder::AsStored).unwrap();
    let mut values = vec![0.0; 4];
    gain.read_rows(0, &mut values).unwrap();
    values
}

#[test]
fn half_precision_safetensors_are_read() {
    let expected = [1.0, -0.5, 0.0, 96.0];
    let f16: Vec<u8> =
        expected.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect();
    let bf16: Vec<u8> =
        expected.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
    assert_eq!(half_values(::safetensors::Dtype::F16, &f16), expected);
    assert_eq!(half_values(::safetensors::Dtype::BF16, &bf16), expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damaged_headers_never_panic(
        gguf in any::<bool>(),
        edits in prop::collection::vec((0_usize..3000, 0_usize..8, any::<u64>()), 1..4),
    ) {
        let config = LlamaConfig {
            hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, vocab_size: 16,
            num_attention_heads: 2, num_key_value_heads: 1, head_dim: 8, ..tiny::config()
        };
        let directory = tempfile::tempdir().unwrap();
        let (path, file) = if gguf {
            let path = directory.path().join("tiny.gguf");
            TinyModel::new(config, 1).write_gguf(&path).unwrap();
            (path.clone(), path)
        } else {
            TinyModel::new(config, 1).write_hugging_face(directory.path()).unwrap();
            (directory.path().to_owned(), directory.path().join("model.safetensors"))
        };
        let mut bytes = fs::read(&file).unwrap();
        for (at, width, value) in edits {
            // Extremes as often as noise, one byte as often as a whole length.
            let value = [0, 1, 1 << 31, 1 << 63, u64::MAX, value][(value % 6) as usize];
            let at = at % (bytes.len() - 8);
            bytes[at..=at + width].copy_from_slice(&value.to_le_bytes()[..=width]);
        }
        fs::write(&file, bytes).unwrap();
        if let Ok(checkpoint) = Checkpoint::open(&path) {
            for name in WeightName::stored(checkpoint.config()) {
                values(&checkpoint, name);
            }
        }
    }
}
