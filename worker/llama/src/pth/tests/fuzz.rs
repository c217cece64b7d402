//! Good files with damage: none may panic, take long, or take much memory.

use std::os::unix::fs::FileExt as _;

use super::{cpu_time, golden, resident_bytes};
use crate::checkpoint::CheckpointError;
use crate::config::meta::{Params, Stored};
use crate::pth::archive::Entry;
use crate::pth::crafted;
use crate::pth::{PthFile, Value, pickle};

const NUM_MUTATIONS: usize = 20_000;
/// Of one file, on a processor: other tests may run beside.
const MAX_MILLISECONDS: u128 = 50;
/// Of all of them together, beside the files themselves.
const MAX_BYTES: u64 = 64 << 20;

/// Marsaglia's xorshift, from a fixed seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// One to four edits: bits, bytes, numbers at their limits, pieces cut,
    /// doubled or moved.
    fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(8) {
                0 => bytes.truncate(at),
                1 => {
                    let end = (at + self.below(16)).min(bytes.len());
                    bytes.drain(at..end);
                }
                2 => {
                    let piece = bytes[at..(at + self.below(64)).min(bytes.len())].to_vec();
                    let to = self.below(bytes.len() + 1);
                    bytes.splice(to..to, piece);
                }
                3 => bytes.insert(at.min(bytes.len()), self.next() as u8),
                4 | 5 => {
                    let width = [1, 2, 4, 8][self.below(4)];
                    let random = self.next();
                    let number = [0, 1, 1 << 31, 1 << 63, u64::MAX, random][self.below(6)];
                    let end = (at + width).min(bytes.len());
                    bytes[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
                }
                _ if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                _ => {}
            }
        }
    }
}

/// Damages each of `seeds` in turn and has `read` read it; tells how many were
/// read in spite of it.
fn check(seeds: &[Vec<u8>], mut read: impl FnMut(&[u8]) -> bool) -> usize {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let before = resident_bytes();
    let mut num_read = 0;
    for n in 0..NUM_MUTATIONS {
        let mut bytes = seeds[n % seeds.len()].clone();
        random.damage(&mut bytes);
        let start = cpu_time();
        num_read += usize::from(read(&bytes));
        let took = (cpu_time() - start).as_millis();
        assert!(took < MAX_MILLISECONDS, "mutation {n} took {took} ms");
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < MAX_BYTES, "{grown} bytes");
    num_read
}

/// The files that torch wrote.
fn torch_files() -> Vec<Vec<u8>> {
    let mut paths: Vec<_> = std::fs::read_dir(golden::directory())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension().is_some_and(|extension| extension == "pth" || extension == "refpt")
        })
        .collect();
    paths.sort();
    assert!(paths.len() >= 20);
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Reads whatever integers there are.
fn read_integers(file: &PthFile) {
    for tensor in file.tensors().values() {
        let _ = file.read_integers(tensor);
    }
}

/// A file that is written again and again. It is never cut to nothing before:
/// file systems take that for a replacement, and wait for the disk.
struct Specimen {
    directory: tempfile::TempDir,
    file: std::fs::File,
}

impl Specimen {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(directory.path().join("x.pth")).unwrap();
        Self { directory, file }
    }

    fn open(&self, bytes: &[u8]) -> Result<PthFile, CheckpointError> {
        self.file.write_all_at(bytes, 0).unwrap();
        self.file.set_len(bytes.len() as u64).unwrap();
        PthFile::open(&self.directory.path().join("x.pth"))
    }
}

#[test]
fn damaged_files_never_panic() {
    let specimen = Specimen::new();
    let num_read =
        check(&torch_files(), |bytes| specimen.open(bytes).inspect(read_integers).is_ok());
    // Damage to values is no damage to the file, so some are still read.
    assert!((1..NUM_MUTATIONS).contains(&num_read), "{num_read}");
}

#[test]
fn damaged_pickles_never_panic() {
    let mut seeds = Vec::new();
    for file in torch_files() {
        // The pickle is the first entry, up to its STOP.
        let Some(start) = file.windows(2).position(|window| window == b"\x80\x02") else {
            continue;
        };
        if file.starts_with(b"PK")
            && let Some(end) = file.windows(5).position(|window| window == b".PK\x07\x08")
        {
            seeds.push(file[start..=end].to_vec());
        }
    }
    assert!(seeds.len() >= 20, "{}", seeds.len());
    let keys: Vec<_> = (0..64).map(|n| n.to_string()).collect();
    let entry = Entry { offset: 0, num_bytes: 256 };
    let storages = keys.iter().map(|key| (key.as_str(), entry)).collect();
    let undamaged = seeds.iter().filter(|seed| pickle::read(seed, &storages).is_ok()).count();
    assert!(undamaged >= 20, "{undamaged}");
    let num_read = check(&seeds, |bytes| match pickle::read(bytes, &storages) {
        Ok(value) => !matches!(value, Value::None),
        Err(error) => error.to_string().is_empty(),
    });
    assert!((1..NUM_MUTATIONS).contains(&num_read), "{num_read}");
}

#[test]
fn damaged_params_never_panic() {
    let params = |extra: &str| {
        format!(
            r#"{{"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": -1,
                "multiple_of": 32, "ffn_dim_multiplier": 1.3, "norm_eps": 1e-5,
                "rope_theta": 500000.0, "use_scaled_rope": true{extra}}}"#
        )
        .into_bytes()
    };
    let older = r#", "vision_model": {"cross_attention_adapter": {"num_layers": 8}}"#;
    let wrapped = [b"{\"model\": ", &params("")[..], b"}"].concat();
    let seeds = [params(""), params(r#", "vision_chunk_size": 560"#), params(older), wrapped];
    let stored = Stored { embedding_rows: 64, tied: false };
    let num_read = check(&seeds, |bytes| {
        Params::parse(bytes).and_then(|params| params.config(stored)).is_ok()
    });
    assert!((1..NUM_MUTATIONS).contains(&num_read), "{num_read}");
}

#[test]
fn damaged_archives_of_zip64_never_panic() {
    let seeds = [crafted::zip64(&crafted::entries(b"\x80\x02}.".to_vec(), &[]))];
    let specimen = Specimen::new();
    specimen.open(&seeds[0]).unwrap();
    check(&seeds, |bytes| specimen.open(bytes).is_ok());
}
