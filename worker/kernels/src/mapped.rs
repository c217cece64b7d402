//! A file as memory: weights that an earlier start has packed.
//!
//! A mapping costs no copy and no memory of its own: its pages are the
//! operating system's copy of the file, and all processes that map it share
//! them. Measured on 1.5 GB that the system had cached: 0.1 s to map and check
//! it, 1.4 s to read it into fresh memory.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use memmap2::Mmap;

use crate::aligned::{AlignedBuffer, LINE};

/// A whole file, mapped read-only.
///
/// The file must stay as it is: to replace it, rename another over it. Who
/// shortens it in place ends the process (SIGBUS) at the next access to what
/// is gone; who writes to it in place changes the weights.
pub struct MappedFile(Mmap);

impl MappedFile {
    /// Maps all of `file`, which may be closed afterwards.
    ///
    /// # Errors
    /// What the system says, for instance on a file that cannot be mapped.
    pub fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the mapping is private and read-only, and lives as long as
        // this value. Whoever shortens the file stops the process by SIGBUS,
        // which is no undefined behaviour. Whoever writes to it changes numbers
        // that are multiplied: no length, index or branch of a kernel depends
        // on them.
        unsafe { Mmap::map(file) }.map(Self)
    }

    /// What the file holds.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for MappedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedFile").field("num_bytes", &self.0.len()).finish()
    }
}

/// Memory of packed weights, 64-byte aligned.
#[derive(Debug)]
pub(crate) enum WeightBytes {
    /// Packed by this process.
    Owned(AlignedBuffer),
    /// Packed before.
    Mapped(MappedBytes),
}

/// Part of a mapped file.
#[derive(Debug)]
pub(crate) struct MappedBytes {
    file: Arc<MappedFile>,
    range: Range<usize>,
}

impl MappedBytes {
    /// `None` when the range is not inside the file, or not on a multiple of 64.
    pub(crate) fn new(file: Arc<MappedFile>, range: Range<usize>) -> Option<Self> {
        let start = file.bytes().get(range.clone())?.as_ptr();
        start.addr().is_multiple_of(LINE).then_some(Self { file, range })
    }
}

impl WeightBytes {
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Owned(buffer) => buffer.as_slice(),
            Self::Mapped(MappedBytes { file, range }) => &file.bytes()[range.clone()],
        }
    }

    pub(crate) fn as_ptr(&self) -> *const u8 {
        match self {
            Self::Owned(buffer) => buffer.as_ptr(),
            // In bounds: checked in `MappedBytes::new`.
            Self::Mapped(MappedBytes { file, range }) => {
                file.bytes().as_ptr().wrapping_add(range.start)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "Miri maps no files")]
    fn parts_lie_in_the_file_and_on_lines() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 1000]).unwrap();
        let mapped = Arc::new(MappedFile::new(&file).unwrap());
        drop(file);
        assert_eq!(mapped.bytes(), [7; 1000]);
        let part = |range| MappedBytes::new(Arc::clone(&mapped), range);
        for range in [1..10, 32..64, 960..1001, 2000..2001, 64..usize::MAX] {
            assert!(part(range.clone()).is_none(), "{range:?}");
        }
        let bytes = WeightBytes::Mapped(part(64..1000).unwrap());
        assert_eq!(bytes.as_slice(), [7; 936]);
        assert_eq!(bytes.as_ptr(), bytes.as_slice().as_ptr());
    }
}
