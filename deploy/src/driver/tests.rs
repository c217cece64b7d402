//! A tiny random model to step, and that stepping it in any way is the same.

use llama::tiny::{self, TinyModel};
use llama::{Checkpoint, DTypePolicy, LlamaConfig, LoadOptions, Optimizations, Runner};
use mesh_cpu::CpuMesh;

use super::*;

/// Positions in a block of the tiny model's cache.
pub(crate) const BLOCK_SIZE: usize = 8;

/// A driver of a tiny random model, and its blocks.
pub(crate) fn tiny_driver(num_blocks: usize, max_step_tokens: usize) -> (Driver, BlockTables) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.gguf");
    let config = LlamaConfig { vocab_size: 64, ..tiny::config() };
    TinyModel::new(config, 5).write_gguf(&path).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let options = LoadOptions {
        policy: DTypePolicy::choose(checkpoint.config(), Optimizations::Performance),
        max_model_len: 256,
        kv_blocks: num_blocks,
        kv_block_size: BLOCK_SIZE,
    };
    let mesh = CpuMesh::new(2, 1).unwrap();
    let runner = Runner::load(mesh, &checkpoint, &options, &mut |_| {}).unwrap();
    let tables = BlockTables { block_size: BLOCK_SIZE, num_blocks };
    (Driver::new(Box::new(runner), max_step_tokens), tables)
}

#[test]
fn chunks_blocks_and_company_do_not_change_the_logits() {
    let ids: Vec<u32> = (0..23).map(|n| (n * 7 + 3) % 64).collect();
    let (mut whole, tables) = tiny_driver(8, 64);
    let mut sequence = tables.deal(1, 32, 1).unwrap().remove(0);
    let expected = whole.prefill(&mut sequence, &ids).unwrap().to_vec();
    assert_eq!(sequence.len, 23);

    let (mut chunked, tables) = tiny_driver(8, 5);
    for seed in [2, 3] {
        let mut sequence = tables.deal(1, 32, seed).unwrap().remove(0);
        assert_eq!(chunked.prefill(&mut sequence, &ids).unwrap(), expected);
    }

    // Token by token beside another sequence.
    let mut pair = tables.deal(2, 32, 4).unwrap();
    let mut last = Vec::new();
    for &id in &ids {
        last = chunked.decode(&mut pair, &[id, 63 - id]).unwrap()[..64].to_vec();
    }
    assert_eq!(last, expected);
}

#[test]
fn scoring_gives_the_row_of_every_position() {
    let ids: Vec<u32> = (0..150).map(|n| (n * 5 + 1) % 64).collect();
    let (mut driver, tables) = tiny_driver(40, 100);
    let mut sequence = tables.deal(1, 160, 1).unwrap().remove(0);
    let mut rows = Vec::new();
    driver
        .prefill_scored(&mut sequence, &ids, &mut |first, logits| {
            assert_eq!(first * 64, rows.len());
            assert!(logits.len() <= MAX_LOGIT_ROWS * 64);
            rows.extend_from_slice(logits);
            Ok(())
        })
        .unwrap();
    assert_eq!(rows.len(), 150 * 64);
    let mut sequence = tables.deal(1, 160, 2).unwrap().remove(0);
    let last = driver.prefill(&mut sequence, &ids[..77]).unwrap();
    assert_eq!(last, &rows[76 * 64..77 * 64]);
}

/// Writes a tokenizer of the 64 letters, digits and two more that stand for
/// themselves.
pub(crate) fn write_byte_tokenizer(directory: &std::path::Path) {
    let letters = ('a'..='z').chain('A'..='Z').chain('0'..='9').chain(['.', ',']);
    let vocab: serde_json::Map<String, serde_json::Value> =
        letters.enumerate().map(|(id, letter)| (letter.to_string(), id.into())).collect();
    let byte_level = serde_json::json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [],
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocab, "merges": [],
        },
    });
    std::fs::write(directory.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}
