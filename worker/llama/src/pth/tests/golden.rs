//! Files of the real `torch.save` (`tests/golden/make_pth.py`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use crate::checkpoint::CheckpointError;
use crate::pth::{PthDtype, PthError, PthFile, PthTensor, Value};

#[derive(Deserialize)]
struct Expected {
    dtype: String,
    shape: Vec<u64>,
    values: Vec<f64>,
}

pub(super) fn directory() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/pth"))
}

fn open(name: &str) -> PthFile {
    PthFile::open(&directory().join(name)).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(name: &str) -> PthError {
    match PthFile::open(&directory().join(name)) {
        Err(CheckpointError::Pth { source, .. }) => source,
        other => panic!("{name}: {other:?}"),
    }
}

/// Values in row-major order, element by element.
fn values(file: &PthFile, tensor: &PthTensor) -> Vec<f64> {
    let mut positions = vec![tensor.offset];
    for (&size, &stride) in tensor.shape.iter().zip(&tensor.strides) {
        let step = stride * tensor.dtype.num_bytes();
        positions = positions.iter().flat_map(|at| (0..size).map(move |n| at + n * step)).collect();
    }
    let value = |at: u64| {
        let mut bytes = vec![0; tensor.dtype.num_bytes() as usize];
        file.read_at(at, &mut bytes).unwrap();
        match tensor.dtype {
            PthDtype::F64 => f64::from_le_bytes(bytes.try_into().unwrap()),
            PthDtype::F32 => f32::from_le_bytes(bytes.try_into().unwrap()).into(),
            PthDtype::F16 => half::f16::from_le_bytes(bytes.try_into().unwrap()).into(),
            PthDtype::Bf16 => half::bf16::from_le_bytes(bytes.try_into().unwrap()).into(),
            integer => integer.integer(&bytes).unwrap() as f64,
        }
    };
    positions.into_iter().map(value).collect()
}

/// Every tensor of a file, those in lists as `name.0`, `name.1`.
fn flat(file: &PthFile) -> BTreeMap<String, &PthTensor> {
    let Value::Dict(entries) = file.value() else { panic!("no dictionary") };
    let mut tensors = BTreeMap::new();
    for (name, value) in entries {
        match value {
            Value::Tensor(tensor) => {
                assert_eq!(&file.tensors()[name], tensor);
                tensors.insert(name.clone(), tensor);
            }
            Value::List(items) => tensors.extend(
                items
                    .iter()
                    .enumerate()
                    .map(|(n, item)| (format!("{name}.{n}"), item.as_tensor().unwrap())),
            ),
            other => panic!("{name}: {other:?}"),
        }
    }
    tensors
}

#[test]
fn every_file_of_torch_reads_as_torch_reads_it() {
    let json = std::fs::read(directory().join("expected.json")).unwrap();
    let expected: BTreeMap<String, BTreeMap<String, Expected>> =
        serde_json::from_slice(&json).unwrap();
    assert!(expected.len() >= 20, "{}", expected.len());
    for (name, expected) in expected {
        let file = open(&name);
        let tensors = flat(&file);
        assert!(tensors.keys().eq(expected.keys()), "{name}: {:?}", tensors.keys());
        for (key, expected) in expected {
            let tensor = tensors[&key];
            let dtype = match tensor.dtype {
                PthDtype::Bf16 => "torch.bfloat16",
                PthDtype::F16 => "torch.float16",
                PthDtype::F32 => "torch.float32",
                PthDtype::F64 => "torch.float64",
                PthDtype::I64 => "torch.int64",
                PthDtype::I32 => "torch.int32",
                PthDtype::I16 => "torch.int16",
                PthDtype::I8 => "torch.int8",
                PthDtype::U8 => "torch.uint8",
                PthDtype::Bool => "torch.bool",
            };
            assert_eq!(dtype, expected.dtype, "{name} {key}");
            assert_eq!(tensor.shape, expected.shape, "{name} {key}");
            assert_eq!(values(&file, tensor), expected.values, "{name} {key}");
            if tensor.dtype.integer(&[0; 8]).is_some() {
                let integers: Vec<_> = expected.values.iter().map(|&value| value as i64).collect();
                assert_eq!(file.read_integers(tensor).unwrap(), integers, "{name} {key}");
            } else {
                let error = file.read_integers(tensor).unwrap_err().to_string();
                assert!(error.contains("no integer"), "{error}");
            }
        }
    }
}

#[test]
fn shared_storages_are_seen_to_be_shared() {
    for name in ["tied.pth", "aliased.pth"] {
        let file = open(name);
        assert_eq!(file.tensors()["output.weight"], file.tensors()["tok_embeddings.weight"]);
    }
    let file = open("fused.pth");
    let [q, k, v] = ["wq", "wk", "wv"].map(|name| &file.tensors()[name]);
    assert_eq!((&q.storage, q.offset + 32), (&k.storage, k.offset));
    assert_eq!((&q.storage, k.offset + 16), (&v.storage, v.offset));
    assert!(q.is_contiguous() && !open("transposed.pth").tensors()["a"].is_contiguous());
}

#[test]
fn plain_values_are_read() {
    let file = open("plain.pth");
    assert!(file.tensors().is_empty());
    let text = Value::Str("x".to_owned());
    let list = Value::List(vec![Value::Int(1), Value::Bool(true), Value::None]);
    for (key, expected) in [
        ("name", text),
        ("n", Value::Int(-3)),
        ("big", Value::Int(1 << 40)),
        ("f", Value::Float(1.5)),
        ("t", list),
        ("l", Value::List(Vec::new())),
        ("d", Value::Dict(BTreeMap::new())),
    ] {
        assert_eq!(file.value().get(key), Some(&expected), "{key}");
    }
    assert_eq!(file.value().get("absent"), None);
    assert_eq!(Value::None.get("name"), None);
}

#[test]
fn other_formats_of_torch_are_refused_by_name() {
    let error = refused("legacy.pth");
    assert!(matches!(error, PthError::NotAnArchive(_)), "{error}");
    assert!(error.to_string().contains("a bare pickle as torch wrote before version 1.6"));
    let error = refused("protocol4.pth").to_string();
    assert!(error.contains("does not start as protocol 2"), "{error}");
    let PthError::Global { module, name } = refused("sparse.pth") else { panic!() };
    assert_eq!((&*module, &*name), ("torch._utils", "_rebuild_sparse_tensor"));
    let PthError::Global { module, name } = refused("object.pth") else { panic!() };
    assert_eq!((&*module, &*name), ("torch.nn.modules.linear", "Linear"));
}
