//! A cursor over untrusted bytes: it advances only over what is there.

use crate::GgufError;

/// The longest key or tensor name, in bytes (the format's own limit for keys).
const MAX_NAME_BYTES: u64 = 65_535;

#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// A reader that starts at `at`, or at the end if `at` is beyond it.
    pub(crate) fn starting_at(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at: at.min(bytes.len()) }
    }

    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// `count` items of at least `min_bytes` each are still to come; the count
    /// is then small enough to reserve for.
    pub(crate) fn count(
        &self,
        count: u64,
        min_bytes: usize,
        what: &'static str,
    ) -> Result<usize, GgufError> {
        let needed = u128::from(count) * min_bytes as u128;
        match usize::try_from(count) {
            Ok(count) if needed <= self.remaining() as u128 => Ok(count),
            _ => Err(self.truncated(needed, what)),
        }
    }

    pub(crate) fn take(&mut self, len: u64, what: &'static str) -> Result<&'a [u8], GgufError> {
        let len = self.count(len, 1, what)?;
        let taken = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], GgufError> {
        match self.bytes[self.at..].first_chunk::<N>() {
            Some(chunk) => {
                self.at += N;
                Ok(*chunk)
            }
            None => Err(self.truncated(N as u128, what)),
        }
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A string: its length, then its bytes, whatever they are.
    pub(crate) fn string(&mut self, what: &'static str) -> Result<&'a [u8], GgufError> {
        let len = self.u64(what)?;
        self.take(len, what)
    }

    /// A string that names something: UTF-8, not empty, and of bounded length.
    pub(crate) fn name(&mut self, what: &'static str) -> Result<&'a str, GgufError> {
        let at = self.at;
        let len = self.u64(what)?;
        if len > MAX_NAME_BYTES {
            return Err(GgufError::TooLong { what, at, found: len, limit: MAX_NAME_BYTES });
        }
        let bytes = self.take(len, what)?;
        if bytes.is_empty() {
            return Err(GgufError::Empty { what, at });
        }
        std::str::from_utf8(bytes).map_err(|_| GgufError::NotUtf8 { what, at })
    }

    fn truncated(&self, needed: u128, what: &'static str) -> GgufError {
        GgufError::Truncated { what, at: self.at, needed, remaining: self.remaining() }
    }
}
