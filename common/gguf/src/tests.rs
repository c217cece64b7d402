//! Valid files of every shape, and everything that can be done to them.

use super::*;
use proptest::prelude::*;

/// Writes GGUF files, right or wrong.
#[derive(Default, Clone)]
struct Writer {
    entries: Vec<u8>,
    num_entries: u64,
    directory: Vec<u8>,
    num_tensors: u64,
    data: Vec<u8>,
}

const U8: u32 = 0;
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const U64: u32 = 10;

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

fn array(of: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&of.to_le_bytes()[..], &count.to_le_bytes(), elements].concat()
}

impl Writer {
    fn entry(mut self, key: &str, of: u32, value: &[u8]) -> Self {
        self.entries.extend(string(key.as_bytes()));
        self.entries.extend(of.to_le_bytes());
        self.entries.extend(value);
        self.num_entries += 1;
        self
    }

    fn tensor_at(mut self, name: &str, dims: &[u64], of: u32, offset: u64) -> Self {
        self.directory.extend(string(name.as_bytes()));
        self.directory.extend((dims.len() as u32).to_le_bytes());
        for dim in dims {
            self.directory.extend(dim.to_le_bytes());
        }
        self.directory.extend(of.to_le_bytes());
        self.directory.extend(offset.to_le_bytes());
        self.num_tensors += 1;
        self
    }

    fn tensor(mut self, name: &str, dims: &[u64], of: u32, data: &[u8]) -> Self {
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        let offset = self.data.len() as u64;
        self.data.extend(data);
        self.tensor_at(name, dims, of, offset)
    }

    fn finish(&self) -> Vec<u8> {
        let mut file = MAGIC.to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend(self.num_tensors.to_le_bytes());
        file.extend(self.num_entries.to_le_bytes());
        file.extend(&self.entries);
        file.extend(&self.directory);
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(&self.data);
        file
    }
}

fn sample() -> Writer {
    Writer::default()
        .entry("general.architecture", STRING, &string(b"llama"))
        .entry("llama.block_count", U32, &30u32.to_le_bytes())
        .entry("big", U64, &(1u64 << 40).to_le_bytes())
        .entry("eps", F32, &1e-5f32.to_le_bytes())
        .entry("flag", BOOL, &[1])
        .entry(
            "tokenizer.tokens",
            ARRAY,
            &array(STRING, 2, &[string(b"a"), string("é".as_bytes())].concat()),
        )
        .entry("tokenizer.types", ARRAY, &array(I32, 2, &[1, 0, 0, 0, 255, 255, 255, 255]))
        .entry("scores", ARRAY, &array(F32, 1, &0.5f32.to_le_bytes()))
        .entry("bytes", ARRAY, &array(U8, 3, &[1, 2, 3]))
        .tensor("norm", &[3], 0, &[7; 12])
        .tensor("q", &[32, 2], 3, &[8; 40])
        .tensor("k", &[256], 14, &[9; 210])
}

#[test]
fn values_come_back_as_they_were_written() {
    let file = sample().finish();
    let gguf = Gguf::parse(&file).unwrap();
    let metadata = gguf.metadata();
    assert_eq!(gguf.version(), 3);
    assert_eq!(metadata.len(), 9);
    assert_eq!(metadata.str("general.architecture").unwrap(), "llama");
    assert_eq!(metadata.u32("llama.block_count").unwrap(), 30);
    assert_eq!(metadata.u64("big").unwrap(), 1 << 40);
    assert_eq!(metadata.f32("eps").unwrap(), 1e-5);
    assert!(metadata.bool("flag").unwrap());
    assert_eq!(metadata.strings("tokenizer.tokens").unwrap().collect::<Vec<_>>(), ["a", "é"]);
    assert_eq!(metadata.i32s("tokenizer.types").unwrap(), [1, -1]);
    assert_eq!(metadata.f32s("scores").unwrap(), [0.5]);
    assert_eq!(metadata.optional_u32("absent").unwrap(), None);
    let keys: Vec<_> =
        gguf.metadata_bytes_with_prefix("tokenizer.").into_iter().map(|entry| entry.key).collect();
    assert_eq!(keys, ["tokenizer.tokens", "tokenizer.types"]);
}

#[test]
fn metadata_is_read_from_the_beginning_of_a_file_or_asks_for_more() {
    let file = sample().finish();
    let enough = file.len() - sample().data.len();
    assert_eq!(Gguf::parse_metadata(&file[..enough]).unwrap().len(), 9);
    for len in 0..24 + sample().entries.len() {
        let error = Gguf::parse_metadata(&file[..len]).unwrap_err();
        assert!(matches!(error, GgufError::Truncated { .. }), "{len}: {error}");
    }
}

#[test]
fn tensors_come_back_with_their_own_bytes() {
    let file = sample().finish();
    let gguf = Gguf::parse(&file).unwrap();
    assert_eq!(gguf.tensor_names().collect::<Vec<_>>(), ["norm", "q", "k"]);
    let tensors: Vec<_> = gguf.tensors().collect::<Result<_, _>>().unwrap();
    assert_eq!(tensors.len(), gguf.num_tensors());
    for (name, dims, of, data) in [
        ("norm", &[3u64][..], GgmlType::F32, vec![7; 12]),
        ("q", &[32, 2], GgmlType::Q4_1, vec![8; 40]),
        ("k", &[256], GgmlType::Q6_K, vec![9; 210]),
    ] {
        let tensor = gguf.tensor(name).unwrap();
        assert_eq!((tensor.dims(), tensor.ggml_type, tensor.data), (dims, of, &data[..]));
        assert_eq!(tensor.num_values() as u64, dims.iter().product::<u64>());
    }
    assert!(matches!(gguf.tensor("v"), Err(GgufError::MissingTensor { .. })));
    assert!(gguf.optional_tensor("v").unwrap().is_none());
}

#[test]
fn row_48_a_getter_of_another_type_names_both_types() {
    let file = sample().finish();
    let gguf = Gguf::parse(&file).unwrap();
    let metadata = gguf.metadata();
    let error = |result: Result<(), GgufError>| result.unwrap_err().to_string();
    for (got, wanted) in [
        (error(metadata.u32("eps").map(drop)), "metadata key \"eps\" is f32, expected u32"),
        (
            error(metadata.f32s("bytes").map(drop)),
            "metadata key \"bytes\" is array of u8, expected array of f32",
        ),
        (
            error(metadata.strings("general.architecture").map(drop)),
            "metadata key \"general.architecture\" is string, expected array of string",
        ),
        (error(metadata.str("flag").map(drop)), "metadata key \"flag\" is bool, expected string"),
        (error(metadata.bool("none").map(drop)), "metadata key \"none\" is missing"),
    ] {
        assert_eq!(got, wanted);
    }
    // Every key, read as every type: exactly one reading fits each.
    for key in ["general.architecture", "llama.block_count", "big", "eps", "flag", "scores"] {
        let fits = [
            metadata.u32(key).is_ok(),
            metadata.u64(key).is_ok(),
            metadata.i32(key).is_ok(),
            metadata.f32(key).is_ok(),
            metadata.bool(key).is_ok(),
            metadata.str(key).is_ok(),
            metadata.strings(key).is_ok(),
            metadata.u32s(key).is_ok(),
            metadata.i32s(key).is_ok(),
            metadata.f32s(key).is_ok(),
        ];
        assert_eq!(fits.iter().filter(|&&fits| fits).count(), 1, "{key}");
    }
}

#[test]
fn row_46_malformed_files_are_refused_with_the_reason() {
    let header = |patch: fn(&mut Vec<u8>)| {
        let mut file = sample().finish();
        patch(&mut file);
        file
    };
    let nested = array(ARRAY, 1, &array(U8, 1, &[1]));
    let align = |to: u32| sample().entry("general.alignment", U32, &to.to_le_bytes()).finish();
    let cases = [
        (Vec::new(), "the magic number at byte 0 needs 4 bytes, the file has 0 left"),
        (header(|file| file[0] = b'Z'), "not a GGUF file"),
        (header(|file| file[4] = 1), "GGUF version 1 is not supported"),
        (header(|file| file[4..8].reverse()), "big-endian"),
        (header(|file| file.truncate(200)), "needs"),
        (header(|file| file.truncate(file.len() - 1)), "tensor \"k\" is bytes"),
        (sample().entry("eps", U8, &[1]).finish(), "\"eps\" appears more than once"),
        (sample().tensor("q", &[1], 0, &[0; 4]).finish(), "\"q\" appears more than once"),
        (sample().entry("x", ARRAY, &nested).finish(), "array of arrays"),
        (sample().entry("x", 13, &[1]).finish(), "unknown value type 13"),
        (sample().entry("x", BOOL, &[2]).finish(), "boolean with the value 2"),
        (sample().entry("", U8, &[2]).finish(), "a metadata key at byte"),
        (align(24), "alignment 24 is not a power of two"),
        (align(0), "alignment 0"),
        (align(1 << 17), "alignment 131072"),
        (sample().tensor_at("x", &[], 0, 0).finish(), "has 0 dimensions"),
        (sample().tensor_at("x", &[1; 5], 0, 0).finish(), "has 5 dimensions"),
        (sample().tensor_at("x", &[0, 4], 0, 0).finish(), "size is zero"),
        (sample().tensor_at("x", &[u64::MAX; 4], 0, 0).finish(), "does not fit the file"),
        (sample().tensor_at("x", &[33], 3, 0).finish(), "rows of 33 values, Q4_1 packs 32"),
        (sample().tensor_at("x", &[1], 0, 8).finish(), "not a multiple of 32"),
        (sample().tensor_at("x", &[1], 0, 1 << 40).finish(), "tensor \"x\" is bytes"),
        (sample().tensor_at("x", &[1], 0, u64::MAX - 31).finish(), "tensor \"x\" is bytes"),
        (sample().tensor_at("x", &[1 << 62], 0, 0).finish(), "tensor \"x\" is bytes"),
        (sample().tensor_at("x", &[1], 0, 64).finish(), "overlap"),
        (sample().tensor_at("x", &[1], 0, 0).finish(), "overlap"),
    ];
    for (file, reason) in cases {
        let error = Gguf::parse(&file).unwrap_err().to_string();
        assert!(error.contains(reason), "{error:?} does not say {reason:?}");
    }
}

#[test]
fn a_tensor_of_unknown_type_is_an_error_only_when_used() {
    let file = sample().tensor("x", &[256], 10, &[0; 84]).finish();
    let gguf = Gguf::parse(&file).unwrap();
    assert!(gguf.tensor("q").is_ok());
    let error = gguf.tensor("x").unwrap_err().to_string();
    assert!(error.starts_with("tensor \"x\" has type Q2_K, supported are F32,"), "{error}");
}

#[test]
fn text_that_is_not_utf8_is_an_error_of_its_getter() {
    let file = sample()
        .entry("raw", STRING, &string(b"\xff"))
        .entry("raws", ARRAY, &array(STRING, 2, &[string(b"a"), string(b"\xff")].concat()))
        .finish();
    let gguf = Gguf::parse(&file).unwrap();
    assert!(matches!(gguf.metadata().str("raw"), Err(GgufError::NotUtf8 { .. })));
    assert!(matches!(gguf.metadata().strings("raws"), Err(GgufError::NotUtf8 { .. })));
}

#[test]
fn row_47_small_files_with_huge_counts_are_refused() {
    let huge = [1u64 << 31, 1 << 32, 1 << 63, u64::MAX];
    for count in huge {
        for field in [8, 16] {
            let mut file = sample().finish();
            file.truncate(64);
            file[field..field + 8].copy_from_slice(&count.to_le_bytes());
            assert!(Gguf::parse(&file).is_err(), "field {field} = {count}");
        }
        for of in [U8, U32, F32, STRING, U64] {
            let file = Writer::default().entry("x", ARRAY, &array(of, count, &[])).finish();
            assert!(matches!(Gguf::parse(&file), Err(GgufError::Truncated { .. })), "{count}");
        }
        let file = Writer::default().entry("x", STRING, &count.to_le_bytes()).finish();
        assert!(matches!(Gguf::parse(&file), Err(GgufError::Truncated { .. })), "{count}");
    }
}

/// Parses, and if that works touches everything that can be asked for.
fn exercise(file: &[u8]) {
    let Ok(gguf) = Gguf::parse(file) else { return };
    let metadata = gguf.metadata();
    for entry in gguf.metadata_bytes_with_prefix("") {
        let key = entry.key;
        let _ = (metadata.str(key), metadata.u32(key), metadata.bool(key), metadata.f32s(key));
        if let Ok(strings) = metadata.strings(key) {
            let announced = strings.len();
            assert_eq!(strings.count(), announced);
        }
    }
    for tensor in gguf.tensors().flatten() {
        assert_eq!(gguf.tensor(tensor.name).unwrap().data.as_ptr(), tensor.data.as_ptr());
        assert!(tensor.data.len() <= file.len());
    }
}

#[test]
fn row_46_every_u64_in_turn_may_be_anything() {
    let file = sample().finish();
    for at in 0..file.len() - 8 {
        for value in [0, 1, 1 << 31, 1 << 32, 1 << 63, u64::MAX] {
            let mut file = file.clone();
            file[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
            exercise(&file);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn changed_and_cut_files_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut file = sample().finish();
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        exercise(&file);
    }

    #[test]
    fn arbitrary_bytes_after_a_header_never_panic(body in prop::collection::vec(any::<u8>(), 0..256)) {
        let file = [&b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0"[..], &body].concat();
        exercise(&file);
    }
}
