//! Writing to paged caches.

use proptest::prelude::*;

use super::super::heads::by_user;
use super::*;

const BF16: DataType = DataType::BFloat16;
const DRAM: MemoryConfig = MemoryConfig::DRAM;
const BLOCKS: usize = 70;
const HEADS: usize = 2;

fn cache(ops: &mut ReferenceOps, block_size: usize, dtype: DataType) -> Tensor {
    ops.zeros([BLOCKS, HEADS, block_size, 32], dtype, Layout::Tile, &DRAM).unwrap()
}

fn users(ops: &mut ReferenceOps, values: &[f32]) -> Tensor {
    Upload::tiles([1, 32, HEADS, 32], BF16).into(by_user(HEADS, 32)).reals(ops, values)
}

fn table(ops: &mut ReferenceOps, rows: usize, pages: &[i32]) -> Tensor {
    let shape = [1, 1, rows, pages.len() / rows];
    Upload::rows(shape, DataType::Int32).rank(2).int32(ops, pages)
}

fn positions(ops: &mut ReferenceOps, positions: &[i32]) -> Tensor {
    Upload::rows([1, 1, 1, positions.len()], DataType::Int32).rank(1).int32(ops, positions)
}

/// Two blocks for each user, none shared, in an order of `seed`.
fn pages(seed: u64) -> Vec<i32> {
    let mut order: Vec<(i64, i32)> = numbers(seed, BLOCKS)
        .iter()
        .zip(0..)
        .map(|(number, block)| ((number * 64.0) as i64, block))
        .collect();
    order.sort_unstable();
    order.iter().take(64).map(|(_, block)| *block).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn a_token_goes_where_its_page_is_and_nowhere_else(
        seed in 0u64..1000,
        block_size in prop::sample::select(vec![32usize, 64]),
        at in prop::collection::vec(-1i32..64, 32),
    ) {
        let mut ops = ReferenceOps::new(2);
        let k = cache(&mut ops, block_size, DataType::BFloat8B);
        let values = numbers(seed, 32 * HEADS * 32);
        let x = users(&mut ops, &values);
        let pages = pages(seed);
        let (at_there, table) = (positions(&mut ops, &at), table(&mut ops, 32, &pages));
        ops.paged_update_cache(&k, &x, &at_there, &table).unwrap();

        let mut stored = values.clone();
        super::super::rounding::round(&mut stored, 32, DataType::BFloat8B);
        let mut expected = vec![0.0; BLOCKS * HEADS * block_size * 32];
        for user in 0..32 {
            let Ok(position) = usize::try_from(at[user]) else { continue };
            let block = pages[user * 2 + position / block_size] as usize;
            for head in 0..HEADS {
                let row = (block * HEADS + head) * block_size + position % block_size;
                let from = (user * HEADS + head) * 32;
                expected[row * 32..(row + 1) * 32].copy_from_slice(&stored[from..from + 32]);
            }
        }
        for chip in 0..2 {
            prop_assert_eq!(ops.read(&k, chip).unwrap(), expected.clone());
        }
    }

    #[test]
    fn filling_is_updating_row_by_row(seed in 0u64..1000, rows in 1usize..=64) {
        let mut ops = ReferenceOps::new(1);
        let (filled, updated) = (cache(&mut ops, 32, BF16), cache(&mut ops, 32, BF16));
        let values = numbers(seed, HEADS * rows * 32);
        let x = Upload::tiles([1, HEADS, rows, 32], BF16).reals(&mut ops, &values);
        let pages = pages(seed);
        let first = table(&mut ops, 1, &pages[..2]);
        ops.paged_fill_cache(&filled, &x, &first).unwrap();

        let all = table(&mut ops, 32, &pages);
        for row in 0..rows {
            let mut one = vec![0.0; 32 * HEADS * 32];
            for head in 0..HEADS {
                let from = (head * rows + row) * 32;
                one[head * 32..(head + 1) * 32].copy_from_slice(&values[from..from + 32]);
            }
            let mut at = [-1; 32];
            at[0] = row as i32;
            let (one, at) = (users(&mut ops, &one), positions(&mut ops, &at));
            ops.paged_update_cache(&updated, &one, &at, &all).unwrap();
        }
        prop_assert_eq!(ops.read(&filled, 0).unwrap(), ops.read(&updated, 0).unwrap());
    }
}

#[test]
fn every_handle_of_a_cache_sees_what_was_written() {
    let mut ops = ReferenceOps::new(1);
    let k = cache(&mut ops, 32, BF16);
    let other = k.clone();
    let x = Upload::tiles([1, HEADS, 1, 32], BF16).reals(&mut ops, &[1.0; HEADS * 32]);
    let table = table(&mut ops, 1, &[0]);
    ops.paged_fill_cache(&k, &x, &table).unwrap();
    assert_eq!(ops.read(&other, 0).unwrap().iter().sum::<f32>(), (HEADS * 32) as f32);
}

#[test]
fn an_update_demands_types_places_and_pages() {
    let mut ops = ReferenceOps::new(1);
    let k = cache(&mut ops, 32, DataType::BFloat8B);
    let x = users(&mut ops, &numbers(1, 32 * HEADS * 32));
    let pt = table(&mut ops, 32, &[0; 64]);
    let at = positions(&mut ops, &[0; 32]);
    ops.paged_update_cache(&k, &x, &at, &pt).unwrap();
    let mut refuse = |x: &Tensor, at: &Tensor, pt: &Tensor, needed: &[&str]| {
        assert_refused(ops.paged_update_cache(&k, x, at, pt), needed);
    };

    let mut setup = ReferenceOps::new(1);
    let wide = setup.typecast(&x, DataType::BFloat8B).unwrap();
    refuse(&wide, &at, &pt, &["x as one of", "BFloat8B"]);
    let loose = setup.to_memory_config(&x, &DRAM).unwrap();
    refuse(&loose, &at, &pt, &["x height-sharded"]);
    let unsigned = Upload::rows([1, 1, 1, 32], DataType::UInt32).rank(1);
    let unsigned = unsigned.uint32(&mut setup, &[0; 32]);
    refuse(&x, &unsigned, &pt, &["positions as one of [Int32]"]);
    let four = Upload::rows([1, 1, 1, 32], DataType::Int32).int32(&mut setup, &[0; 32]);
    refuse(&x, &four, &pt, &["positions of rank 1", "found 4"]);
    let few = table(&mut setup, 16, &[0; 32]);
    refuse(&x, &at, &few, &["the page table of shape [1, 1, 32, 2]"]);
    let four = Upload::rows([1, 1, 32, 2], DataType::Int32).int32(&mut setup, &[0; 64]);
    refuse(&x, &at, &four, &["the page table of rank 2"]);
    let late = positions(&mut setup, &[64; 32]);
    refuse(&x, &late, &pt, &["positions below 64", "position 64"]);
    let early = positions(&mut setup, &[-2; 32]);
    refuse(&x, &early, &pt, &["-1 for no user", "found -2"]);
    let beyond = table(&mut setup, 32, &[BLOCKS as i32; 64]);
    refuse(&x, &at, &beyond, &["blocks below 70", "70 for page 0"]);
}

#[test]
fn a_cache_demands_blocks_of_tiles_in_dram() {
    let mut ops = ReferenceOps::new(1);
    let x = users(&mut ops, &numbers(1, 32 * HEADS * 32));
    let (pt, at) = (table(&mut ops, 32, &[0; 64]), positions(&mut ops, &[0; 32]));
    // The package takes half tiles, and bfp4.
    let half = cache(&mut ops, 16, BF16);
    assert_refused(ops.paged_update_cache(&half, &x, &at, &pt), &["blocks of whole tiles", "16"]);
    let four = cache(&mut ops, 32, DataType::BFloat4B);
    assert_refused(ops.paged_update_cache(&four, &x, &at, &pt), &["the cache as one of"]);
}

#[test]
fn a_fill_demands_the_caches_type_and_room() {
    let mut ops = ReferenceOps::new(1);
    let k = cache(&mut ops, 32, DataType::BFloat8B);
    let x = |ops: &mut ReferenceOps, rows: usize, dtype| {
        Upload::tiles([1, HEADS, rows, 32], dtype).reals(ops, &numbers(1, HEADS * rows * 32))
    };
    let pt = table(&mut ops, 1, &[0, 1]);
    let wide = x(&mut ops, 32, BF16);
    assert_refused(ops.paged_fill_cache(&k, &wide, &pt), &["the cache's BFloat8B", "BFloat16"]);
    let long = x(&mut ops, 65, DataType::BFloat8B);
    assert_refused(ops.paged_fill_cache(&k, &long, &pt), &["rows that fit 2 blocks of 32", "65"]);
}
