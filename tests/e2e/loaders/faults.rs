//! One crafted file for each fault, through the same door as a user's.

use std::fs;
use std::path::Path;

use llama::Checkpoint;
use llama::tiny::TinyModel;

use crate::memory::peak_rise;
use crate::specimen;

/// Lengths that must never be taken at their word.
const HUGE: [u64; 4] = [1 << 31, 1 << 32, 1 << 63, u64::MAX];
/// What opening a small file may take at most.
const MEMORY: u64 = 4 << 20;

fn refusal(path: &Path) -> String {
    Checkpoint::open(path).expect_err("must be refused").to_string()
}

#[test]
fn row_46_gguf_lengths_are_checked_before_anything_is_allocated() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.gguf");
    TinyModel::new(specimen::config(), 1).write_gguf(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    // Tensor and entry counts, and the first key's length.
    for field in [8, 16, 24] {
        for length in HUGE {
            let mut file = whole.clone();
            file[field..field + 8].copy_from_slice(&length.to_le_bytes());
            fs::write(&path, file).unwrap();
            let (message, rise) = peak_rise(|| refusal(&path));
            assert!(rise < MEMORY, "{length} at byte {field}: {rise} bytes, {message}");
        }
    }
}

#[test]
fn row_47_a_file_of_64_bytes_takes_no_memory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("small.gguf");
    for at in (8..56).step_by(8) {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.resize(64, 0);
        file[at..at + 8].copy_from_slice(&(1_u64 << 32).to_le_bytes());
        fs::write(&path, file).unwrap();
        let (message, rise) = peak_rise(|| refusal(&path));
        assert!(rise < MEMORY, "2^32 at byte {at}: {rise} bytes, {message}");
    }
}

#[test]
fn row_48_a_value_of_another_type_names_both() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.gguf");
    TinyModel::new(specimen::config(), 1).write_gguf(&path).unwrap();
    let mut file = fs::read(&path).unwrap();
    let key = b"llama.embedding_length";
    let at = file.windows(key.len()).position(|window| window == key).unwrap() + key.len();
    // A u32 that is said to be an f32.
    file[at] = 6;
    fs::write(&path, file).unwrap();
    let message = refusal(&path);
    assert!(message.contains("llama.embedding_length is"), "{message}");
    assert!(message.contains("must be"), "{message}");
}

#[test]
fn row_49_a_safetensors_header_beyond_its_file_takes_no_memory() {
    let directory = tempfile::tempdir().unwrap();
    TinyModel::new(specimen::config(), 1).write_hugging_face(directory.path()).unwrap();
    let path = directory.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in HUGE {
        let mut file = whole.clone();
        file[..8].copy_from_slice(&length.to_le_bytes());
        fs::write(&path, file).unwrap();
        let (message, rise) = peak_rise(|| refusal(directory.path()));
        assert!(rise < MEMORY, "{length}: {rise} bytes");
        assert!(message.contains("model.safetensors"), "{message}");
    }
}

#[test]
fn row_50_a_file_that_is_cut_after_it_was_opened_is_an_error() {
    for specimen in specimen::all() {
        let extension = specimen.file.extension().and_then(|extension| extension.to_str());
        if !matches!(extension, Some("gguf" | "safetensors" | "pth")) {
            continue;
        }
        let checkpoint = Checkpoint::open(&specimen.model).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&specimen.file).unwrap();
        file.set_len(100).unwrap();
        let error = checkpoint.verify_unchanged().expect_err(specimen.name).to_string();
        assert!(error.contains("changed while it was being read"), "{}: {error}", specimen.name);
    }
}

#[test]
fn row_51_what_else_lies_in_a_directory_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    TinyModel::new(specimen::config(), 1).write_hugging_face(directory.path()).unwrap();
    let marker = directory.path().join("ran");
    let code = format!("open({:?}, 'w')", marker.display());
    fs::write(directory.path().join("modeling_llama.py"), code).unwrap();
    fs::write(directory.path().join("kernel.so"), b"\x7fELF").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", directory.path().join("extra.json")).unwrap();
    let config = directory.path().join("config.json");
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    let mut with_code = json.clone();
    with_code["auto_map"] = serde_json::json!({ "AutoModel": "modeling_llama.Model" });
    fs::write(&config, with_code.to_string()).unwrap();
    Checkpoint::open(directory.path()).unwrap();
    assert!(!marker.exists());
    let mut foreign = json;
    foreign["architectures"] = serde_json::json!(["TrustMeForCausalLM"]);
    fs::write(&config, foreign.to_string()).unwrap();
    assert!(refusal(directory.path()).contains("TrustMeForCausalLM"));
}
