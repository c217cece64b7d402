//! Valid files, damaged at random from a fixed seed.

use std::path::Path;

use crate::memory::peak_rise;
use crate::specimen::{self, Specimen};

/// Damaged files of each format, unless `LLAMA_MESH_FUZZ_RUNS` says otherwise.
const RUNS: usize = 1_000;
/// Far above what any of these small files needs, far below what a length
/// taken at its word would.
const MEMORY: u64 = 64 << 20;
/// Numbers at which arithmetic goes wrong.
const EXTREMES: [u64; 9] =
    [0, 1, 0x7f, 0xffff_ffff, 1 << 31, 1 << 32, 1 << 62, i64::MAX as u64, u64::MAX];

#[test]
fn damaged_files_load_or_say_why() {
    #[expect(clippy::disallowed_methods, reason = "how long to try is the caller's choice")]
    let runs = std::env::var("LLAMA_MESH_FUZZ_RUNS");
    let runs = runs.map_or(RUNS, |runs| runs.parse().expect("LLAMA_MESH_FUZZ_RUNS is a number"));
    let mut loaded_in_all = 0;
    for specimen in specimen::all() {
        let (counts, rise) = peak_rise(|| fuzz(&specimen, runs));
        assert!(rise < MEMORY, "{}: resident memory rose by {rise} bytes", specimen.name);
        let [loaded, refused] = counts;
        assert!(refused > 0, "{}: the damage was none", specimen.name);
        loaded_in_all += loaded;
        println!("{}: {loaded} loaded, {refused} refused, +{rise} bytes", specimen.name);
    }
    assert!(loaded_in_all > 0, "the damage was total");
}

/// How many of `runs` damaged files loaded, and how many were refused.
fn fuzz(specimen: &Specimen, runs: usize) -> [usize; 2] {
    let whole = std::fs::read(&specimen.file).expect("the specimen is there");
    (specimen.exercise)(&specimen.model).expect("the specimen is valid");
    let mut random = Random(0x6c6c_616d_6120_3300);
    let mut counts = [0; 2];
    for run in 0..runs {
        let damaged = damage(&whole, &mut random);
        write(&specimen.file, &damaged);
        match (specimen.exercise)(&specimen.model) {
            Ok(()) => counts[0] += 1,
            Err(message) => {
                assert!(!message.is_empty(), "{} run {run}", specimen.name);
                counts[1] += 1;
            }
        }
    }
    write(&specimen.file, &whole);
    counts
}

/// In place: a new file for each of thousands would be slower.
fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("the specimen can be written");
}

/// One to four changes: a bit, a byte, an extreme number, a piece moved, removed
/// or doubled, an end cut off.
fn damage(whole: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    // Headers are where lengths and names are; payloads are mostly numbers.
    let reach = if random.below(4) == 0 { whole.len() } else { whole.len().min(4096) };
    for _ in 0..=random.below(3) {
        if bytes.len() < 16 {
            break;
        }
        let at = random.below(reach.min(bytes.len() - 8));
        match random.below(7) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => {
                let value = EXTREMES[random.below(EXTREMES.len())];
                let width = [1, 2, 4, 8][random.below(4)];
                bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            }
            3 => {
                let len = 1 + random.below(64.min(bytes.len() - at));
                bytes.drain(at..at + len);
            }
            4 => {
                let len = 1 + random.below(64.min(bytes.len() - at));
                let piece = bytes[at..at + len].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            5 => {
                let other = random.below(reach.min(bytes.len() - 8));
                let piece: [u8; 8] = bytes[other..other + 8].try_into().expect("eight bytes");
                bytes[at..at + 8].copy_from_slice(&piece);
            }
            _ => bytes.truncate(bytes.len() - random.below(bytes.len().min(256))),
        }
    }
    bytes
}

/// Steele, Lea and Flood's SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}
