//! Block floats against the bytes that ttnn's host packing gives
//! (`golden/make_bfp.py` says how the file was made).

use kernels::Format;
use kernels::bfp::{decode_tiles, encode_tiles};

static GOLDEN: &[u8] = include_bytes!("golden/bfp.bin");

/// Reads the golden file front to back.
struct Reader(&'static [u8]);

impl Reader {
    fn bytes(&mut self, len: usize) -> &'static [u8] {
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }

    fn number(&mut self) -> usize {
        let bytes = self.bytes(4).try_into().expect("4 bytes were asked for");
        u32::from_le_bytes(bytes) as usize
    }

    /// f32 values from their upper `size` bytes.
    fn values(&mut self, count: usize, size: usize) -> Vec<f32> {
        let upper = |bytes: &[u8]| {
            let mut word = [0; 4];
            word[4 - size..].copy_from_slice(bytes);
            f32::from_le_bytes(word)
        };
        self.bytes(count * size).chunks_exact(size).map(upper).collect()
    }
}

#[test]
fn every_case_packs_and_unpacks_to_ttnns_bits() {
    let mut file = Reader(GOLDEN);
    let num_cases = file.number();
    assert_eq!(num_cases, 20);
    for _ in 0..num_cases {
        let len = file.number();
        let case = String::from_utf8_lossy(file.bytes(len));
        let (rows, cols) = (file.number(), file.number());
        let values = file.values(rows * cols, 4);
        for format in [Format::Bfp8, Format::Bfp4] {
            let len = file.number();
            let tiles = file.bytes(len);
            let packed = encode_tiles(&values, rows, cols, format);
            let difference = packed.iter().zip(tiles).position(|(a, b)| a != b);
            assert_eq!((packed.len(), difference), (len, None), "{case} {format:?} bytes");
            let expected = file.values(rows * cols, 2);
            let decoded = decode_tiles(tiles, rows, cols, format);
            for (i, (got, expected)) in decoded.iter().zip(&expected).enumerate() {
                let same =
                    got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan());
                assert!(same, "{case} {format:?}: value {i} is {got:e}, ttnn has {expected:e}");
            }
        }
    }
    assert!(file.0.is_empty(), "{} bytes are left over", file.0.len());
}
