//! The most memory that something took.

use std::sync::{Mutex, PoisonError};

/// Runs `f`, and returns with its result by how many bytes the process's
/// resident memory rose above what it was, at its highest.
///
/// # Panics
/// Where /proc cannot be read or reset: the bound would go unchecked.
pub(crate) fn peak_rise<R>(f: impl FnOnce() -> R) -> (R, u64) {
    // The mark is the whole process's, and tests may be threads of one.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // 5 resets the high-water mark to the present size (proc(5)).
    std::fs::write("/proc/self/clear_refs", "5").expect("the mark can be reset");
    let before = resident("VmRSS:");
    let result = f();
    (result, resident("VmHWM:").saturating_sub(before))
}

fn resident(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("a size");
    let kib = line.trim().strip_suffix(" kB").expect("in kB");
    kib.parse::<u64>().expect("a number") * 1024
}

#[test]
fn a_rise_is_seen() {
    let (sum, rise) = peak_rise(|| vec![1_u8; 32 << 20].iter().map(|&x| u64::from(x)).sum::<u64>());
    assert_eq!(sum, 32 << 20);
    // The kernel counts pages in batches, a processor at a time.
    assert!((30 << 20..40 << 20).contains(&rise), "{rise}");
}
