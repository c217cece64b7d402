//! Gathering and reducing over chips.

use super::*;

const DRAM: MemoryConfig = MemoryConfig::DRAM;

/// `[1, 1, rows, width]` on each chip, of `values` over all of them.
fn spread(ops: &mut ReferenceOps, rows: usize, width: usize, values: &[f32]) -> Tensor {
    let shape = [ops.num_chips(), 1, rows, width];
    Upload::tiles(shape, DataType::BFloat16).spread(Spread::Cut(0)).reals(ops, values)
}

#[test]
fn sums_over_eight_chips_are_rounded_once() {
    let mut ops = ReferenceOps::new(8);
    // 256 + 7 is not in bf16 after any but the last addition.
    let values: Vec<f32> =
        (0..8).flat_map(|chip| [if chip == 0 { 256.0 } else { 1.0 }; 256]).collect();
    let x = spread(&mut ops, 1, 256, &values);
    let y = ops.reduce_scatter(&x, &DRAM).unwrap();
    for chip in 0..8 {
        assert_eq!(ops.read(&y, chip).unwrap(), [264.0; 32]);
    }
}

#[test]
fn gathering_what_was_scattered_is_the_sum_everywhere() {
    let mut ops = ReferenceOps::new(4);
    let values = numbers(1, 4 * 3 * 256);
    let x = spread(&mut ops, 3, 256, &values);
    let parts = ops.reduce_scatter(&x, &DRAM).unwrap();
    let all = ops.all_gather(&parts, &DRAM).unwrap();
    let sum = |at: usize| (0..4).map(|chip| f64::from(values[chip * 768 + at])).sum::<f64>();
    for chip in 0..4 {
        assert_eq!(ops.read(&all, chip).unwrap(), rounded((0..768).map(sum)));
    }
}

#[test]
fn indices_are_gathered_as_they_are() {
    let mut ops = ReferenceOps::new(2);
    let x = Upload::tiles([2, 1, 1, 32], DataType::UInt32).spread(Spread::Cut(0));
    let ids: Vec<u32> = (100_000..100_064).collect();
    let x = x.uint32(&mut ops, &ids);
    let y = ops.all_gather(&x, &DRAM).unwrap();
    assert_eq!(ops.read_ids(&y, 1).unwrap(), ids);
}

#[test]
fn collectives_demand_chips_and_whole_tiles() {
    let mut one = ReferenceOps::new(1);
    let x = spread(&mut one, 1, 64, &[0.0; 64]);
    assert_refused(one.all_gather(&x, &DRAM), &["all_gather", "more than one chip"]);
    assert_refused(one.reduce_scatter(&x, &DRAM), &["reduce_scatter", "more than one chip"]);

    // The package would give 48 columns each.
    let mut two = ReferenceOps::new(2);
    let x = spread(&mut two, 1, 96, &[0.0; 192]);
    assert_refused(two.reduce_scatter(&x, &DRAM), &["reduce_scatter", "whole tiles", "96"]);
}
