//! Packing for the chips, as the package's files show it.

use std::fs;
use std::path::Path;

use half::bf16;
use kernels::Format;
use kernels::bfp::encode_tiles;
use mesh_ttnn::ops::Ops;
use mesh_ttnn::packing::Packing;
use mesh_ttnn::python::TtnnOps;
use mesh_ttnn::spec::{DataType, HostData, HostMatrix, Layout, MemoryConfig, Spread};

const ROWS: usize = 64;
const COLUMNS: usize = 192;
/// Rows and columns of a tile's quarter.
const FACE: usize = 16;

/// Values of all magnitudes and signs, with groups of zeros among them.
fn values(num: usize) -> Vec<bf16> {
    let mut state = 1u32;
    let value = |idx: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let mantissa = (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
        let exponent = (state >> 3) % 24;
        let is_zero = (idx / 40).is_multiple_of(7);
        bf16::from_f32(if is_zero { 0.0 } else { mantissa * 2f32.powi(exponent as i32 - 12) })
    };
    (0..num).map(value).collect()
}

fn matrix(values: &[bf16], dtype: DataType, layout: Layout, spread: Spread) -> HostMatrix {
    HostMatrix {
        shape: [1, 1, ROWS, COLUMNS],
        rank: 4,
        data: HostData::BFloat16(values.to_vec()),
        dtype,
        layout,
        spread,
    }
}

/// What a file holds behind its header.
fn packed_bytes(path: &Path) -> Vec<u8> {
    let file = fs::read(path).unwrap();
    let header = u64::from_le_bytes(file[..8].try_into().unwrap());
    file[8 + header as usize..].to_vec()
}

fn packed(ops: &mut TtnnOps, matrix: HostMatrix) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weight.tensorbin");
    let tensor = ops.pack(matrix).unwrap();
    ops.dump(&tensor, &path).unwrap();
    packed_bytes(&path)
}

/// Tiles of bf16: faces one after another, row by row.
fn bf16_tiles(values: &[bf16], columns: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for tile in 0..values.len() / 1024 {
        let (top, left) = (tile / (columns / 32) * 32, tile % (columns / 32) * 32);
        for face in 0..4 {
            for row in 0..FACE {
                let start = (top + face / 2 * FACE + row) * columns + left + face % 2 * FACE;
                let row = &values[start..start + FACE];
                bytes.extend(row.iter().flat_map(|value| value.to_le_bytes()));
            }
        }
    }
    bytes
}

/// Every format's bytes are those of our own packing, bit for bit, for all
/// chips together.
pub(crate) fn packed_as_by_us(ops: &mut TtnnOps) {
    let values = values(ROWS * COLUMNS);
    let floats: Vec<f32> = values.iter().map(|value| value.to_f32()).collect();
    let whole = Spread::Replicated;
    for (dtype, format) in [(DataType::BFloat8B, Format::Bfp8), (DataType::BFloat4B, Format::Bfp4)]
    {
        let found = packed(ops, matrix(&values, dtype, Layout::Tile, whole));
        assert!(found == encode_tiles(&floats, ROWS, COLUMNS, format), "{format:?}");
    }
    let tiles = packed(ops, matrix(&values, DataType::BFloat16, Layout::Tile, whole));
    assert!(tiles == bf16_tiles(&values, COLUMNS));
    let rows = packed(ops, matrix(&values, DataType::BFloat16, Layout::RowMajor, whole));
    let expected: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    assert!(rows == expected);
}

/// The chips' parts of a tensor that is cut come one after another.
pub(crate) fn cut_as_by_us(ops: &mut TtnnOps) {
    let values = values(ROWS * COLUMNS);
    let n = ops.num_chips();
    let (rows, columns) = (ROWS / n, COLUMNS / n);
    let floats = |part: Vec<bf16>| part.into_iter().map(bf16::to_f32).collect::<Vec<_>>();

    let cut = packed(ops, matrix(&values, DataType::BFloat8B, Layout::Tile, Spread::Cut(2)));
    let by_rows = values.chunks(rows * COLUMNS).map(<[_]>::to_vec).map(floats);
    let expected: Vec<u8> =
        by_rows.flat_map(|part| encode_tiles(&part, rows, COLUMNS, Format::Bfp8)).collect();
    assert!(cut == expected, "rows");

    let cut = packed(ops, matrix(&values, DataType::BFloat4B, Layout::Tile, Spread::Cut(3)));
    let expected: Vec<u8> = (0..n)
        .flat_map(|chip| {
            let rows = values.chunks(COLUMNS);
            let part = rows.flat_map(|row| row[chip * columns..][..columns].to_vec()).collect();
            encode_tiles(&floats(part), ROWS, columns, Format::Bfp4)
        })
        .collect();
    assert!(cut == expected, "columns");
}

/// A dumped tensor is the same when it is loaded, and goes to the chips in any
/// place.
pub(crate) fn come_back(ops: &mut TtnnOps) {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("1.tensorbin"), folder.path().join("2.tensorbin"));
    let values = values(ROWS * COLUMNS);
    let packed = matrix(&values, DataType::BFloat8B, Layout::Tile, Spread::Replicated);
    let packed = ops.pack(packed).unwrap();
    ops.dump(&packed, &first).unwrap();
    let loaded = ops.load(&first).unwrap();
    ops.dump(&loaded, &second).unwrap();
    assert!(fs::read(&first).unwrap() == fs::read(&second).unwrap());

    let banks = ops.num_dram_banks();
    let over_banks = MemoryConfig::DramWidthSharded { banks, shard: [ROWS, 32] };
    let tensor = ops.to_device(&loaded, &over_banks).unwrap();
    assert_eq!(ops.shape(&tensor), [1, 1, ROWS, COLUMNS]);
    let tensor = ops.to_device(&loaded, &MemoryConfig::DRAM).unwrap();
    ops.write(&packed, &tensor).unwrap();
    // Of another shape than what is there.
    let other = HostMatrix {
        shape: [1, 1, COLUMNS, ROWS],
        ..matrix(&values, DataType::BFloat8B, Layout::Tile, Spread::Replicated)
    };
    let other = ops.pack(other).unwrap();
    assert!(ops.write(&other, &tensor).is_err());
}

/// Rows and columns of a chip's part: whole tiles or not, one tile, more than
/// are packed at a time.
const PARTS: [[usize; 2]; 6] = [[32, 32], [96, 160], [33, 50], [256, 64], [1184, 96], [640, 1056]];

/// A file that we write is the package's own, byte for byte, however the tensor
/// lies on the chips; and what is mapped of it has its shape.
pub(crate) fn written_as_by_the_package(ops: &mut TtnnOps) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for dtype in [DataType::BFloat8B, DataType::BFloat4B] {
        for spread in [Spread::Replicated, Spread::Cut(2), Spread::Cut(3)] {
            for part in PARTS {
                let mut shape = [1, 1, part[0], part[1]];
                if let Spread::Cut(axis) = spread {
                    shape[axis] *= ops.num_chips();
                }
                let mut values = values(shape.iter().product());
                // Infinities, NaNs, denormals: one of each bit pattern.
                for (idx, value) in values.iter_mut().skip(512).step_by(3).enumerate() {
                    *value = bf16::from_bits((idx as u16).wrapping_mul(40_503));
                }
                let layout = Layout::Tile;
                let matrix = HostMatrix { shape, ..matrix(&values, dtype, layout, spread) };
                let header =
                    ops.file_header(shape, dtype, spread, &path("scratch.tensorbin")).unwrap();
                let mut ours = header.expect("the format of the files is known");
                let packing = Packing::new(&matrix, ops.num_chips()).unwrap();
                packing.write(&mut ours).unwrap();

                let packed = ops.pack(matrix).unwrap();
                ops.dump(&packed, &path("theirs.tensorbin")).unwrap();
                let theirs = fs::read(path("theirs.tensorbin")).unwrap();
                assert!(ours == theirs, "{dtype:?} {spread:?} {part:?}");

                fs::write(path("ours.tensorbin"), &ours).unwrap();
                let loaded = ops.load(&path("ours.tensorbin")).unwrap();
                let tensor = ops.to_device(&loaded, &MemoryConfig::DRAM).unwrap();
                assert_eq!(ops.shape(&tensor), [1, 1, part[0], part[1]]);
            }
        }
    }
    assert!(!path("scratch.tensorbin").exists());
    // Not block floats, and not to be cut.
    for (shape, dtype, spread) in [
        ([1, 1, 32, 32], DataType::BFloat16, Spread::Replicated),
        ([1, 2, 32, 32], DataType::BFloat8B, Spread::Replicated),
        ([1, 1, 0, 32], DataType::BFloat8B, Spread::Replicated),
        ([1, 1, 32, 32], DataType::BFloat8B, Spread::Cut(1)),
    ] {
        assert_eq!(
            ops.file_header(shape, dtype, spread, &path("scratch.tensorbin")).unwrap(),
            None
        );
    }
}
