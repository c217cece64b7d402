//! The zip archive around a `.pth` file: where its entries lie.
//!
//! Nothing is extracted, decompressed or mapped. The central directory is read
//! once, every entry's local header is compared with it, and what is left is a
//! table of byte ranges that do not overlap. Names are compared with those that
//! `torch.save` writes; they never become paths.

use std::collections::BTreeMap;

use super::PthError;
use crate::checkpoint::{CheckpointError, WeightFile};

const LOCAL_HEADER: u32 = 0x0403_4b50;
const CENTRAL_HEADER: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const END_64_LOCATOR: u32 = 0x0706_4b50;

const LOCAL_HEADER_BYTES: u64 = 30;
const CENTRAL_HEADER_BYTES: usize = 46;
const END_BYTES: usize = 22;
const END_64_BYTES: usize = 56;
const LOCATOR_BYTES: usize = 20;

/// Sizes and offsets of zip64 stand in its extra field, and this in their place.
const IN_ZIP_64: u32 = u32::MAX;
const ZIP_64_EXTRA: u16 = 1;

const ENCRYPTED: u16 = 1;
/// Sizes follow the data; the local header may hold zeros.
const HAS_DESCRIPTOR: u16 = 1 << 3;

/// One storage a tensor; the largest Llama has 907.
const MAX_ENTRIES: u64 = 1 << 14;
const MAX_DIRECTORY_BYTES: u64 = 2 << 20;
const MAX_NAME_BYTES: usize = 512;

/// Where an entry's bytes lie in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) offset: u64,
    pub(super) num_bytes: u64,
}

/// The entries, by their names below the one top directory.
#[derive(Debug)]
pub(super) struct Archive {
    entries: BTreeMap<String, Entry>,
}

impl Archive {
    /// Reads the directory and checks it against the file.
    pub(super) fn read(file: &WeightFile) -> Result<Self, CheckpointError> {
        let refuse = |source| CheckpointError::Pth { path: file.path().to_owned(), source };
        check_start(file)?;
        let tail_bytes = file.num_bytes().min((END_BYTES + LOCATOR_BYTES + END_64_BYTES) as u64);
        let mut tail = vec![0; tail_bytes as usize];
        file.read_at(file.num_bytes() - tail_bytes, &mut tail)?;
        let directory = Directory::find(&tail, file.num_bytes()).map_err(refuse)?;
        let mut bytes = vec![0; directory.num_bytes as usize];
        file.read_at(directory.offset, &mut bytes)?;
        let headers = directory.parse(&bytes).map_err(refuse)?;
        let mut extents = Vec::with_capacity(headers.len());
        let mut entries = BTreeMap::new();
        for header in headers {
            let local_bytes = LOCAL_HEADER_BYTES + header.path.len() as u64;
            if header.offset > directory.offset.saturating_sub(local_bytes) {
                return Err(refuse(header.reaches_too_far()));
            }
            let mut local = vec![0; local_bytes as usize];
            file.read_at(header.offset, &mut local)?;
            let extra_bytes = header.check_local(&local).map_err(refuse)?;
            let extra_at = header.offset + local_bytes;
            let start = extra_at + extra_bytes;
            if start > directory.offset || header.num_bytes > directory.offset - start {
                return Err(refuse(header.reaches_too_far()));
            }
            if header.local_is_zip_64(&local) {
                let mut extra = vec![0; extra_bytes as usize];
                file.read_at(extra_at, &mut extra)?;
                header.check_local_zip_64(&extra).map_err(refuse)?;
            }
            extents.push((header.offset, start + header.num_bytes));
            let entry = Entry { offset: start, num_bytes: header.num_bytes };
            if entries.insert(header.name.clone(), entry).is_some() {
                let message = format!("{} comes twice", header.path);
                return Err(refuse(PthError::Archive(message)));
            }
        }
        check_overlap(extents).map_err(refuse)?;
        Ok(Self { entries })
    }

    /// An entry by its name, such as `data.pkl`.
    pub(super) fn entry(&self, name: &str) -> Option<Entry> {
        self.entries.get(name).copied()
    }

    /// The bytes of tensor storages, by key.
    pub(super) fn storages(&self) -> BTreeMap<&str, Entry> {
        self.entries
            .iter()
            .filter_map(|(name, entry)| Some((name.strip_prefix("data/")?, *entry)))
            .collect()
    }
}

/// Tells what the file is instead, where it starts as no such archive does.
fn check_start(file: &WeightFile) -> Result<(), CheckpointError> {
    let mut start = [0; 262];
    let start = &mut start[..file.num_bytes().min(262) as usize];
    file.read_at(0, start)?;
    let what = if start.starts_with(&LOCAL_HEADER.to_le_bytes()) {
        return Ok(());
    } else if start.ends_with(b"ustar") && start.len() == 262 {
        "a tar file as torch wrote before version 0.1.11"
    } else if start.starts_with(&[0x80]) {
        "a bare pickle as torch wrote before version 1.6"
    } else if start.is_empty() {
        "empty"
    } else {
        "no zip archive"
    };
    let message = format!("the file is {what}; load and save it again with a current torch");
    let source = PthError::NotAnArchive(message);
    Err(CheckpointError::Pth { path: file.path().to_owned(), source })
}

/// Where the central directory is.
#[derive(Debug)]
struct Directory {
    offset: u64,
    num_bytes: u64,
    num_entries: u64,
}

impl Directory {
    /// From the end of a file of `file_bytes` bytes.
    fn find(tail: &[u8], file_bytes: u64) -> Result<Self, PthError> {
        let Some(end_at) = tail.len().checked_sub(END_BYTES) else {
            return Err(archive("it is cut short: there is no end record"));
        };
        let end = Fields(&tail[end_at..]);
        // Without a comment, so that only one record can be meant.
        if end.u32(0) != END || end.u16(20) != 0 {
            return Err(archive("it does not end with an end record: it is cut short or damaged"));
        }
        if end.u16(4) != 0 || end.u16(6) != 0 || end.u16(8) != end.u16(10) {
            return Err(archive("it is one of several volumes"));
        }
        let mut directory = Self {
            offset: end.u32(16).into(),
            num_bytes: end.u32(12).into(),
            num_entries: end.u16(10).into(),
        };
        let end_position = file_bytes - END_BYTES as u64;
        let mut directory_end = end_position;
        let locator_at = end_at.checked_sub(LOCATOR_BYTES);
        if let Some(at) = locator_at.filter(|&at| Fields(&tail[at..]).u32(0) == END_64_LOCATOR) {
            let (wide, position) = Self::find_64(tail, at, end_position - LOCATOR_BYTES as u64)?;
            directory.agree(&wide)?;
            (directory, directory_end) = (wide, position);
        } else if end.u32(16) == IN_ZIP_64 || end.u32(12) == IN_ZIP_64 || end.u16(10) == u16::MAX {
            return Err(archive("its zip64 record is missing"));
        }
        if directory.offset.checked_add(directory.num_bytes) != Some(directory_end) {
            return Err(archive("its central directory does not lie right before its end record"));
        }
        let least = (CENTRAL_HEADER_BYTES as u64).checked_mul(directory.num_entries);
        if least.is_none_or(|least| least > directory.num_bytes) {
            return Err(archive("it counts more entries than its directory can hold"));
        }
        if directory.num_entries > MAX_ENTRIES {
            return Err(PthError::Limit { what: "zip entries", max: MAX_ENTRIES });
        }
        if directory.num_bytes > MAX_DIRECTORY_BYTES {
            let what = "bytes of zip directory";
            return Err(PthError::Limit { what, max: MAX_DIRECTORY_BYTES });
        }
        Ok(directory)
    }

    /// The zip64 end record before its locator, and its position in the file.
    fn find_64(tail: &[u8], locator: usize, position: u64) -> Result<(Self, u64), PthError> {
        let fields = Fields(&tail[locator..]);
        let one_volume = fields.u32(4) == 0 && fields.u32(16) <= 1;
        let Some(at) = locator.checked_sub(END_64_BYTES).filter(|_| one_volume) else {
            return Err(archive("its zip64 record is missing"));
        };
        let (end, position) = (Fields(&tail[at..]), position - END_64_BYTES as u64);
        let fits = fields.u64(8) == position
            && end.u32(0) == END_64
            && end.u64(4) == END_64_BYTES as u64 - 12
            && end.u32(16) == 0
            && end.u32(20) == 0
            && end.u64(24) == end.u64(32);
        if !fits {
            return Err(archive("its zip64 record is damaged"));
        }
        let (num_entries, num_bytes, offset) = (end.u64(32), end.u64(40), end.u64(48));
        Ok((Self { offset, num_bytes, num_entries }, position))
    }

    /// What the short end record states must be what the zip64 one does.
    fn agree(&self, wide: &Self) -> Result<(), PthError> {
        let short = |short: u64, wide: u64, max: u64| short == max || short == wide;
        let max = IN_ZIP_64.into();
        if short(self.offset, wide.offset, max)
            && short(self.num_bytes, wide.num_bytes, max)
            && short(self.num_entries, wide.num_entries, u16::MAX.into())
        {
            return Ok(());
        }
        Err(archive("its two end records disagree"))
    }

    /// The headers in the directory's bytes.
    fn parse(&self, mut bytes: &[u8]) -> Result<Vec<CentralHeader>, PthError> {
        let mut headers: Vec<CentralHeader> = Vec::new();
        for _ in 0..self.num_entries {
            let (header, num_bytes) = CentralHeader::parse(bytes)?;
            if headers.first().is_some_and(|first| first.top() != header.top()) {
                return Err(archive(format!("{} is in another top directory", header.path)));
            }
            bytes = &bytes[num_bytes..];
            headers.push(header);
        }
        if !bytes.is_empty() {
            return Err(archive("its directory holds more than the counted entries"));
        }
        Ok(headers)
    }
}

/// An entry of the central directory.
#[derive(Debug)]
struct CentralHeader {
    /// As stored, with the top directory.
    path: String,
    /// Below the top directory.
    name: String,
    /// Of the local header.
    offset: u64,
    num_bytes: u64,
    has_descriptor: bool,
}

impl CentralHeader {
    /// The first header in `bytes`, and its length.
    fn parse(bytes: &[u8]) -> Result<(Self, usize), PthError> {
        let fields = Fields(bytes);
        if bytes.len() < CENTRAL_HEADER_BYTES || fields.u32(0) != CENTRAL_HEADER {
            return Err(archive("its directory is damaged"));
        }
        let [name, extra, comment] = [28, 30, 32].map(|at| usize::from(fields.u16(at)));
        let num_bytes = CENTRAL_HEADER_BYTES + name + extra + comment;
        if num_bytes > bytes.len() {
            return Err(archive("its directory is cut short"));
        }
        let (path, extra_bytes) = bytes[CENTRAL_HEADER_BYTES..num_bytes].split_at(name);
        let path = match std::str::from_utf8(path) {
            Ok(path) if path.len() <= MAX_NAME_BYTES => path.to_owned(),
            _ => return Err(archive("an entry's name is not text, or too long")),
        };
        let name = known_name(&path)?.to_owned();
        let flags = fields.u16(8);
        if flags & ENCRYPTED != 0 {
            return Err(archive(format!("{path} is encrypted")));
        }
        if fields.u16(10) != 0 {
            return Err(archive(format!("{path} is compressed; torch stores entries as they are")));
        }
        let mut wide = Zip64::find(&extra_bytes[..extra], &path)?;
        let size = wide.widen(fields.u32(24), &path)?;
        let stored = wide.widen(fields.u32(20), &path)?;
        let offset = wide.widen(fields.u32(42), &path)?;
        if size != stored {
            return Err(archive(format!("{path} has {size} bytes, of which {stored} are stored")));
        }
        let has_descriptor = flags & HAS_DESCRIPTOR != 0;
        Ok((Self { path, name, offset, num_bytes: size, has_descriptor }, num_bytes))
    }

    fn top(&self) -> &str {
        &self.path[..self.path.len() - self.name.len()]
    }

    /// Compares with the local header and its name; returns the length of its
    /// extra field.
    fn check_local(&self, local: &[u8]) -> Result<u64, PthError> {
        let fields = Fields(local);
        let agrees = fields.u32(0) == LOCAL_HEADER
            && fields.u16(8) == 0
            && (fields.u16(6) & HAS_DESCRIPTOR != 0) == self.has_descriptor
            && usize::from(fields.u16(26)) == self.path.len()
            && local[LOCAL_HEADER_BYTES as usize..] == *self.path.as_bytes()
            && [18, 22].into_iter().all(|at| {
                let size = fields.u32(at);
                size == IN_ZIP_64 || self.is_my_size(size.into())
            });
        if agrees { Ok(fields.u16(28).into()) } else { Err(self.disagrees()) }
    }

    fn local_is_zip_64(&self, local: &[u8]) -> bool {
        [18, 22].into_iter().any(|at| Fields(local).u32(at) == IN_ZIP_64)
    }

    fn check_local_zip_64(&self, extra: &[u8]) -> Result<(), PthError> {
        let mut wide = Zip64::find(extra, &self.path)?;
        for _ in ["size", "stored size"] {
            let size = wide.widen(IN_ZIP_64, &self.path)?;
            if !self.is_my_size(size) {
                return Err(self.disagrees());
            }
        }
        Ok(())
    }

    /// True for a size in a local header that is equal to this one, or is to
    /// follow the data.
    fn is_my_size(&self, size: u64) -> bool {
        size == self.num_bytes || (size == 0 && self.has_descriptor)
    }

    fn reaches_too_far(&self) -> PthError {
        archive(format!("{} reaches into the central directory", self.path))
    }

    fn disagrees(&self) -> PthError {
        archive(format!("the local header of {} does not agree with the directory", self.path))
    }
}

/// What is below the top directory, if it is something that torch writes.
fn known_name(path: &str) -> Result<&str, PthError> {
    let name = path.split_once('/').filter(|(top, _)| !top.is_empty()).map(|(_, name)| name);
    let known = |name: &&str| match *name {
        "data.pkl" | "version" | "byteorder" => true,
        // Newer versions of torch write notes to themselves, such as
        // `.data/serialization_id`.
        name => match name.strip_prefix("data/") {
            Some(key) => (1..=20).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_digit()),
            None => name.starts_with('.') && !name.contains(".."),
        },
    };
    name.filter(known)
        .ok_or_else(|| archive(format!("{path:?} is no entry that torch.save writes")))
}

fn check_overlap(mut extents: Vec<(u64, u64)>) -> Result<(), PthError> {
    extents.sort_unstable();
    if extents.windows(2).any(|pair| pair[0].1 > pair[1].0) {
        return Err(archive("its entries overlap"));
    }
    Ok(())
}

/// The zip64 extra field: the numbers that had no room, in a fixed order.
struct Zip64<'a>(&'a [u8]);

impl<'a> Zip64<'a> {
    /// Empty where there is none.
    fn find(mut extra: &'a [u8], path: &str) -> Result<Self, PthError> {
        while !extra.is_empty() {
            let bad = || archive(format!("the extra field of {path} is damaged"));
            let (head, rest) = extra.split_first_chunk::<4>().ok_or_else(bad)?;
            let num_bytes = usize::from(Fields(head).u16(2));
            let (content, rest) = rest.split_at_checked(num_bytes).ok_or_else(bad)?;
            if Fields(head).u16(0) == ZIP_64_EXTRA {
                return Ok(Self(content));
            }
            extra = rest;
        }
        Ok(Self(&[]))
    }

    /// The value itself, or the next one of the extra field in its place.
    fn widen(&mut self, value: u32, path: &str) -> Result<u64, PthError> {
        if value != IN_ZIP_64 {
            return Ok(value.into());
        }
        let (number, rest) = self
            .0
            .split_first_chunk::<8>()
            .ok_or_else(|| archive(format!("the zip64 field of {path} is missing")))?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*number))
    }
}

/// Little-endian numbers at known places of a record that is long enough.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0[at..].first_chunk().copied().expect("records are read whole")
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }
}

fn archive(message: impl Into<String>) -> PthError {
    PthError::Archive(message.into())
}
