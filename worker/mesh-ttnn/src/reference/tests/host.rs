//! Packing, files and transfers.

use proptest::prelude::*;

use super::*;

const DRAM: MemoryConfig = MemoryConfig::DRAM;

fn matrix(shape: Shape, spread: Spread) -> HostMatrix {
    HostMatrix {
        shape,
        rank: 4,
        data: bf16s(&numbers(1, shape.iter().product())),
        dtype: DataType::BFloat16,
        layout: Layout::Tile,
        spread,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn every_chip_gets_its_slice(
        axis in 0usize..4,
        chips in 1usize..=4,
        sides in prop::array::uniform4(1usize..=5),
    ) {
        let mut shape = sides;
        shape[axis] *= chips;
        let mut ops = ReferenceOps::new(chips);
        let values = numbers(1, shape.iter().product());
        let host = ops.pack(matrix(shape, Spread::Cut(axis))).unwrap();
        let tensor = ops.to_device(&host, &DRAM).unwrap();
        prop_assert_eq!(ops.shape(&tensor), sides);
        for chip in 0..chips {
            let mut expected = Vec::new();
            for (at, value) in values.iter().enumerate() {
                let inner: usize = shape[axis + 1..].iter().product();
                if at / inner % shape[axis] / sides[axis] == chip {
                    expected.push(*value);
                }
            }
            prop_assert_eq!(ops.read(&tensor, chip).unwrap(), expected);
        }
    }

    #[test]
    fn a_dumped_tensor_comes_back_as_it_was(
        dtype in prop::sample::select(vec![
            DataType::BFloat16,
            DataType::BFloat8B,
            DataType::BFloat4B,
            DataType::Float32,
        ]),
        spread in prop::sample::select(vec![
            Spread::Replicated,
            Spread::Cut(2),
            Spread::Cut(3),
        ]),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weight");
        let mut ops = ReferenceOps::new(2);
        let before = ops.pack(HostMatrix { dtype, ..matrix([1, 1, 34, 50], spread) }).unwrap();
        ops.dump(&before, &path).unwrap();
        let after = ops.load(&path).unwrap();
        let [before, after] = [before, after].map(|host| ops.to_device(&host, &DRAM).unwrap());
        prop_assert_eq!(before.spec(), after.spec());
        for chip in 0..2 {
            prop_assert_eq!(ops.read(&before, chip).unwrap(), ops.read(&after, chip).unwrap());
        }
    }
}

#[test]
fn ranks_and_integers_survive_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("positions");
    let mut ops = ReferenceOps::new(1);
    let host = HostMatrix {
        shape: [1, 1, 2, 3],
        rank: 2,
        data: HostData::Int32(vec![0, 1, 2, 3, i32::MAX, 5]),
        dtype: DataType::Int32,
        layout: Layout::RowMajor,
        spread: Spread::Replicated,
    };
    let host = ops.pack(host).unwrap();
    ops.dump(&host, &path).unwrap();
    let host = ops.load(&path).unwrap();
    let tensor = ops.to_device(&host, &DRAM).unwrap();
    assert_eq!(tensor.spec().rank, 2);
    assert_eq!(ops.read_ids(&tensor, 0).unwrap(), [0, 1, 2, 3, i32::MAX as u32, 5]);
}

#[test]
fn a_file_that_is_no_tensor_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("weight");
    let mut ops = ReferenceOps::new(2);
    assert_refused(ops.load(&path), &["load_tensor", "weight"]);
    let host = ops.pack(matrix([1, 1, 32, 64], Spread::Cut(3))).unwrap();
    ops.dump(&host, &path).unwrap();
    let whole = std::fs::read(&path).unwrap();

    for cut in [0, 7, 79, 80, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        assert_refused(ops.load(&path), &["load_tensor", "weight"]);
    }
    // Word by word: a size that no memory has, and what is not known.
    for word in 0..10 {
        let mut bytes = whole.clone();
        bytes[word * 8..(word + 1) * 8].fill(0xee);
        std::fs::write(&path, &bytes).unwrap();
        assert_refused(ops.load(&path), &["load_tensor"]);
    }
    std::fs::write(&path, &whole).unwrap();
    ops.load(&path).unwrap();
    let mut more = ReferenceOps::new(4);
    assert_refused(more.load(&path), &["a tensor of 4 chips", "2"]);
}

#[test]
fn block_floats_are_grouped_on_the_chip() {
    // 24 columns a chip: the second group of each has 8 and the padding's zeros.
    let mut ops = ReferenceOps::new(2);
    let mut values = vec![1.0 / 64.0; 48];
    values[15] = 64.0;
    let x = Upload::tiles([1, 1, 1, 48], DataType::BFloat8B)
        .spread(Spread::Cut(3))
        .reals(&mut ops, &values);
    let mut first = [0.0; 24];
    first[15] = 64.0;
    first[16..].fill(1.0 / 64.0);
    assert_eq!(ops.read(&x, 0).unwrap(), first);
    assert_eq!(ops.read(&x, 1).unwrap(), [1.0 / 64.0; 24]);
}

#[test]
fn what_cannot_be_packed_is_refused() {
    let mut ops = ReferenceOps::new(2);
    let good = matrix([1, 1, 32, 64], Spread::Cut(3));
    let cases = [
        (HostMatrix { shape: [1, 1, 32, 63], ..good.clone() }, "elements"),
        (HostMatrix { shape: [usize::MAX, 2, 32, 64], ..good.clone() }, "elements"),
        (HostMatrix { dtype: DataType::Int32, ..good.clone() }, "the kind of Int32"),
        (HostMatrix { spread: Spread::Cut(4), ..good.clone() }, "an axis below 4"),
        (HostMatrix { spread: Spread::Cut(1), ..good.clone() }, "divide by 2 chips"),
        (HostMatrix { rank: 1, ..good.clone() }, "a rank from 1 to 4"),
        (HostMatrix { rank: 0, ..good.clone() }, "a rank from 1 to 4"),
        (
            HostMatrix { dtype: DataType::BFloat4B, layout: Layout::RowMajor, ..good },
            "layout Tile for BFloat4B",
        ),
    ];
    for (matrix, needed) in cases {
        assert_refused(ops.pack(matrix), &["Tensor", needed]);
    }
}

#[test]
fn a_write_demands_the_same_tensor_and_a_read_its_kind() {
    let mut ops = ReferenceOps::new(1);
    let host = ops.pack(matrix([1, 1, 32, 64], Spread::Replicated)).unwrap();
    let memory = width_sharded(32, 64, Grid { x: 2, y: 1 });
    let there = ops.to_device(&host, &memory).unwrap();
    ops.write(&host, &there).unwrap();
    let other = ops.pack(matrix([1, 1, 64, 32], Spread::Replicated)).unwrap();
    assert_refused(ops.write(&other, &there), &["copy_host_to_device_tensor", "same shape"]);
    assert_refused(ops.read_ids(&there, 0), &["integers", "BFloat16"]);
    assert_refused(ops.read(&there, 1), &["a chip below 1"]);
    let ids = ops.zeros([1, 1, 1, 2], DataType::Int32, Layout::RowMajor, &DRAM).unwrap();
    assert_refused(ops.read(&ids, 0), &["reals", "Int32"]);
    assert_eq!(ops.read_ids(&ids, 0).unwrap(), [0, 0]);
    let negative = Upload::rows([1, 1, 1, 1], DataType::Int32).int32(&mut ops, &[-1]);
    assert_refused(ops.read_ids(&negative, 0), &["ids from 0", "-1"]);
}
