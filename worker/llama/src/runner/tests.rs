//! The graph on the CPU mesh against the oracle, and loading.

use std::fs;

use mesh::{DType, SequenceSlice};
use mesh_cpu::{CpuMesh, WeightCacheFile};
use tempfile::TempDir;

use super::*;
use crate::config::RopeScaling;
use crate::names::{LayerWeight, WeightName};
use crate::policy::Optimizations;
use crate::reference;
use crate::rope::inverse_frequencies;
use crate::shard::Split;
use crate::tiny::{self, TinyModel};

const BLOCK_SIZE: usize = 16;
const TOKENS: [u32; 40] = [
    1, 17, 255, 3, 3, 90, 41, 200, 7, 0, 128, 64, 32, 99, 5, 77, 180, 2, 240, 11, 13, 1, 66, 150,
    4, 222, 31, 8, 8, 54, 91, 19, 33, 250, 6, 100, 160, 21, 9, 44,
];

fn options(config: &LlamaConfig, optimizations: Optimizations) -> LoadOptions {
    LoadOptions {
        policy: DTypePolicy::choose(config, optimizations),
        max_model_len: config.max_position_embeddings,
        kv_blocks: 16,
        kv_block_size: BLOCK_SIZE,
    }
}

fn checkpoint(model: &TinyModel) -> (TempDir, Checkpoint) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.gguf");
    model.write_gguf(&path).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    (directory, checkpoint)
}

fn runner(model: &TinyModel, chips: usize, optimizations: Optimizations) -> Runner<CpuMesh> {
    let (_directory, checkpoint) = checkpoint(model);
    let mesh = CpuMesh::new(chips, 2).unwrap();
    let options = options(model.config(), optimizations);
    Runner::load(mesh, &checkpoint, &options, &mut |_| {}).unwrap()
}

/// A batch of pieces of sequences: tokens, position of the first, KV blocks.
fn batch(pieces: &[(&[u32], usize, &[u32])], logit_rows: &[usize]) -> StepBatch {
    let mut batch = StepBatch { logit_rows: logit_rows.to_vec(), ..StepBatch::default() };
    for &(tokens, first_position, block_table) in pieces {
        batch.sequences.push(SequenceSlice {
            first_row: batch.token_ids.len(),
            num_tokens: tokens.len(),
            first_position,
            block_table: block_table.to_vec(),
        });
        batch.token_ids.extend(tokens);
    }
    batch
}

fn run(runner: &mut Runner<CpuMesh>, batch: &StepBatch) -> Vec<Vec<f32>> {
    let mut out = StepOutput { logits: vec![f32::NAN], ..StepOutput::default() };
    runner.forward(batch, &mut out).unwrap();
    out.logits.chunks(runner.config().vocab_size).map(<[f32]>::to_vec).collect()
}

/// All logits of the sequence computed in one step.
fn whole(runner: &mut Runner<CpuMesh>, tokens: &[u32]) -> Vec<Vec<f32>> {
    let rows: Vec<_> = (0..tokens.len()).collect();
    run(runner, &batch(&[(tokens, 0, &[0, 1, 2])], &rows))
}

/// The largest difference over the largest value.
fn relative_error(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().flatten().fold(0.0_f32, |max, value| max.max(value.abs()));
    let pairs = found.iter().flatten().zip(expected.iter().flatten());
    pairs.fold(0.0_f32, |max, (a, b)| max.max((a - b).abs())) / largest
}

#[test]
fn logits_are_the_oracles_on_any_number_of_chips() {
    let tied = LlamaConfig { tie_word_embeddings: true, ..tiny::config() };
    let one_layer = LlamaConfig { num_hidden_layers: 1, ..tiny::config() };
    // Every head its own KV head; heads wider together than the hidden size.
    let wide = LlamaConfig {
        hidden_size: 48,
        num_attention_heads: 3,
        num_key_value_heads: 3,
        head_dim: 32,
        intermediate_size: 96,
        vocab_size: 264,
        ..tiny::config()
    };
    let cases: [(LlamaConfig, &[usize]); 4] =
        [(tiny::config(), &[1, 2]), (tied, &[1, 2]), (one_layer, &[1]), (wide, &[1, 3])];
    for (config, chip_counts) in cases {
        let model = TinyModel::new(config, 3);
        let expected = reference::logits(&model, &TOKENS);
        for &chips in chip_counts {
            let mut runner = runner(&model, chips, Optimizations::F32);
            let error = relative_error(&whole(&mut runner, &TOKENS), &expected);
            // Some 10 sums of up to 128 f32 products, each in another order.
            assert!(error < 5e-6, "{chips} chips: {error}, {:?}", model.config());
        }
    }
}

/// The smallest shape whose output projection a ring of 8 chips cuts by its
/// output: whole tiles on a chip that divide by the chips once more.
fn ring() -> LlamaConfig {
    LlamaConfig {
        hidden_size: 2048,
        intermediate_size: 256,
        num_hidden_layers: 2,
        num_attention_heads: 16,
        num_key_value_heads: 8,
        head_dim: 32,
        ..tiny::config()
    }
}

#[test]
fn logits_are_the_oracles_on_a_ring_of_8() {
    let model = TinyModel::new(ring(), 3);
    let tokens = &TOKENS[..12];
    let expected = reference::logits(&model, tokens);
    for (chips, split) in [(1, Split::Input), (2, Split::Input), (8, Split::Output)] {
        let mut runner = runner(&model, chips, Optimizations::F32);
        let wo = WeightName::Layer(0, LayerWeight::OProj);
        assert_eq!(runner.shard_plan().split(wo), split, "{chips} chips");
        let error = relative_error(&whole(&mut runner, tokens), &expected);
        assert!(error < 5e-6, "{chips} chips: {error}");
    }
}

#[test]
fn no_sum_crosses_chips_where_the_output_projection_is_cut_by_its_output() {
    // Without the MLP's sum over chips, nothing is left that is added in
    // another order on 8 chips than on 1: the same bits, in every format. On 2
    // chips the output projection is a sum of two.
    let down = (0..2).map(|layer| WeightName::Layer(layer, LayerWeight::DownProj));
    let model = down.fold(TinyModel::new(ring(), 3), TinyModel::with_zeros);
    for optimizations in [Optimizations::F32, Optimizations::Performance] {
        let logits = |chips| whole(&mut runner(&model, chips, optimizations), &TOKENS[..12]);
        let one = logits(1);
        assert_eq!(logits(8), one, "{optimizations}");
        assert_ne!(logits(2), one, "{optimizations}");
    }
}

#[test]
fn rotary_scaling_reaches_the_graph_from_either_format() {
    let scaling = RopeScaling {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 64,
    };
    let plain = TinyModel::new(tiny::config(), 3);
    let scaled = LlamaConfig { rope_scaling: Some(scaling), ..tiny::config() };
    let divisors: Vec<f32> = inverse_frequencies(&tiny::config())
        .iter()
        .zip(inverse_frequencies(&scaled))
        .map(|(plain, scaled)| plain / scaled)
        .collect();
    let directory = tempfile::tempdir().unwrap();
    let paths = ["hugging_face", "scaled.gguf"].map(|name| directory.path().join(name));
    let scaled = TinyModel::new(scaled, 3);
    scaled.write_hugging_face(&paths[0]).unwrap();
    scaled.write_gguf_with_divisors(&paths[1], &divisors).unwrap();
    let [hugging_face, gguf] = paths.map(|path| {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let options = options(scaled.config(), Optimizations::F32);
        let mesh = CpuMesh::new(1, 1).unwrap();
        whole(&mut Runner::load(mesh, &checkpoint, &options, &mut |_| {}).unwrap(), &TOKENS)
    });
    assert!(relative_error(&gguf, &hugging_face) < 1e-5);
    assert!(relative_error(&gguf, &reference::logits(&plain, &TOKENS)) > 1e-3);
}

#[test]
fn fewer_bits_stay_close_and_do_not_vanish() {
    let model = TinyModel::new(tiny::config(), 3);
    let expected = reference::logits(&model, &TOKENS);
    let mut last = 0.0;
    for (optimizations, bound) in [(Optimizations::Bf16, 0.03), (Optimizations::Performance, 0.08)]
    {
        let mut runner = runner(&model, 2, optimizations);
        let error = relative_error(&whole(&mut runner, &TOKENS), &expected);
        assert!(error > last && error < bound, "{optimizations}: {error}");
        last = error / 10.0;
    }
}

#[test]
fn chunks_and_decodes_give_the_bits_of_the_whole_prompt() {
    let model = TinyModel::new(tiny::config(), 3);
    for optimizations in [Optimizations::F32, Optimizations::Performance] {
        let mut runner = runner(&model, 2, optimizations);
        let expected = whole(&mut runner, &TOKENS);
        // Scattered blocks; a chunk without logits, one with, then decodes.
        let table = [9, 2, 5];
        let inner = run(&mut runner, &batch(&[(&TOKENS[..23], 0, &table[..2])], &[]));
        assert!(inner.is_empty());
        let chunk = run(&mut runner, &batch(&[(&TOKENS[23..37], 23, &table)], &[3, 13]));
        assert_eq!(chunk, [expected[26].clone(), expected[36].clone()]);
        for at in 37..40 {
            let decode = run(&mut runner, &batch(&[(&TOKENS[at..=at], at, &table)], &[0]));
            assert_eq!(decode, [expected[at].clone()], "position {at}");
        }
    }
}

#[test]
fn sequences_in_a_batch_give_the_bits_that_they_give_alone() {
    let model = TinyModel::new(tiny::config(), 3);
    let mut runner = runner(&model, 2, Optimizations::F32);
    let (first, second) = (&TOKENS[..20], &TOKENS[15..]);
    let (alone_first, alone_second) = (whole(&mut runner, first), whole(&mut runner, second));
    // A prefill and a decode in one step.
    run(&mut runner, &batch(&[(&second[..24], 0, &[7, 8])], &[]));
    let step = batch(&[(first, 0, &[3, 4]), (&second[24..], 24, &[7, 8])], &[19, 20]);
    assert_eq!(run(&mut runner, &step), [alone_first[19].clone(), alone_second[24].clone()]);
    // An empty step is no step.
    assert!(run(&mut runner, &StepBatch::default()).is_empty());
}

#[test]
fn a_step_that_panics_leaves_mesh_and_cache_as_they_were() {
    let model = TinyModel::new(tiny::config(), 3);
    let mut runner = runner(&model, 2, Optimizations::Performance);
    let expected = whole(&mut runner, &TOKENS);
    let table = [9, 2, 5];
    run(&mut runner, &batch(&[(&TOKENS[..30], 0, &table)], &[]));
    // Each beside a sequence that is as it should be, and would write block 7.
    let bad: [(&[u32], usize, &[u32]); 4] =
        [(&[1, 256, 2], 0, &[6]), (&[1, 2], 0, &[16]), (&[1, 2], 511, &[6; 40]), (&[1], 16, &[6])];
    for bad in bad {
        let step = batch(&[(&TOKENS[..16], 0, &[7]), bad], &[15]);
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runner.forward(&step, &mut StepOutput::default())
        }));
        assert!(ran.is_err(), "{bad:?}");
        let good = run(&mut runner, &batch(&[(&TOKENS[30..], 30, &table)], &[0, 9]));
        assert_eq!(good, [expected[30].clone(), expected[39].clone()], "after {bad:?}");
    }
}

#[test]
fn a_load_reports_every_byte_and_describes_itself() {
    let model = TinyModel::new(tiny::config(), 3);
    let (_directory, checkpoint) = checkpoint(&model);
    let mut seen = Vec::new();
    let options = options(model.config(), Optimizations::Performance);
    let mesh = CpuMesh::new(2, 1).unwrap();
    let runner = Runner::load(mesh, &checkpoint, &options, &mut |p| seen.push(p)).unwrap();
    assert!(seen.is_sorted_by_key(|progress| progress.done_bytes));
    assert_eq!(seen[0].done_bytes, 0);
    let last = seen[seen.len() - 1];
    assert_eq!(last.done_bytes, last.total_bytes);
    // Two tables, two layers, three kinds of norm.
    let per_layer = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64 + 2 * 64;
    assert_eq!(last.total_bytes, 4 * (2 * 256 * 64 + 2 * per_layer + 64));
    assert_eq!(runner.mesh_description().num_chips, 2);
    assert_eq!(runner.weight_cache(), WeightCacheUse::Unused);
    assert_eq!(runner.shard_plan().kv_heads_per_chip(), 1);
    assert_eq!(runner.kv_cache().dtype, DType::Bf16);
    assert_eq!(runner.config(), model.config());
}

#[test]
fn a_load_that_cannot_work_says_why() {
    let model = TinyModel::new(tiny::config(), 3);
    let (directory, checkpoint) = checkpoint(&model);
    let good = options(model.config(), Optimizations::F32);
    let load = |chips, options| {
        let mesh = CpuMesh::new(chips, 1).unwrap();
        Runner::load(mesh, &checkpoint, &options, &mut |_| {}).unwrap_err().to_string()
    };
    assert_eq!(
        load(3, good),
        "2 KV heads, 4 heads, hidden size 64, FFN 128 and vocabulary 256 fit 1 or 2 chips, not 3"
    );
    let too_long = LoadOptions { max_model_len: 513, ..good };
    assert_eq!(load(1, too_long), "max_model_len is 513, must be 1 to 512");
    assert_eq!(
        load(1, LoadOptions { kv_blocks: 0, ..good }),
        "kv_blocks is 0, must be 1 to 4294967295"
    );
    assert!(load(1, LoadOptions { kv_block_size: 0, ..good }).contains("kv_block_size is 0"));
    let no_length = LoadOptions { max_model_len: 0, ..good };
    assert!(load(1, no_length).contains("max_model_len is 0"));
    drop(directory);
}

#[test]
fn a_file_that_changes_during_a_load_fails_it() {
    type Change = fn(&std::path::Path);
    let truncate: Change = |path| {
        fs::OpenOptions::new().write(true).open(path).unwrap().set_len(5000).unwrap();
    };
    let touch: Change = |path| {
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    };
    for change in [truncate, touch] {
        let model = TinyModel::new(tiny::config(), 3);
        let (directory, checkpoint) = checkpoint(&model);
        let path = directory.path().join("tiny.gguf");
        let options = options(model.config(), Optimizations::F32);
        let cache = WeightCacheFile {
            path: directory.path().join("cache/performance.weights"),
            checkpoint: checkpoint.revision(),
            policy: options.policy.weights(),
        };
        let cached = cache.path.parent().unwrap().to_owned();
        let mesh = CpuMesh::new(1, 1).unwrap().with_weight_cache(cache);
        let mut changed = false;
        let mut progress = |progress: LoadProgress| {
            if !changed && progress.done_bytes > 0 {
                changed = true;
                change(&path);
            }
        };
        let error = Runner::load(mesh, &checkpoint, &options, &mut progress).unwrap_err();
        assert!(error.to_string().contains("changed while it was being read"), "{error}");
        assert_eq!(fs::read_dir(cached).unwrap().count(), 0, "half of each is not kept");
    }
}
