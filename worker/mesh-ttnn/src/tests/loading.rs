//! Weights of an earlier start, and what is refused while loading.

use std::fs;

use llama::{Llama3Size, Optimizations};
use mesh::{AttentionShape, DType, DenseMatrix, KvCacheShape, Mesh, MeshError, WeightCacheUse};

use super::models::{Miniature, Piece, tokens};
use crate::layout::Chip;
use crate::reference::ReferenceOps;
use crate::spec::Grid;
use crate::{TtnnMesh, TtnnOptions, WeightCacheDir};

#[test]
fn a_second_start_has_the_bits_of_the_first() {
    let miniature = Miniature::new(Llama3Size::B11);
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("T3K").join("performance");
    let cache = |checkpoint: &str| {
        let (checkpoint, policy) = (checkpoint.to_owned(), "performance".to_owned());
        Some(WeightCacheDir { path: path.clone(), checkpoint, policy })
    };
    let prompt = tokens(4, 40);
    let start = |checkpoint: &str, chips: usize| {
        let cache = cache(checkpoint);
        let mut model = miniature.on_ttnn_with(chips, Optimizations::Performance, cache);
        let used = model.runner.weight_cache();
        let piece = Piece { tokens: &prompt, first_position: 0, block_table: &[0, 1] };
        (used, model.rows(&[piece], vec![39]))
    };
    let (used, first) = start("one", 8);
    assert_eq!(used, WeightCacheUse::Written);
    assert!(path.join("manifest.json").is_file());
    assert_eq!(start("one", 8), (WeightCacheUse::Hit, first.clone()));
    // Of another checkpoint, or another number of chips.
    assert_eq!(start("two", 8).0, WeightCacheUse::Written);
    assert_eq!(start("two", 2).0, WeightCacheUse::Written);
    assert_eq!(start("one", 8), (WeightCacheUse::Written, first.clone()));
    // A bit that flipped, a file that is gone.
    let some_file = || {
        let mut files = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
        files.find(|path| path.extension().is_some_and(|kind| kind == "tensorbin")).unwrap()
    };
    let file = some_file();
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    assert_eq!(start("one", 8), (WeightCacheUse::Written, first.clone()));
    fs::remove_file(some_file()).unwrap();
    assert_eq!(start("one", 8), (WeightCacheUse::Written, first.clone()));
    assert_eq!(start("one", 8), (WeightCacheUse::Hit, first));
    // Nothing else is left beside it.
    let names: Vec<_> = fs::read_dir(place.path().join("T3K")).unwrap().collect();
    assert_eq!(names.len(), 1, "{names:?}");
}

#[test]
fn a_start_that_fails_leaves_no_cache() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("performance");
    let cache =
        WeightCacheDir { path: path.clone(), checkpoint: String::new(), policy: String::new() };
    let mut mesh = mesh(1, Some(cache));
    let weight = DenseMatrix::new("w", 64, vec![0.5; 64 * 64]);
    mesh.load_row_parallel(&weight, DType::Bfp8).unwrap();
    drop(mesh);
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
}

fn mesh(chips: usize, weight_cache: Option<WeightCacheDir>) -> TtnnMesh<ReferenceOps> {
    let options = TtnnOptions {
        device: "test".into(),
        chip: Chip { grid: Grid { x: 8, y: 8 }, dram_banks: 12 },
        max_prefill_chunk: 2048,
        weight_cache,
        without_weights: false,
    };
    TtnnMesh::new(ReferenceOps::new(chips), options)
}

/// The message of what does not fit.
#[track_caller]
fn refusal<T>(result: Result<T, MeshError>) -> String {
    match result {
        Err(MeshError::DoesNotFit(message)) => message,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it is not refused"),
    }
}

#[test]
fn what_no_card_holds_is_refused_with_its_numbers() {
    let mut mesh = mesh(8, None);
    let odd = DenseMatrix::new("odd", 320, vec![0.5; 320 * 320]);
    for message in [
        refusal(mesh.load_column_parallel(&[&odd], DType::Bfp8)),
        refusal(mesh.load_row_parallel(&odd, DType::Bfp8)),
        refusal(mesh.load_embedding(&odd, DType::Bf16)),
        refusal(mesh.load_lm_head(&odd, DType::Bfp8)),
    ] {
        for part in ["odd has 320", "multiple of 256", "8 chips"] {
            assert!(message.contains(part), "{message}");
        }
    }
    let fine = DenseMatrix::new("fine", 256, vec![0.5; 256 * 256]);
    let message = refusal(mesh.load_row_parallel(&fine, DType::F32));
    assert!(message.contains("fine") && message.contains("CPU mesh"), "{message}");
    let message = refusal(mesh.load_gain(&fine));
    assert!(message.contains("256 rows"), "{message}");

    let cache = KvCacheShape { num_layers: 1, num_blocks: 4, block_size: 32, dtype: DType::Bfp8 };
    let heads = AttentionShape { num_attention_heads: 16, num_key_value_heads: 8, head_dim: 64 };
    let message = refusal(mesh.new_kv_cache(KvCacheShape { block_size: 16, ..cache }, heads));
    assert!(message.contains("16 positions") && message.contains("32"), "{message}");
    let message = refusal(mesh.new_kv_cache(KvCacheShape { dtype: DType::F32, ..cache }, heads));
    assert!(message.contains("f32") && message.contains("bfp8"), "{message}");
    let few = AttentionShape { num_key_value_heads: 4, ..heads };
    let message = refusal(mesh.new_kv_cache(cache, few));
    assert!(message.contains("4 KV heads"), "{message}");
    let narrow = AttentionShape { head_dim: 16, ..heads };
    let message = refusal(mesh.new_kv_cache(cache, narrow));
    assert!(message.contains("16 channels"), "{message}");
    assert!(mesh.new_kv_cache(cache, heads).is_ok());
}
