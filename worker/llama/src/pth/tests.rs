//! Files of the real `torch.save`, and files that it never wrote.

mod fuzz;
mod golden;
mod hostile;
mod views;
mod zip_tricks;

use std::time::Duration;

use super::crafted::{self, Storage, View, ZipEntry};
use super::{PthError, PthFile};
use crate::checkpoint::CheckpointError;

/// What `bytes` as a file are refused for, quickly and without a trace.
fn refused(bytes: &[u8]) -> PthError {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.pth");
    std::fs::write(&path, bytes).unwrap();
    let start = cpu_time();
    let opened = PthFile::open(&path);
    let took = cpu_time() - start;
    assert!(took < Duration::from_millis(50), "{took:?}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "files appeared");
    match opened {
        Err(CheckpointError::Pth { source, .. }) => source,
        Err(other) => panic!("{other}"),
        Ok(file) => panic!("read {} tensors", file.tensors().len()),
    }
}

/// A good file: one tensor of four values.
fn one_tensor() -> (Vec<View>, Vec<Storage>) {
    let view =
        View { name: "a".into(), storage: 0, offset: 0, shape: vec![2, 2], strides: vec![2, 1] };
    let storage = Storage { class: "torch\nFloatStorage", numel: 4, bytes: vec![0; 16] };
    (vec![view], vec![storage])
}

fn good_entries() -> Vec<ZipEntry> {
    let (views, storages) = one_tensor();
    crafted::entries(crafted::pickle(&views, &storages), &storages)
}

/// Time that this thread has had on a processor, which does not grow while
/// other tests have it.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split_whitespace().next().unwrap().parse().unwrap())
}

/// Memory that this process has had in use at most.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}
