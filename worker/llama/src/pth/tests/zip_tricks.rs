//! Archives that were made to do harm, or are no archives.

use super::*;

#[test]
fn the_good_file_is_good() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.pth");
    std::fs::write(&path, crafted::zip(&good_entries())).unwrap();
    assert_eq!(PthFile::open(&path).unwrap().tensors()["a"].shape, [2, 2]);
}

/// The position of a record's nth signature.
fn find(bytes: &[u8], signature: &[u8; 4], nth: usize) -> usize {
    bytes.windows(4).enumerate().filter(|(_, window)| window == signature).nth(nth).unwrap().0
}

const LOCAL: &[u8; 4] = b"PK\x03\x04";
const CENTRAL: &[u8; 4] = b"PK\x01\x02";
const END: &[u8; 4] = b"PK\x05\x06";

/// What it is, the file, and what is said of it.
type Trick = (&'static str, Vec<u8>, &'static str);

/// The good file with bytes of its nth record of a kind replaced.
fn patched(signature: &[u8; 4], nth: usize, at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = crafted::zip(&good_entries());
    let at = find(&bytes, signature, nth) + at;
    bytes[at..at + value.len()].copy_from_slice(value);
    bytes
}

fn renamed(nth: usize, name: &str) -> Vec<u8> {
    let mut entries = good_entries();
    entries[nth].name = name.to_owned();
    crafted::zip(&entries)
}

fn tricks() -> Vec<Trick> {
    let good = crafted::zip(&good_entries());
    let mut twice = good_entries();
    twice.push(twice[1].clone());
    // Another archive before this one, whose offsets still fit.
    let mut two_directories = good.clone();
    two_directories.extend(&good[find(&good, CENTRAL, 0)..]);
    let comment = [&good[..good.len() - 2], b"\x04\0PK\x05\x06"].concat();
    let first = find(&good, LOCAL, 0) as u32;
    vec![
        ("1 compressed entry", patched(CENTRAL, 1, 10, &[8, 0]), "is compressed"),
        ("2 bomb: size beyond what is stored", patched(CENTRAL, 1, 24, &[0xff; 3]), "are stored"),
        (
            "3 overlap: two entries, one place",
            patched(CENTRAL, 1, 42, &first.to_le_bytes()),
            "does not agree",
        ),
        (
            "4 a name that leaves the directory",
            renamed(1, "top/data/../../etc/passwd"),
            "no entry that",
        ),
        ("5 an absolute name", renamed(1, "/etc/passwd"), "no entry that"),
        ("6 a name twice", crafted::zip(&twice), "comes twice"),
        ("7 local name unlike the central one", patched(LOCAL, 1, 30, b"t0p"), "does not agree"),
        (
            "8 local size unlike the central one",
            patched(LOCAL, 1, 22, &[1, 0, 0, 0]),
            "does not agree",
        ),
        ("9 two central directories", two_directories, "right before its end record"),
        ("10 an end record in a comment", comment, "does not end with an end record"),
        ("11 data that reach into the directory", reaching(&good), "reaches into"),
        ("12 more entries than there are", patched(END, 0, 8, &[9, 0, 9, 0]), "more entries than"),
    ]
}

fn more_tricks() -> Vec<Trick> {
    let good = crafted::zip(&good_entries());
    vec![
        ("13 encrypted", patched(CENTRAL, 0, 8, &[1, 0]), "is encrypted"),
        ("14 several volumes", patched(END, 0, 4, &[1, 0]), "several volumes"),
        ("15 two top directories", renamed(1, "pot/data/0"), "another top directory"),
        ("16 a TorchScript archive", renamed(1, "top/code/x.py"), "no entry that"),
        ("17 zip64 without its record", patched(END, 0, 16, &[0xff; 4]), "zip64 record is missing"),
        (
            "18 zip64 without its field",
            patched(CENTRAL, 1, 20, &[0xff; 8]),
            "zip64 field of top/data/0",
        ),
        ("19 no pickle", renamed(0, "top/data/7"), "data.pkl is missing"),
        ("20 big-endian", big_endian(), "byteorder is \"big\""),
        (
            "21 a local header beyond the file",
            patched(CENTRAL, 1, 42, &[0xfe, 0xff, 0xff, 0xff]),
            "reaches into",
        ),
        ("22 overlap in part", overlapping(), "overlap"),
        ("23 cut short", good[..good.len() - 1].to_vec(), "does not end with an end record"),
        ("24 bytes after the end", [&good[..], b"x"].concat(), "does not end with an end record"),
    ]
}

#[test]
fn row_44_zip_tricks_are_refused() {
    for (name, bytes, message) in tricks().into_iter().chain(more_tricks()) {
        let before = resident_bytes();
        let error = refused(&bytes).to_string();
        assert!(error.contains(message), "{name}: {error}");
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown <= 4 << 20, "{name}: {grown} bytes");
    }
}

/// One storage whose size, in both headers, is that of the rest of the file.
fn reaching(good: &[u8]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    let size = (good.len() as u32).to_le_bytes();
    for (signature, at) in [(b"PK\x03\x04", 18), (b"PK\x01\x02", 20)] {
        let at = find(good, signature, 1) + at;
        bytes[at..at + 8].copy_from_slice(&[size, size].concat());
    }
    bytes
}

fn big_endian() -> Vec<u8> {
    let mut entries = good_entries();
    entries.push(ZipEntry { name: "top/byteorder".into(), bytes: b"big".to_vec() });
    crafted::zip(&entries)
}

/// A storage that holds the local header and the data of another one.
fn overlapping() -> Vec<u8> {
    let mut entries = good_entries();
    entries.pop();
    entries.push(ZipEntry { name: "top/data/1".into(), bytes: vec![0; 256] });
    let mut bytes = crafted::zip(&entries);
    let (first, second) = (find(&bytes, b"PK\x03\x04", 1), find(&bytes, b"PK\x03\x04", 2));
    let size = (second - first) as u32;
    let size = size.to_le_bytes();
    for (at, offset) in [(first, 18), (find(&bytes, b"PK\x01\x02", 1), 20)] {
        bytes[at + offset..at + offset + 8].copy_from_slice(&[size, size].concat());
    }
    bytes
}

#[test]
fn entries_and_directories_are_counted_before_they_are_kept() {
    let entry = |n: usize| ZipEntry { name: format!("t/data/{n}"), bytes: Vec::new() };
    let many: Vec<_> = (0..20_000).map(entry).collect();
    let error = refused(&crafted::zip(&many));
    assert_eq!(error, PthError::Limit { what: "zip entries", max: 1 << 14 });
    let long = |n: usize| ZipEntry { name: format!("{}/data/{n}", "t".repeat(400)), bytes: vec![] };
    let error = refused(&crafted::zip(&(0..8000).map(long).collect::<Vec<_>>()));
    assert_eq!(error, PthError::Limit { what: "bytes of zip directory", max: 2 << 20 });
}

#[test]
fn a_file_of_another_kind_is_named() {
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    for (bytes, message) in [
        (vec![], "is empty"),
        (tar, "a tar file"),
        (b"\x80\x02\x8a\x0al\xfc\x9c".to_vec(), "a bare pickle"),
        (b"GGUF....".to_vec(), "no zip archive"),
    ] {
        let error = refused(&bytes);
        assert!(matches!(error, PthError::NotAnArchive(_)), "{error}");
        assert!(error.to_string().contains(message), "{error}");
    }
    let error = refused(b"PK\x03\x04");
    assert!(error.to_string().contains("there is no end record"), "{error}");
}
