//! Model files that are not what they claim: a typed error, exit 1, no panic,
//! and no memory for what is not there.

use std::path::Path;
use std::process::Command;

use integration_tests::sandbox::executable;

/// Both read the model: the worker all of it, the gateway its head.
const BOTH: &[&str] = &["worker", "gateway"];

/// Starts `services` on `path`; each must refuse it.
fn refuse(path: &Path, services: &[&str]) {
    for &service in services {
        let listen: &[&str] = match service {
            "worker" => &["--listen", "127.0.0.1:0"],
            _ => &["--http", "127.0.0.1:0"],
        };
        let output = Command::new("sh")
            // 2 GB of address space: a large allocation would abort.
            .args(["-c", "ulimit -v 2000000; exec \"$@\"", "sh"])
            .arg(executable())
            .arg(service)
            .args(listen)
            .arg("--model")
            .arg(path)
            .output()
            .expect("the executable starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{service} on {}: {error}", path.display());
        assert!(!error.contains("panicked"), "{service} on {}: {error}", path.display());
        assert!(error.contains(&*path.to_string_lossy()), "the file is named: {error}");
    }
}

fn gguf_head(tensors: u64, keys: u64) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(keys.to_le_bytes());
    bytes
}

#[test]
fn malformed_gguf_files_are_refused() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let packaged = std::fs::read(integration_tests::packaged_model()).expect("readable");
    let mut long_string = gguf_head(0, 1);
    long_string.extend(u64::MAX.to_le_bytes());
    let mut long_array = gguf_head(0, 1);
    long_array.extend(1_u64.to_le_bytes());
    long_array.extend(b"k");
    long_array.extend(9_u32.to_le_bytes());
    long_array.extend(4_u32.to_le_bytes());
    long_array.extend((1_u64 << 60).to_le_bytes());
    let cases: [(&str, Vec<u8>); 8] = [
        ("empty", Vec::new()),
        ("magic", b"not a model at all".to_vec()),
        ("tensors", gguf_head(u64::MAX, 0)),
        ("keys", gguf_head(0, 1 << 40)),
        ("string", long_string),
        ("array", long_array),
        ("half-header", packaged[..1_000_000].to_vec()),
        ("half-weights", packaged[..packaged.len() / 2].to_vec()),
    ];
    for (name, bytes) in cases {
        let path = scratch.path().join(format!("{name}.gguf"));
        std::fs::write(&path, bytes).expect("writable");
        // The gateway needs no weights.
        refuse(&path, if name == "half-weights" { &BOTH[..1] } else { BOTH });
    }
}

#[test]
fn malformed_hugging_face_directories_are_refused() {
    let config = r#"{"model_type":"llama","architectures":["LlamaForCausalLM"],"hidden_size":64,
        "intermediate_size":128,"num_hidden_layers":1,"num_attention_heads":2,
        "num_key_value_heads":2,"vocab_size":256,"rms_norm_eps":1e-5,"rope_theta":10000.0,
        "max_position_embeddings":128}"#;
    let header = |length: u64, text: &str| {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes
    };
    let outside =
        r#"{"model.norm.weight":{"dtype":"F32","shape":[64],"data_offsets":[0,99999999]}}"#;
    let mismatch = r#"{"model.norm.weight":{"dtype":"F32","shape":[64],"data_offsets":[0,8]}}"#;
    let cases = [
        (config, header(u64::MAX, "")),
        (config, header(1 << 40, "{}")),
        (config, header(2, "[]")),
        (config, header(outside.len() as u64, outside)),
        (config, header(mismatch.len() as u64, mismatch)),
        (config, Vec::new()),
        ("{}", header(2, "{}")),
        ("[", header(2, "{}")),
    ];
    for (config, safetensors) in cases {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        std::fs::write(scratch.path().join("config.json"), config).expect("writable");
        std::fs::write(scratch.path().join("model.safetensors"), safetensors).expect("writable");
        std::fs::write(scratch.path().join("tokenizer.json"), "{}").expect("writable");
        refuse(scratch.path(), BOTH);
    }
}
