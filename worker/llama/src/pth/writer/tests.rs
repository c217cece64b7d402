//! The writer against `torch.save`, byte for byte.

use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::*;

/// As torch 1.13 writes it, which has no `byteorder`.
fn written_as_torch_1(writer: &PthWriter) -> Vec<u8> {
    let mut archive = ArchiveWriter::new(Vec::new(), &writer.top);
    writer
        .write_records(&mut archive, false, &mut |archive, name, _| {
            let declared = writer.tensors.iter().find(|declared| declared.name == name).unwrap();
            let Value::Tensor { dtype, num_values, .. } = declared.value else {
                panic!("{name} is an alias");
            };
            archive.write_all(&counted(dtype, num_values)).map_err(PthWriteError::from)
        })
        .unwrap();
    archive.finish().unwrap();
    archive.into_inner()
}

/// 0, 1, 2 … as the script of the golden files counts.
fn counted(dtype: PthDtype, num_values: u64) -> Vec<u8> {
    let value = |index: u64| {
        let (value, float) = (index % 100, (index % 100) as f32);
        match dtype {
            PthDtype::Bf16 => half::bf16::from_f32(float).to_le_bytes().to_vec(),
            PthDtype::F16 => half::f16::from_f32(float).to_le_bytes().to_vec(),
            PthDtype::F32 => float.to_le_bytes().to_vec(),
            PthDtype::F64 => f64::from(float).to_le_bytes().to_vec(),
            PthDtype::Bool => vec![(index % 2) as u8],
            integer => value.to_le_bytes()[..integer.num_bytes() as usize].to_vec(),
        }
    };
    (0..num_values).flat_map(value).collect()
}

fn numbered(top: &str, count: usize) -> PthWriter {
    let mut writer = PthWriter::new(top).unwrap();
    for layer in 0..count {
        writer.tensor(&format!("layers.{layer}.weight"), PthDtype::Bf16, &[2, 2]).unwrap();
    }
    writer
}

fn golden(name: &str) -> Vec<u8> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pth_writer");
    std::fs::read(directory.join(name)).unwrap()
}

#[test]
fn a_shared_tensor_is_stored_once() {
    let mut writer = PthWriter::new("tied").unwrap();
    writer.tensor("tok_embeddings.weight", PthDtype::Bf16, &[5, 4]).unwrap();
    writer.tensor("norm.weight", PthDtype::Bf16, &[4]).unwrap();
    writer.alias("output.weight", "tok_embeddings.weight").unwrap();
    assert_eq!(written_as_torch_1(&writer), golden("tied.pth"));
}

#[test]
fn every_number_of_dimensions_is_written_as_torch_does() {
    let mut writer = PthWriter::new("shapes").unwrap();
    let shapes: [(&str, &[u64]); 5] = [
        ("scalar", &[]),
        ("none", &[0, 3]),
        ("three", &[2, 3, 2]),
        ("four", &[2, 1, 3, 2]),
        ("long", &[300]),
    ];
    for (name, shape) in shapes {
        writer.tensor(name, PthDtype::F32, shape).unwrap();
    }
    assert_eq!(written_as_torch_1(&writer), golden("shapes.pth"));
}

#[test]
fn every_type_is_written_as_torch_does() {
    let mut writer = PthWriter::new("dtypes").unwrap();
    for (name, dtype) in [
        ("bf16", PthDtype::Bf16),
        ("f16", PthDtype::F16),
        ("f32", PthDtype::F32),
        ("f64", PthDtype::F64),
        ("i64", PthDtype::I64),
        ("i32", PthDtype::I32),
        ("i16", PthDtype::I16),
        ("i8", PthDtype::I8),
        ("u8", PthDtype::U8),
        ("bool", PthDtype::Bool),
    ] {
        writer.tensor(name, dtype, &[3]).unwrap();
    }
    assert_eq!(written_as_torch_1(&writer), golden("dtypes.pth"));
}

#[test]
fn dictionaries_of_every_length_are_written_as_torch_does() {
    assert_eq!(written_as_torch_1(&numbered("empty", 0)), golden("empty.pth"));
    assert_eq!(written_as_torch_1(&numbered("one", 1)), golden("one.pth"));
    // Past the memo's short references, and around Python's batches.
    for (count, num_bytes, sha256) in [
        (60, 17_013, "8ac1ddcdafedab841554d27188e1b0ec4af271cb1351ea9b3ac5117e85a88ae8"),
        (1000, 290_397, "56786169d4ec3bedffb240c3e4d297f0bf50816620bad39710c54ad0a748b863"),
        (1001, 290_714, "9f15bda495fea658f650103d38e5121deb5e9fcb1b85f23e72bddc09bac5010a"),
        (1002, 291_031, "5436e400bec255e10d316c27fc838b754f26f038f36b16dccf731f90faf0bf3d"),
    ] {
        let file = written_as_torch_1(&numbered("large", count));
        let hash: String = Sha256::digest(&file).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((file.len(), hash.as_str()), (num_bytes, sha256), "{count} tensors");
    }
}

/// Keeps the first and last bytes of what is written.
#[derive(Default)]
struct Ends {
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Write for Ends {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let missing = 576 - self.head.len().min(576);
        self.head.extend(&bytes[..missing.min(bytes.len())]);
        self.tail.extend(&bytes[bytes.len().saturating_sub(1024)..]);
        self.tail.drain(..self.tail.len().saturating_sub(1024));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn sizes_and_offsets_past_32_bits_are_written_as_torch_does() {
    let mut writer = PthWriter::new("zip64").unwrap();
    writer.tensor("a", PthDtype::F32, &[3]).unwrap();
    writer.tensor("big", PthDtype::U8, &[4_295_000_000]).unwrap();
    writer.tensor("c", PthDtype::F32, &[5]).unwrap();
    let mut archive = ArchiveWriter::new(Ends::default(), "zip64");
    writer
        .write_records(&mut archive, false, &mut |archive, name, num_bytes| {
            let piece = match name {
                "big" => vec![0; 1 << 20],
                _ => 1_f32.to_le_bytes().to_vec(),
            };
            let mut left = num_bytes as usize;
            while left > 0 {
                let now = piece.len().min(left);
                archive.write_all(&piece[..now])?;
                left -= now;
            }
            Ok::<_, PthWriteError>(())
        })
        .unwrap();
    archive.finish().unwrap();
    let Ends { head, tail } = archive.into_inner();
    assert_eq!([head, tail].concat(), golden("zip64.bin"));
}

#[test]
fn the_length_is_known_before_anything_is_written() {
    let mut writer = numbered("consolidated.00", 300);
    writer.alias("same", "layers.7.weight").unwrap();
    let fill = |_: &str, storage: &mut PthStorage<'_>| {
        // In uneven pieces.
        storage.write_all(&[1, 2, 3])?;
        storage.write_all(&[4, 5, 6, 7, 8])?;
        Ok::<_, PthWriteError>(())
    };
    let file = writer.write(Vec::new(), fill).unwrap();
    assert_eq!(file.len() as u64, writer.num_bytes());
    let read_back = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(read_back.path(), &file).unwrap();
    let read_back = crate::pth::PthFile::open(read_back.path()).unwrap();
    assert_eq!(read_back.tensors().len(), 301);
    let same = &read_back.tensors()["same"];
    assert_eq!(same, &read_back.tensors()["layers.7.weight"]);
    assert_eq!((same.shape.as_slice(), same.offset % 64), ([2, 2].as_slice(), 0));
    let mut values = [0; 8];
    read_back.read_at(same.offset, &mut values).unwrap();
    assert_eq!(values, [1, 2, 3, 4, 5, 6, 7, 8]);
    let mut huge = PthWriter::new("huge").unwrap();
    huge.tensor("a", PthDtype::F32, &[1 << 20, 1 << 20]).unwrap();
    assert_eq!(huge.num_bytes() >> 42, 1);
}

#[test]
fn a_tensor_gets_exactly_its_bytes() {
    let mut writer = PthWriter::new("x").unwrap();
    writer.tensor("a", PthDtype::F32, &[2]).unwrap();
    for (num_bytes, expected) in
        [(7, "tensor a has 8 bytes, of which 7 were written"), (9, "9 bytes for a tensor that")]
    {
        let result = writer.write(Vec::new(), |_, storage| {
            storage.write_all(&vec![0; num_bytes])?;
            Ok::<_, PthWriteError>(())
        });
        let message = result.unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn names_and_sizes_that_no_file_can_hold_are_refused() {
    for top in ["", "a/b"] {
        assert!(matches!(PthWriter::new(top), Err(PthWriteError::Name { .. })), "{top:?}");
    }
    let mut writer = numbered("x", 2);
    let error = writer.tensor("layers.1.weight", PthDtype::F32, &[]).unwrap_err();
    assert!(matches!(error, PthWriteError::Duplicate { .. }), "{error}");
    let error = writer.alias("b", "no").unwrap_err();
    assert!(matches!(error, PthWriteError::NoSuchTensor { .. }), "{error}");
    for shape in [[1 << 62, 1], [1 << 40, 1 << 40]] {
        let error = writer.tensor("b", PthDtype::F32, &shape).unwrap_err();
        assert!(matches!(error, PthWriteError::TooLarge { .. }), "{error}");
    }
}
