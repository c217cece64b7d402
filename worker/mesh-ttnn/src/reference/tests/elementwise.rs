//! Embedding, sums and gates.

use super::*;

const BF16: DataType = DataType::BFloat16;
const DRAM: MemoryConfig = MemoryConfig::DRAM;

#[test]
fn an_embedding_is_rows_of_the_chips_own_columns() {
    let mut ops = ReferenceOps::new(2);
    let values = numbers(1, 50 * 64);
    let table = Upload::rows([1, 1, 50, 64], BF16).spread(Spread::Cut(3)).reals(&mut ops, &values);
    let ids = Upload::rows([1, 1, 1, 3], DataType::UInt32).uint32(&mut ops, &[49, 0, 49]);
    let y = ops.embedding(&ids, &table, &MemoryConfig::L1).unwrap();
    for chip in 0..2 {
        let row = |id: usize| &values[id * 64 + chip * 32..][..32];
        assert_eq!(ops.read(&y, chip).unwrap(), [row(49), row(0), row(49)].concat());
    }
}

#[test]
fn an_embedding_demands_ids_and_a_table() {
    let mut ops = ReferenceOps::new(1);
    let table = Upload::rows([1, 1, 4, 32], BF16);
    let ids = Upload::rows([1, 1, 1, 1], DataType::UInt32);
    let good = table.reals(&mut ops, &[0.0; 128]);
    let tiled = Upload { layout: Layout::Tile, ..table }.reals(&mut ops, &[0.0; 128]);
    let zero = ids.uint32(&mut ops, &[0]);
    let four = ids.uint32(&mut ops, &[4]);
    let signed = Upload::rows([1, 1, 1, 1], DataType::Int32).int32(&mut ops, &[0]);
    let blocks = Upload::tiles([1, 1, 4, 32], DataType::BFloat8B).reals(&mut ops, &[0.0; 128]);
    ops.embedding(&zero, &good, &DRAM).unwrap();
    assert_refused(ops.embedding(&four, &good, &DRAM), &["embedding", "ids below 4", "found 4"]);
    assert_refused(ops.embedding(&signed, &good, &DRAM), &["ids as one of [UInt32]", "Int32"]);
    assert_refused(ops.embedding(&zero, &tiled, &DRAM), &["table in layout RowMajor"]);
    assert_refused(ops.embedding(&zero, &blocks, &DRAM), &["table as one of [BFloat16]"]);
}

#[test]
fn a_gate_is_silu_times_the_other_rounded_once() {
    let mut ops = ReferenceOps::new(1);
    let (gate, up) = (numbers(2, 1024), numbers(3, 1024));
    let x = Upload::tiles([1, 1, 32, 32], BF16).reals(&mut ops, &gate);
    let y = Upload::tiles([1, 1, 32, 32], BF16).reals(&mut ops, &up);
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let formula = gate.iter().zip(&up).map(|(g, u)| silu(f64::from(*g)) * f64::from(*u));
    let product = ops.silu_mul(&x, &y, BF16, &DRAM).unwrap();
    assert_close(&ops.read(&product, 0).unwrap(), formula.clone());

    // A block float of it is within one step of its group.
    let product = ops.silu_mul(&x, &y, DataType::BFloat8B, &DRAM).unwrap();
    let exact: Vec<f32> = formula.map(|value| value as f32).collect();
    let mut expected = exact.clone();
    super::super::rounding::round(&mut expected, 32, DataType::BFloat8B);
    let largest = |group: &[f32]| group.iter().fold(0f32, |max, v| max.max(v.abs()));
    for (got, want) in ops.read(&product, 0).unwrap().chunks(16).zip(expected.chunks(16)) {
        let step = largest(want) / 32.0;
        assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() <= step));
    }
}

#[test]
fn operands_of_different_shapes_are_refused() {
    let mut ops = ReferenceOps::new(1);
    let x = Upload::tiles([1, 1, 1, 32], BF16).reals(&mut ops, &[1.0; 32]);
    let y = Upload::tiles([1, 1, 1, 64], BF16).reals(&mut ops, &[1.0; 64]);
    let ids = Upload::tiles([1, 1, 1, 32], DataType::Int32).int32(&mut ops, &[1; 32]);
    assert_refused(ops.add(&x, &y, &DRAM), &["add", "[1, 1, 1, 32]", "[1, 1, 1, 64]"]);
    assert_refused(ops.silu_mul(&x, &y, BF16, &DRAM), &["mul", "[1, 1, 1, 64]"]);
    assert_refused(ops.add(&x, &ids, &DRAM), &["add", "reals", "Int32"]);
}
