//! What a Hugging Face directory from elsewhere may contain.

use serde_json::json;

use super::*;
use crate::tiny::{self, TinyModel};

/// A safetensors file of this header and so many bytes of data.
fn file(header: &str, data_bytes: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data_bytes, 0);
    bytes
}

fn error_of(bytes: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let mut store = TensorStore::default();
    add_file(&mut store, &path).unwrap_err().to_string()
}

#[test]
fn row_49_malformed_files_are_refused_with_a_reason() {
    let prefix = |length: u64| length.to_le_bytes().to_vec();
    let f32s = |shape: &str, from: u64, to: u64| {
        format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}}}"#)
    };
    let entry = r#""a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let gap = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
                  "b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}"#;
    let overlap = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                      "b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    let cases = [
        (vec![], "shorter than the 8 bytes"),
        (prefix(1)[..7].to_vec(), "shorter than the 8 bytes"),
        (prefix(u64::MAX), "at most 0 are possible"),
        (prefix(1 << 31), "at most 0 are possible"),
        (file("{}", 0)[..9].to_vec(), "header is 2 bytes, at most 1"),
        (file("", 0), "EOF"),
        (file("[]", 0), "expected a safetensors header"),
        (file("{\"a\":", 0), "EOF"),
        (file("{\"a\":1}", 0), "invalid type"),
        (file(&f32s("[1]", 0, 4), 3), "not fully covered"),
        (file(&f32s("[1]", 0, 4), 5), "not fully covered"),
        (file(&f32s("[2]", 0, 4), 4), "invalid shape, data type, or offset"),
        (file(&f32s("[1]", 4, 0), 4), "invalid offset"),
        (file(&f32s("[4294967296,4294967296,2]", 0, 4), 4), "overflow"),
        (file(&f32s("[-1]", 0, 4), 4), "invalid value"),
        (file(&f32s("[1]", 0, 4).replace("F32", "F33"), 4), "unknown variant"),
        (file(&f32s("[1]", 0, 8).replace("F32", "F64"), 8), "tensor a has type F64"),
        (file(gap, 12), "invalid offset"),
        (file(overlap, 12), "invalid offset"),
        (file(&format!("{{{entry},{entry}}}"), 4), "a comes twice"),
    ];
    for (bytes, message) in cases {
        let error = error_of(&bytes);
        assert!(error.to_lowercase().contains(&message.to_lowercase()), "{message}: {error}");
    }
}

#[test]
fn row_49_huge_headers_are_refused_before_they_are_parsed() {
    let header = format!("{{{}}}", " ".repeat(MAX_HEADER_BYTES as usize));
    let error = error_of(&file(&header, 0));
    assert!(error.contains("header is 16777218 bytes, at most 16777216"), "{error}");

    let entries: Vec<_> = (0..=MAX_TENSORS)
        .map(|n| format!(r#""{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#))
        .collect();
    let error = error_of(&file(&format!("{{{}}}", entries.join(",")), 0));
    assert!(error.contains("more than 65536 entries"), "{error}");
}

/// The sharded tiny model with its index edited.
fn error_with_index(edit: impl Fn(&mut serde_json::Value)) -> String {
    let directory = tempfile::tempdir().unwrap();
    TinyModel::new(tiny::config(), 1).write_sharded(directory.path(), 2).unwrap();
    let path = directory.path().join(INDEX);
    let mut index = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut index);
    std::fs::write(&path, index.to_string()).unwrap();
    open(directory.path()).unwrap_err().to_string()
}

#[test]
fn an_index_names_plain_files_that_hold_what_it_says() {
    const NORM: &str = "model.norm.weight";
    for name in ["/etc/passwd", "../x.safetensors", "a/b.safetensors", "..", "code.py", ""] {
        let error = error_with_index(|index| index["weight_map"][NORM] = json!(name));
        assert!(error.contains(&format!("names the file {name:?}")), "{error}");
    }
    let error = error_with_index(|index| index["weight_map"]["ghost"] = json!("x.safetensors"));
    assert!(error.contains("x.safetensors: No such file"), "{error}");
    let first = "model-00001-of-00002.safetensors";
    let error = error_with_index(|index| index["weight_map"]["ghost"] = json!(first));
    assert!(error.contains("says that ghost is in model-00001-of-00002"), "{error}");
    let error = error_with_index(|index| index["weight_map"] = json!([]));
    assert!(error.contains("invalid type"), "{error}");
    let error = error_with_index(|index| {
        for n in 0..=MAX_SHARDS {
            index["weight_map"][n.to_string()] = json!(format!("{n}.safetensors"));
        }
    });
    assert!(error.contains("names 1027 files, at most 1024"), "{error}");
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    TinyModel::new(tiny::config(), 1).write_sharded(directory.path(), 2).unwrap();
    let shard = |n| directory.path().join(format!("model-0000{n}-of-00002.safetensors"));
    std::fs::copy(shard(1), shard(2)).unwrap();
    let error = open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("is also in"), "{error}");
}
