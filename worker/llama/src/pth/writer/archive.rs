//! A zip archive of stored records, as torch lays it out, written front to back.
//!
//! Sizes and CRC follow each record's data, in a descriptor, so that nothing is
//! ever written twice. Numbers that do not fit in 32 bits go to zip64 fields,
//! which are there only when needed; the zip64 end record is always there.

use std::io::{self, Write};

use super::PthWriteError;

const LOCAL_HEADER: u32 = 0x0403_4b50;
const DESCRIPTOR: u32 = 0x0807_4b50;
const CENTRAL_HEADER: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const END_64_LOCATOR: u32 = 0x0706_4b50;

/// Bytes of a local header before the name.
const LOCAL_HEADER_BYTES: u64 = 30;
/// Data starts at multiples of this, so that it can be mapped.
const ALIGNMENT: u64 = 64;
/// Stands where the number is in the zip64 field instead.
const IN_ZIP_64: u64 = 0xffff_ffff;
const ZIP_64_FIELD: u16 = 1;
/// Torch's own field, which is there for its length.
const PADDING_FIELD: [u8; 2] = *b"FB";
const PADDING: u8 = b'Z';

const NAMES_ARE_UTF_8: u16 = 1 << 11;
const HAS_DESCRIPTOR: u16 = 1 << 3;
/// Zip 4.5, the first with 64-bit sizes; and 3.0 on Unix as the writer.
const VERSION_NEEDED: u16 = 45;
const VERSION_MADE_BY: u16 = 0x031e;

/// An archive that is being written.
#[derive(Debug)]
pub(super) struct ArchiveWriter<W> {
    out: W,
    top: String,
    position: u64,
    directory: Vec<u8>,
    num_records: u64,
    record: Option<Record>,
}

/// The record whose data is being written.
#[derive(Debug)]
struct Record {
    path: String,
    header_at: u64,
    num_bytes: u64,
    crc: crc32fast::Hasher,
}

impl<W: Write> ArchiveWriter<W> {
    pub(super) fn new(out: W, top: &str) -> Self {
        Self {
            out,
            top: top.to_owned(),
            position: 0,
            directory: Vec::new(),
            num_records: 0,
            record: None,
        }
    }

    /// Bytes so far.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// A whole record.
    pub(super) fn record(&mut self, name: &str, content: &[u8]) -> Result<(), PthWriteError> {
        self.begin(name, content.len() as u64)?;
        self.write_all(content)?;
        self.end()
    }

    /// Starts a record of `num_bytes` bytes, which are to be written before
    /// [`Self::end`].
    pub(super) fn begin(&mut self, name: &str, num_bytes: u64) -> Result<(), PthWriteError> {
        let path = format!("{}/{name}", self.top);
        let header_at = self.position;
        let record = Record { path, header_at, num_bytes, crc: crc32fast::Hasher::new() };
        // The size that is stored is not known yet, whoever might know better.
        let mut extra = record.zip_64(0);
        let data_at =
            header_at + LOCAL_HEADER_BYTES + record.path.len() as u64 + extra.len() as u64 + 4;
        let padding = (data_at.next_multiple_of(ALIGNMENT) - data_at) as u16;
        extra.extend(PADDING_FIELD);
        extra.extend(padding.to_le_bytes());
        extra.resize(extra.len() + usize::from(padding), PADDING);

        let mut header = Vec::with_capacity(LOCAL_HEADER_BYTES as usize + record.path.len());
        header.extend(LOCAL_HEADER.to_le_bytes());
        header.extend(0_u16.to_le_bytes());
        header.extend(record.flags().to_le_bytes());
        // Method (stored), time, date, CRC, both sizes: all zero.
        header.extend([0; 18]);
        header.extend((record.path.len() as u16).to_le_bytes());
        header.extend((extra.len() as u16).to_le_bytes());
        header.extend(record.path.as_bytes());
        header.extend(extra);
        self.out.write_all(&header)?;
        self.position += header.len() as u64;
        self.record = Some(record);
        Ok(())
    }

    /// Ends the record that was begun.
    pub(super) fn end(&mut self) -> Result<(), PthWriteError> {
        let Some(record) = self.record.take() else {
            unreachable!("a record ends that was not begun");
        };
        let crc = record.crc.clone().finalize();
        if record.num_bytes > 0 {
            let mut descriptor = Vec::with_capacity(24);
            descriptor.extend(DESCRIPTOR.to_le_bytes());
            descriptor.extend(crc.to_le_bytes());
            for _ in ["stored", "plain"] {
                if record.is_wide() {
                    descriptor.extend(record.num_bytes.to_le_bytes());
                } else {
                    descriptor.extend((record.num_bytes as u32).to_le_bytes());
                }
            }
            self.out.write_all(&descriptor)?;
            self.position += descriptor.len() as u64;
        }
        record.list(crc, &mut self.directory);
        self.num_records += 1;
        Ok(())
    }

    /// Counts data without writing it, to learn how long a file will be.
    pub(super) fn skip(&mut self, num_bytes: u64) {
        self.position += num_bytes;
    }

    /// Writes the directory of all records.
    pub(super) fn finish(&mut self) -> Result<(), PthWriteError> {
        let (directory_at, directory_bytes) = (self.position, self.directory.len() as u64);
        let end_64_at = directory_at + directory_bytes;
        let mut end = Vec::with_capacity(98);
        end.extend(END_64.to_le_bytes());
        // Bytes of this record after this field.
        end.extend(44_u64.to_le_bytes());
        end.extend(VERSION_MADE_BY.to_le_bytes());
        end.extend(VERSION_NEEDED.to_le_bytes());
        // Two numbers of volumes.
        end.extend([0; 8]);
        end.extend(self.num_records.to_le_bytes());
        end.extend(self.num_records.to_le_bytes());
        end.extend(directory_bytes.to_le_bytes());
        end.extend(directory_at.to_le_bytes());

        end.extend(END_64_LOCATOR.to_le_bytes());
        end.extend(0_u32.to_le_bytes());
        end.extend(end_64_at.to_le_bytes());
        end.extend(1_u32.to_le_bytes());

        end.extend(END.to_le_bytes());
        end.extend([0; 4]);
        let num_records = self.num_records.min(u16::MAX.into()) as u16;
        end.extend(num_records.to_le_bytes());
        end.extend(num_records.to_le_bytes());
        end.extend((directory_bytes.min(IN_ZIP_64) as u32).to_le_bytes());
        end.extend((directory_at.min(IN_ZIP_64) as u32).to_le_bytes());
        // No comment.
        end.extend(0_u16.to_le_bytes());

        self.out.write_all(&self.directory)?;
        self.out.write_all(&end)?;
        self.position = end_64_at + end.len() as u64;
        Ok(())
    }

    pub(super) fn into_inner(self) -> W {
        self.out
    }
}

/// The data of the record that was begun.
impl<W: Write> Write for ArchiveWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.position += written as u64;
        if let Some(record) = &mut self.record {
            record.crc.update(&bytes[..written]);
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Record {
    fn flags(&self) -> u16 {
        // Torch writes no descriptor after no data.
        NAMES_ARE_UTF_8 | if self.num_bytes > 0 { HAS_DESCRIPTOR } else { 0 }
    }

    fn is_wide(&self) -> bool {
        self.num_bytes >= IN_ZIP_64 || self.header_at >= IN_ZIP_64
    }

    /// The zip64 field; empty when all numbers fit elsewhere.
    fn zip_64(&self, stored_bytes: u64) -> Vec<u8> {
        let mut numbers = Vec::with_capacity(3);
        if self.num_bytes >= IN_ZIP_64 {
            numbers.extend([self.num_bytes, stored_bytes]);
        }
        if self.header_at >= IN_ZIP_64 {
            numbers.push(self.header_at);
        }
        if numbers.is_empty() {
            return Vec::new();
        }
        let mut field = Vec::with_capacity(4 + 8 * numbers.len());
        field.extend(ZIP_64_FIELD.to_le_bytes());
        field.extend((8 * numbers.len() as u16).to_le_bytes());
        field.extend(numbers.into_iter().flat_map(u64::to_le_bytes));
        field
    }

    /// Adds this record to the directory.
    fn list(&self, crc: u32, directory: &mut Vec<u8>) {
        let extra = self.zip_64(self.num_bytes);
        let narrow = |number: u64| (number.min(IN_ZIP_64) as u32).to_le_bytes();
        directory.extend(CENTRAL_HEADER.to_le_bytes());
        // Two versions.
        directory.extend([0; 4]);
        directory.extend(self.flags().to_le_bytes());
        // Method, time and date.
        directory.extend([0; 6]);
        directory.extend(crc.to_le_bytes());
        directory.extend(narrow(self.num_bytes));
        directory.extend(narrow(self.num_bytes));
        directory.extend((self.path.len() as u16).to_le_bytes());
        directory.extend((extra.len() as u16).to_le_bytes());
        // No comment, first volume, no attributes.
        directory.extend([0; 10]);
        directory.extend(narrow(self.header_at));
        directory.extend(self.path.as_bytes());
        directory.extend(extra);
    }
}
