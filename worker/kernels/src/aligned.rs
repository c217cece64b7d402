//! Zeroed memory aligned for vector loads and huge pages.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ptr::NonNull;

/// A cache line, and the widest vector register.
pub(crate) const LINE: usize = 64;
/// A transparent huge page on x86-64 and on AArch64 with 4 KiB pages: buffers
/// at least this large start on one, so that weights cost few TLB entries.
const HUGE_PAGE: usize = 2 << 20;

/// The product of sizes. `unsafe` code trusts lengths that were compared with
/// it, so that it must not wrap in any build.
///
/// # Panics
/// If it does not fit.
pub(crate) fn size_of_shape<const N: usize>(sizes: [usize; N]) -> usize {
    sizes
        .into_iter()
        .try_fold(1, usize::checked_mul)
        .unwrap_or_else(|| panic!("{sizes:?} is larger than the address space"))
}

/// A fixed number of bytes, zeroed at first, 64-byte aligned.
pub(crate) struct AlignedBuffer {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the buffer owns its memory and hands it out by the usual borrow rules.
unsafe impl Send for AlignedBuffer {}
// SAFETY: as above; shared access is read-only.
unsafe impl Sync for AlignedBuffer {}

impl AlignedBuffer {
    pub(crate) fn zeroed(num_bytes: usize) -> Self {
        let align = if num_bytes >= HUGE_PAGE { HUGE_PAGE } else { LINE };
        // One line at least: a zero-sized allocation is not allowed.
        let layout = Layout::from_size_align(num_bytes.max(LINE), align)
            .expect("a buffer is smaller than half the address space");
        // SAFETY: the layout is not zero-sized.
        let Some(start) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            handle_alloc_error(layout)
        };
        Self { start, layout }
    }

    pub(crate) fn num_bytes(&self) -> usize {
        self.layout.size()
    }

    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: `start` owns `layout.size()` initialised bytes.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }

    pub(crate) fn as_f32_mut(&mut self) -> &mut [f32] {
        let len = self.layout.size() / size_of::<f32>();
        // SAFETY: 64-byte alignment suffices for f32 and every bit pattern is one.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast::<f32>(), len) }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

impl fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuffer").field("num_bytes", &self.num_bytes()).finish()
    }
}

/// Calls `f` with this thread's scratch of at least `len` f32, 64-byte
/// aligned, contents unspecified. It grows at first use and is kept.
pub(crate) fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    use std::cell::RefCell;
    thread_local! {
        static SCRATCH: RefCell<Option<AlignedBuffer>> = const { RefCell::new(None) };
    }
    SCRATCH.with_borrow_mut(|scratch| {
        let num_bytes = len * size_of::<f32>();
        if scratch.as_ref().is_none_or(|buffer| buffer.num_bytes() < num_bytes) {
            *scratch = Some(AlignedBuffer::zeroed(num_bytes.next_power_of_two()));
        }
        let buffer = scratch.as_mut().expect("allocated above");
        f(&mut buffer.as_f32_mut()[..len])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_zeroed() {
        for num_bytes in [0, 1, 64, 1000, HUGE_PAGE + 5] {
            let buffer = AlignedBuffer::zeroed(num_bytes);
            assert_eq!(buffer.as_ptr().addr() % LINE, 0);
            assert!(buffer.num_bytes() >= num_bytes);
            assert!(buffer.as_slice().iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    #[should_panic(expected = "larger than the address space")]
    fn a_size_that_wraps_is_refused() {
        let _ = size_of_shape([1 << 40, 1 << 20, 16]);
    }

    #[test]
    fn scratch_grows_and_is_kept() {
        with_scratch(4, |scratch| scratch.fill(7.0));
        with_scratch(4, |scratch| assert_eq!(scratch, [7.0; 4]));
        with_scratch(100_000, |scratch| assert_eq!(scratch.len(), 100_000));
    }
}
