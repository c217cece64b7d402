//! Which memories take which tensors.

use super::*;

#[track_caller]
fn assert_no_place(shape: Shape, memory: MemoryConfig, words: &[&str]) {
    let mut ops = ReferenceOps::with_grid(1, Grid { x: 8, y: 7 });
    assert_refused(ops.zeros(shape, DataType::BFloat16, Layout::Tile, &memory), words);
}

#[track_caller]
fn assert_place(shape: Shape, memory: MemoryConfig) {
    let mut ops = ReferenceOps::with_grid(1, Grid { x: 8, y: 7 });
    ops.zeros(shape, DataType::BFloat16, Layout::Tile, &memory).unwrap();
}

#[test]
fn columns_are_cut_into_whole_tiles_on_cores_that_exist() {
    let on = |x, y, shard| MemoryConfig::WidthSharded { grid: Grid { x, y }, shard };
    assert_place([1, 1, 32, 256], on(4, 2, [32, 32]));
    assert_place([1, 1, 5, 250], on(8, 1, [32, 32]));
    assert_no_place([1, 1, 32, 256], on(7, 1, [32, 32]), &["at most 7 shards", "found 8"]);
    assert_no_place([1, 1, 32, 250], on(5, 1, [32, 50]), &["whole tiles", "[32, 50]"]);
    assert_no_place([1, 1, 64, 256], on(8, 1, [32, 32]), &["all 64 rows", "found 32"]);
    assert_no_place([1, 1, 32, 256], on(1, 8, [32, 32]), &["the chip's 8x7", "found 1x8"]);
    assert_no_place([1, 1, 32, 256], on(0, 1, [32, 32]), &["a grid within"]);
    assert_no_place([1, 1, 32, 256], on(8, 1, [32, 0]), &["whole tiles"]);
}

#[test]
fn rows_are_cut_into_whole_tiles_of_all_columns() {
    let on = |x, y, shard| MemoryConfig::HeightSharded { grid: Grid { x, y }, shard };
    assert_place([1, 32, 3, 64], on(8, 4, [32, 64]));
    assert_no_place([1, 32, 3, 64], on(8, 3, [32, 64]), &["at most 24 shards", "found 32"]);
    assert_no_place([1, 32, 3, 64], on(8, 4, [32, 32]), &["all 64 columns", "found 32"]);
}

#[test]
fn weights_are_cut_over_banks_that_exist() {
    let on = |banks, shard| MemoryConfig::DramWidthSharded { banks, shard };
    assert_place([1, 1, 64, 500], on(12, [64, 64]));
    assert_no_place([1, 1, 64, 500], on(13, [64, 64]), &["at most 12 banks", "13"]);
    assert_no_place([1, 1, 64, 500], on(12, [64, 32]), &["at most 12 shards", "16"]);
    assert_no_place([1, 1, 64, 500], on(2, [64, 250]), &["whole tiles", "[64, 250]"]);
}

#[test]
fn only_an_operation_chooses_for_itself() {
    for memory in [MemoryConfig::WidthShardedByOp, MemoryConfig::HeightShardedByOp] {
        assert_no_place([1, 1, 32, 32], memory, &["a memory config with its shards"]);
    }
}

#[test]
fn block_floats_are_tiles() {
    let mut ops = ReferenceOps::new(1);
    let rows = ops.zeros([1, 1, 32, 32], DataType::BFloat8B, Layout::RowMajor, &MemoryConfig::DRAM);
    assert_refused(rows, &["layout Tile for BFloat8B", "RowMajor"]);
}
