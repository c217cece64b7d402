//! File length, module documentation, crate arrows, banned names.

use std::path::{Path, PathBuf};

const MAX_LINES: usize = 500;
const BANNED_NAMES: [&str; 5] = ["utils", "util", "helpers", "misc", "manager"];
/// `common` is a closed list: both services use each of these today.
const COMMON: [&str; 6] =
    ["lib.rs", "config.rs", "ids.rs", "model.rs", "shutdown.rs", "telemetry.rs"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lies in the root").to_owned()
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("readable").flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            let skip = ["target", ".git", ".venv"];
            if !skip.iter().any(|skip| name == *skip) {
                rust_files(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    rust_files(&root(), &mut files);
    assert!(files.len() > 50, "the tree was found");
    files
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("readable");
            (path.strip_prefix(root()).expect("below the root").to_owned(), text)
        })
        .collect()
}

#[test]
fn files_are_short_and_say_what_they_are() {
    let mut complaints = Vec::new();
    for (path, text) in sources() {
        let lines = text.lines().count();
        if lines > MAX_LINES {
            complaints.push(format!("{} has {lines} lines, at most {MAX_LINES}", path.display()));
        }
        if !text.starts_with("//!") {
            complaints.push(format!("{} does not open with //!", path.display()));
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn no_file_is_named_for_nothing() {
    for (path, _) in sources() {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("plain names");
        assert!(!BANNED_NAMES.contains(&stem), "{}", path.display());
        assert_ne!(stem, "mod", "{}", path.display());
    }
}

#[test]
fn common_is_a_closed_list() {
    for (path, _) in sources() {
        if let Ok(rest) = path.strip_prefix("common/src")
            && rest.components().count() == 1
        {
            let name = rest.to_str().expect("plain names");
            assert!(
                COMMON.contains(&name),
                "common/src/{name} needs a decision in ARCHITECTURE.md"
            );
        }
    }
}

#[test]
fn unsafe_code_lives_in_the_kernels() {
    for (path, text) in sources() {
        let is_root = path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
        if !is_root || path.starts_with("worker/kernels") || path.starts_with("proto") {
            continue;
        }
        // One module of each of these has a reason.
        let reasoned = ["worker/llama", "worker/mesh-ttnn"];
        let guard = if reasoned.iter().any(|krate| path.starts_with(krate)) {
            "deny(unsafe_code)"
        } else {
            "forbid(unsafe_code)"
        };
        assert!(text.contains(guard), "{} lacks #![{guard}]", path.display());
    }
}

/// Crates of ours that a crate may name under `[dependencies]`.
const ARROWS: [(&str, &[&str]); 10] = [
    ("proto", &[]),
    ("common", &["gguf"]),
    ("common/gguf", &[]),
    ("gateway", &["common", "gguf", "proto"]),
    ("worker", &["common", "gguf", "llama", "mesh", "mesh-cpu", "mesh-ttnn", "kernels", "proto"]),
    ("worker/mesh", &[]),
    ("worker/mesh-cpu", &["kernels", "mesh"]),
    ("worker/mesh-ttnn", &["kernels", "mesh"]),
    ("worker/kernels", &[]),
    ("worker/llama", &["gguf", "mesh"]),
];

#[test]
fn the_arrows_between_crates_are_the_architecture() {
    let ours = [
        "proto",
        "common",
        "gguf",
        "gateway",
        "worker",
        "llama",
        "mesh",
        "mesh-cpu",
        "mesh-ttnn",
        "kernels",
    ];
    for (krate, allowed) in ARROWS {
        let manifest =
            std::fs::read_to_string(root().join(krate).join("Cargo.toml")).expect("a crate");
        let dependencies = manifest.split("[dependencies]").nth(1).expect("a section");
        let dependencies = dependencies.split("\n[").next().expect("its own lines");
        for line in dependencies.lines() {
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            if ours.contains(&name) {
                assert!(allowed.contains(&name), "{krate} must not depend on {name}");
            }
        }
    }
}
