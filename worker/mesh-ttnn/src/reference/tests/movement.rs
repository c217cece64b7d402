//! Operations that move elements.

use proptest::prelude::*;

use super::*;

const BF16: DataType = DataType::BFloat16;
const DRAM: MemoryConfig = MemoryConfig::DRAM;

fn tensor(ops: &mut ReferenceOps, shape: Shape) -> (Tensor, Vec<f32>) {
    let values = numbers(1, shape.iter().product());
    (Upload::tiles(shape, BF16).reals(ops, &values), values)
}

/// Where element `at` of `shape` is along each axis.
fn place(mut at: usize, shape: Shape) -> Shape {
    let mut place = [0; 4];
    for axis in (0..4).rev() {
        place[axis] = at % shape[axis];
        at /= shape[axis];
    }
    place
}

fn index(place: Shape, shape: Shape) -> usize {
    place.iter().zip(shape).fold(0, |at, (place, side)| at * side + place)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn a_slice_is_the_range_of_every_axis(
        ranges in prop::array::uniform4((0usize..4, 1usize..4, 0usize..4)),
    ) {
        let mut ops = ReferenceOps::new(1);
        let (start, end) = (ranges.map(|r| r.0), ranges.map(|r| r.0 + r.1));
        let shape = ranges.map(|r| r.0 + r.1 + r.2);
        let (x, values) = tensor(&mut ops, shape);
        let y = ops.slice(&x, start, end).unwrap();
        let inside = |at: &usize| {
            let place = place(*at, shape);
            (0..4).all(|axis| (start[axis]..end[axis]).contains(&place[axis]))
        };
        let expected: Vec<f32> =
            (0..values.len()).filter(inside).map(|at| values[at]).collect();
        prop_assert_eq!(ops.read(&y, 0).unwrap(), expected);
    }

    #[test]
    fn transposing_swaps_the_places_and_twice_is_nothing(
        shape in prop::array::uniform4(1usize..6),
    ) {
        let mut ops = ReferenceOps::new(1);
        let (x, values) = tensor(&mut ops, shape);
        let y = ops.transpose_1_2(&x).unwrap();
        let swapped = ops.shape(&y);
        let there = ops.read(&y, 0).unwrap();
        for (at, value) in values.iter().enumerate() {
            let [a, b, c, d] = place(at, shape);
            prop_assert_eq!(there[index([a, c, b, d], swapped)], *value);
        }
        let back = ops.transpose_1_2(&y).unwrap();
        prop_assert_eq!(ops.read(&back, 0).unwrap(), values);
    }

    #[test]
    fn parts_of_a_row_joined_are_the_row(
        rows in 1usize..5,
        widths in prop::collection::vec(1usize..40, 1..4),
    ) {
        let mut ops = ReferenceOps::new(1);
        let (x, values) = tensor(&mut ops, [1, 1, rows, widths.iter().sum()]);
        let mut first = 0;
        let parts: Vec<Tensor> = widths.iter().map(|width| {
            let part =
                ops.slice(&x, [0, 0, 0, first], [1, 1, rows, first + width]).unwrap();
            first += width;
            part
        }).collect();
        let y = ops.concat(&parts).unwrap();
        prop_assert_eq!(ops.read(&y, 0).unwrap(), values);
    }
}

#[test]
fn resharding_and_reshaping_change_no_value() {
    let mut ops = ReferenceOps::new(1);
    let (x, values) = tensor(&mut ops, [1, 1, 32, 256]);
    let memory = width_sharded(32, 256, Grid { x: 4, y: 2 });
    let sharded = ops.to_memory_config(&x, &memory).unwrap();
    assert_eq!(sharded.spec().memory, memory);
    assert_eq!(ops.read(&sharded, 0).unwrap(), values);
    let rows = ops.reshape(&x, [1, 32, 1, 256]).unwrap();
    assert_eq!(ops.shape(&rows), [1, 32, 1, 256]);
    assert_eq!(ops.read(&rows, 0).unwrap(), values);
    assert_refused(ops.reshape(&x, [1, 1, 64, 128]), &["reshape", "as many rows as wide"]);
    assert_refused(ops.reshape(&sharded, [1, 32, 1, 256]), &["reshape", "interleaved"]);
}

#[test]
fn rows_of_block_floats_are_bf16() {
    let mut ops = ReferenceOps::new(1);
    let (x, _) = tensor(&mut ops, [1, 1, 32, 64]);
    let blocks = ops.typecast(&x, DataType::BFloat4B).unwrap();
    let rows = ops.untilize(&blocks).unwrap();
    assert_eq!(rows.spec().dtype, BF16);
    assert_eq!(rows.spec().layout, Layout::RowMajor);
    assert_eq!(ops.read(&rows, 0).unwrap(), ops.read(&blocks, 0).unwrap());
    assert_refused(ops.typecast(&rows, DataType::BFloat8B), &["typecast", "layout Tile"]);
    assert_refused(ops.typecast(&x, DataType::Int32), &["typecast", "kind of Int32"]);
    assert_refused(ops.untilize(&rows), &["untilize", "layout Tile"]);
}

#[test]
fn block_floats_are_cut_at_tiles() {
    let mut ops = ReferenceOps::new(1);
    let x = Upload::tiles([1, 1, 64, 96], DataType::BFloat8B).reals(&mut ops, &numbers(1, 6144));
    let y = ops.slice(&x, [0, 0, 32, 0], [1, 1, 64, 64]).unwrap();
    assert_eq!(ops.read(&y, 0).unwrap()[..64], ops.read(&x, 0).unwrap()[32 * 96..][..64]);
    let row = ops.slice(&x, [0, 0, 5, 0], [1, 1, 6, 96]);
    assert_refused(row, &["slice", "whole tiles of block floats"]);
    let out = ops.slice(&x, [0, 0, 0, 0], [1, 1, 64, 97]);
    assert_refused(out, &["slice", "a range inside [1, 1, 64, 96]"]);
}

#[test]
fn parts_that_do_not_fit_together_are_refused() {
    let mut ops = ReferenceOps::new(1);
    let (x, _) = tensor(&mut ops, [1, 1, 32, 64]);
    let (y, _) = tensor(&mut ops, [1, 1, 16, 64]);
    let blocks = ops.typecast(&x, DataType::BFloat8B).unwrap();
    assert_refused(ops.concat(&[]), &["concat", "parts"]);
    assert_refused(ops.concat(&[x.clone(), y]), &["concat", "differ in columns only"]);
    assert_refused(ops.concat(&[x, blocks]), &["concat", "differ in columns only"]);
}

#[test]
fn a_call_that_was_made_before_compiles_nothing() {
    let mut ops = ReferenceOps::new(1);
    let (x, _) = tensor(&mut ops, [1, 1, 32, 64]);
    let (y, _) = tensor(&mut ops, [1, 1, 32, 64]);
    ops.add(&x, &y, &DRAM).unwrap();
    let counts = ops.program_counts();
    ops.add(&y, &x, &DRAM).unwrap();
    assert_eq!(ops.program_counts(), counts);
    ops.add(&y, &x, &MemoryConfig::L1).unwrap();
    assert_eq!(ops.program_counts().programs, counts.programs + 1);

    ops.clear_calls();
    ops.untilize(&x).unwrap();
    ops.synchronize().unwrap();
    assert_eq!(ops.calls(), ["untilize", "synchronize_device"]);
}
