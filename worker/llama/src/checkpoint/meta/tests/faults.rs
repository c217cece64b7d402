//! Meta directories that are not what they should be, and what is said of them.

use std::fs;

use mesh::Matrix as _;
use proptest::prelude::*;

use super::*;
use crate::checkpoint::{CheckpointError, NameCheck};

#[test]
fn what_is_missing_is_named() {
    let model = TinyModel::new(config(), 1);
    let eight = directory(model.config());
    write_shards(&eight, &model, 8);
    let path = |name: &str| eight.path().join(name);
    let moved = |name: &str| {
        fs::rename(path(name), path("elsewhere")).unwrap();
        let error = error_of(eight.path());
        fs::rename(path("elsewhere"), path(name)).unwrap();
        error
    };
    assert!(moved("consolidated.03.pth").contains("consolidated.03.pth is missing"));
    let error = moved("consolidated.07.pth");
    assert!(error.contains("in 8 shards, of which there are 7: consolidated.07.pth"), "{error}");
    assert!(moved("params.json").contains("params.json is missing"));
    fs::write(path("consolidated.pth"), "").unwrap();
    assert!(error_of(eight.path()).contains("beside numbered"));

    let chunks = directory(model.config());
    write_chunks(&chunks, &model, &[1, 2, 3]);
    fs::remove_file(chunks.path().join("layers_1-1.pth")).unwrap();
    let error = error_of(chunks.path());
    assert!(error.contains("layers 1-1 are in no layers_*.pth file"), "{error}");
    fs::remove_file(chunks.path().join("layers_2-2.pth")).unwrap();
    assert!(error_of(chunks.path()).contains("layers 1-2 are in no"));

    let empty = directory(model.config());
    assert!(error_of(empty.path()).contains("no weights: consolidated.00.pth"));
}

#[test]
fn chunks_hold_each_layer_once_and_what_their_names_say() {
    let model = TinyModel::new(config(), 1);
    let chunks = directory(model.config());
    write_chunks(&chunks, &model, &[2, 3]);
    let path = |name: &str| chunks.path().join(name);
    fs::copy(path("layers_2-2.pth"), path("layers_1-2.pth")).unwrap();
    assert!(error_of(chunks.path()).contains("also in another layers_*.pth"));
    fs::remove_file(path("layers_1-2.pth")).unwrap();
    fs::rename(path("layers_2-2.pth"), path("layers_2-3.pth")).unwrap();
    assert!(error_of(chunks.path()).contains("beyond the model's 3"));
    fs::rename(path("layers_2-3.pth"), path("layers_2-2.pth")).unwrap();
    fs::copy(path("layers_0-1.pth"), path("layers_2-2.pth")).unwrap();
    let error = error_of(chunks.path());
    assert!(error.contains("is also in") && error.contains("tok_embeddings"), "{error}");
    write_chunks(&chunks, &model, &[1, 2, 3]);
    fs::remove_file(path("layers_0-1.pth")).unwrap();
    fs::rename(path("layers_1-1.pth"), path("x")).unwrap();
    fs::rename(path("layers_2-2.pth"), path("layers_1-1.pth")).unwrap();
    fs::rename(path("x"), path("layers_2-2.pth")).unwrap();
    let error = error_of(chunks.path());
    assert!(error.contains("which its name says it has not"), "{error}");
}

/// The directory with one tensor of one shard replaced.
fn error_with(num_shards: usize, edit: impl Fn(&mut Vec<Tensor>)) -> String {
    let model = TinyModel::new(config(), 1);
    let directory = directory(model.config());
    write_shards(&directory, &model, num_shards);
    let last = num_shards - 1;
    let mut tensors = tensors(&model, last, num_shards);
    edit(&mut tensors);
    write(&directory, &format!("consolidated.{last:02}.pth"), &tensors);
    error_of(directory.path())
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let find = |tensors: &mut Vec<Tensor>, name: &str| {
        tensors.iter().position(|tensor| tensor.0 == name).unwrap()
    };
    for num_shards in [1, 2] {
        let error = error_with(num_shards, |tensors| {
            let at = find(tensors, "layers.1.attention.wo.weight");
            tensors.remove(at);
        });
        assert!(error.contains("layers.1.attention.wo.weight is missing"), "{error}");
        let error = error_with(num_shards, |tensors| {
            let at = find(tensors, "layers.2.ffn_norm.weight");
            tensors[at].1 = vec![2, 32];
        });
        assert!(error.contains("layers.2.ffn_norm.weight has shape [2, 32], expected [1, 64]"));
        let error = error_with(num_shards, |tensors| {
            tensors.push(("layers.0.attention.wq.bias".to_owned(), vec![1], vec![0.0]));
        });
        assert!(error.contains("layers.0.attention.wq.bias is not part of"), "{error}");
    }
    let error = error_with(2, |tensors| {
        let at = find(tensors, "layers.0.attention.wo.weight");
        tensors[at].1.reverse();
    });
    assert!(error.contains("wo.weight has shape [32, 64], expected [64, 32]"), "{error}");
    let error = error_with(2, |tensors| {
        let at = find(tensors, "output.weight");
        tensors.remove(at);
    });
    assert!(error.contains("output.weight is missing"), "{error}");
}

#[test]
fn the_paths_name_is_held_against_the_params() {
    let model = TinyModel::new(config(), 1);
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("Llama3.1-70B/repacked");
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("params.json"), params(model.config()).to_string()).unwrap();
    let file = crafted::dense(&tensors(&model, 0, 1), Dtype::F32);
    fs::write(path.join("consolidated.00.pth"), file).unwrap();
    let error = Checkpoint::open(&path).unwrap_err();
    assert!(matches!(error, CheckpointError::NameConflict { .. }), "{error}");
    let error = error.to_string();
    assert!(error.contains("names Llama 3.1 70B, but its files are of another model (dim 64"));
    assert!(error.contains("ignore_model_name"), "{error}");
    let checkpoint = Checkpoint::open_with(&path, NameCheck::Ignore).unwrap();
    assert_eq!(checkpoint.config().llama3_size(), None);
    assert_eq!(checkpoint.name(), "repacked");
}

#[test]
fn row_50_a_shard_that_changes_after_it_was_opened_is_an_error() {
    let model = TinyModel::new(config(), 1);
    for damage in ["truncate", "append"] {
        let directory = directory(model.config());
        write_shards(&directory, &model, 2);
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        checkpoint.verify_unchanged().unwrap();
        let path = directory.path().join("consolidated.01.pth");
        let file = fs::OpenOptions::new().append(true).open(path).unwrap();
        if damage == "truncate" {
            file.set_len(1000).unwrap();
            let matrix = checkpoint.matrix(WeightName::LmHead).unwrap();
            let error = matrix.read_rows(32, &mut [0.0; 64]).unwrap_err().to_string();
            assert!(error.contains("consolidated.01.pth changed while it was being read"));
        } else {
            std::io::Write::write_all(&mut &file, b"x").unwrap();
        }
        let error = checkpoint.verify_unchanged().unwrap_err();
        assert!(matches!(error, CheckpointError::Changed { .. }), "{damage}: {error}");
    }
}

#[test]
fn row_51_what_else_lies_in_the_directory_is_never_opened() {
    let model = TinyModel::new(config(), 1);
    let directory = directory(model.config());
    write_shards(&directory, &model, 1);
    let path = |name: &str| directory.path().join(name);
    for name in ["model.py", "lib.so", "consolidated.00.pth.py", "layers_0-x.pth", "..pth"] {
        fs::write(path(name), "import os; os.abort()").unwrap();
    }
    // To open a pipe would wait for ever.
    std::os::unix::fs::symlink("/dev/zero", path("shards.pth")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", path("consolidated")).unwrap();
    check(directory.path(), &model);
    // Links under the names of weights are followed, and must be weights.
    for (target, message) in [
        ("/etc/passwd", "consolidated.01.pth: the file is no zip archive"),
        ("/dev/zero", "consolidated.01.pth: not a regular file"),
        ("/no/such/file", "consolidated.01.pth: No such file"),
        ("..", "consolidated.01.pth: not a regular file"),
    ] {
        let link = path("consolidated.01.pth");
        std::os::unix::fs::symlink(target, &link).unwrap();
        let error = error_of(directory.path());
        assert!(error.contains(message), "{error}");
        fs::remove_file(link).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn damaged_params_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        use crate::config::meta::{Params, Stored};
        let mut bytes = params(&config()).to_string().into_bytes();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(params) = Params::parse(&bytes) {
            let _ = params.config(Stored { embedding_rows: 64, tied: false });
        }
    }
}

#[test]
fn a_member_with_an_lm_head_of_its_own_is_not_served_without() {
    let directory = tempfile::tempdir().unwrap();
    let llama_8b = json!({
        "dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128_256,
        "ffn_dim_multiplier": 1.3, "multiple_of": 1024, "use_scaled_rope": true,
    });
    fs::write(directory.path().join("params.json"), llama_8b.to_string()).unwrap();
    let norm = ("norm.weight".to_owned(), vec![4096], vec![1.0; 4096]);
    write(&directory, "consolidated.00.pth", &[norm]);
    let error = error_of(directory.path());
    let expected = "tensor output.weight is missing, expected with shape [128256, 4096]";
    assert!(error.contains(expected), "{error}");
}
