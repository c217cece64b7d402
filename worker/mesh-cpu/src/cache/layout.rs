//! What a weight cache's file looks like.
//!
//! | bytes | what |
//! |---|---|
//! | 0 to 4095 | [`Header`] |
//! | from 4096 on | pieces: one chip's packed matrix each, or a norm gain, in order of use; each begins on a page, with zeros before it |
//! | from a page on, to the end | [`Index`] |
//!
//! Numbers are 64 bits, little-endian; texts are their length and UTF-8.

use kernels::Format;
use xxhash_rust::xxh3::xxh3_64;

use super::Unusable;

/// What pieces and the index are aligned to: a page, so that each is mapped by
/// itself and lies on a cache line.
pub(crate) const PAGE: u64 = 4096;
/// The first bytes of a file.
const MAGIC: &[u8; 16] = b"LlamaMeshWeights";
/// Number of what this file describes.
const FORMAT_VERSION: u64 = 1;
/// Place of the header's own checksum: its page's last bytes.
const HEADER_SUM_AT: usize = PAGE as usize - 8;

/// What the packed bytes depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Changes when the checkpoint does.
    pub(crate) checkpoint: String,
    /// Number formats by kind of weight.
    pub(crate) policy: String,
    /// Chips that the weights are cut for.
    pub(crate) num_chips: u64,
    /// The program that packed.
    pub(crate) packer: String,
}

impl Identity {
    /// How `found`, in a file, differs from what is wanted.
    fn difference(&self, found: &Self) -> Option<String> {
        if self.checkpoint != found.checkpoint {
            return Some("the checkpoint has changed".to_owned());
        }
        if self.policy != found.policy {
            return Some(format!("it holds {}, wanted is {}", found.policy, self.policy));
        }
        if self.num_chips != found.num_chips {
            return Some(format!("it is for {} chips, not {}", found.num_chips, self.num_chips));
        }
        (self.packer != found.packer)
            .then(|| format!("it was packed by {}, this is {}", found.packer, self.packer))
    }
}

/// Where one chip's part of a weight lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) format: Format,
    /// Outputs; 1 for a norm gain.
    pub(crate) n: u64,
    /// Inputs.
    pub(crate) k: u64,
    /// First byte in the file.
    pub(crate) offset: u64,
    pub(crate) num_bytes: u64,
    /// [`super::checksum::of`] its bytes.
    pub(crate) checksum: u64,
}

/// A weight: a piece for every chip, or one for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// [`super::WeightKey`]'s.
    pub(crate) name: String,
    pub(crate) pieces: Vec<Piece>,
}

/// Everything but the pieces.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Index {
    pub(crate) identity: Identity,
    pub(crate) entries: Vec<Entry>,
}

/// The page or multiple of it at or after `offset`.
pub(crate) fn next_page(offset: u64) -> u64 {
    offset.next_multiple_of(PAGE)
}

/// The header's page of a file with this index.
pub(crate) fn encode_header(index_offset: u64, index: &[u8]) -> Vec<u8> {
    let mut page = MAGIC.to_vec();
    for number in [FORMAT_VERSION, index_offset, index.len() as u64, xxh3_64(index)] {
        push_number(&mut page, number);
    }
    page.resize(HEADER_SUM_AT, 0);
    let sum = xxh3_64(&page);
    push_number(&mut page, sum);
    page
}

impl Index {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let Identity { checkpoint, policy, num_chips, packer } = &self.identity;
        push_text(&mut out, checkpoint);
        push_text(&mut out, policy);
        push_number(&mut out, *num_chips);
        push_text(&mut out, packer);
        push_number(&mut out, self.entries.len() as u64);
        for entry in &self.entries {
            push_text(&mut out, &entry.name);
            push_number(&mut out, entry.pieces.len() as u64);
            for piece in &entry.pieces {
                let Piece { format, n, k, offset, num_bytes, checksum } = *piece;
                for number in [number_of(format), n, k, offset, num_bytes, checksum] {
                    push_number(&mut out, number);
                }
            }
        }
        out
    }

    /// Takes a whole file apart, as far as pieces are not concerned: those that
    /// the index names are inside the file, one after another.
    pub(crate) fn of_file(file: &[u8], wanted: &Identity) -> Result<Self, Unusable> {
        let damaged = |how: &str| Unusable::Damaged(how.to_owned());
        let header = file.get(..PAGE as usize).ok_or_else(|| damaged("it is too short"))?;
        let Some(fields) = header.strip_prefix(MAGIC) else {
            return Err(damaged("it is no weight cache"));
        };
        let mut fields = Fields(fields);
        let numbers: [Option<u64>; 4] = std::array::from_fn(|_| fields.number());
        let [Some(version), Some(index_offset), Some(index_len), Some(index_sum)] = numbers else {
            return Err(damaged("its header is too short"));
        };
        if version != FORMAT_VERSION {
            let how = format!("it has format {version}, this program's is {FORMAT_VERSION}");
            return Err(Unusable::Stale(how));
        }
        let (page, sum) = header.split_at(HEADER_SUM_AT);
        if Fields(sum).number() != Some(xxh3_64(page)) {
            return Err(damaged("its header is not what was written"));
        }
        if index_offset.checked_add(index_len) != Some(file.len() as u64) {
            return Err(damaged("it has not its full length"));
        }
        // Both fit: their sum is a length in memory.
        let index = file.get(index_offset as usize..).ok_or_else(|| damaged("it has no index"))?;
        if xxh3_64(index) != index_sum {
            return Err(damaged("its index is not what was written"));
        }
        let index = Self::decode(index).ok_or_else(|| damaged("its index makes no sense"))?;
        if let Some(difference) = wanted.difference(&index.identity) {
            return Err(Unusable::Stale(difference));
        }
        if !index.fits(index_offset) {
            return Err(damaged("its pieces do not lie one after another"));
        }
        Ok(index)
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let identity = Identity {
            checkpoint: fields.text()?,
            policy: fields.text()?,
            num_chips: fields.number()?,
            packer: fields.text()?,
        };
        // Nothing is allocated by a count: each thing counted has bytes.
        let mut entries = Vec::new();
        for _ in 0..fields.number()? {
            let name = fields.text()?;
            let mut pieces = Vec::new();
            for _ in 0..fields.number()? {
                pieces.push(Piece {
                    format: format_of(fields.number()?)?,
                    n: fields.number()?,
                    k: fields.number()?,
                    offset: fields.number()?,
                    num_bytes: fields.number()?,
                    checksum: fields.number()?,
                });
            }
            entries.push(Entry { name, pieces });
        }
        fields.0.is_empty().then_some(Self { identity, entries })
    }

    /// Whether each piece begins on the first page after the one before, and
    /// the index after the last.
    fn fits(&self, index_offset: u64) -> bool {
        let mut end = PAGE;
        for piece in self.entries.iter().flat_map(|entry| &entry.pieces) {
            let Some(piece_end) = piece.offset.checked_add(piece.num_bytes) else { return false };
            if piece_end > index_offset || piece.offset != next_page(end) {
                return false;
            }
            end = piece_end;
        }
        index_offset == next_page(end)
    }
}

fn number_of(format: Format) -> u64 {
    match format {
        Format::F32 => 0,
        Format::Bf16 => 1,
        Format::Bfp8 => 2,
        Format::Bfp4 => 3,
    }
}

fn format_of(number: u64) -> Option<Format> {
    [Format::F32, Format::Bf16, Format::Bfp8, Format::Bfp4]
        .into_iter()
        .find(|format| number_of(*format) == number)
}

fn push_number(out: &mut Vec<u8>, number: u64) {
    out.extend(number.to_le_bytes());
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    push_number(out, text.len() as u64);
    out.extend(text.as_bytes());
}

/// Bytes that are read from the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*number))
    }

    fn text(&mut self) -> Option<String> {
        let len = usize::try_from(self.number()?).ok()?;
        let (text, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(str::from_utf8(text).ok()?.to_owned())
    }
}

#[cfg(test)]
mod tests;
