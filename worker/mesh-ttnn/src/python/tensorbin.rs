//! The header of a `.tensorbin` file, from files that the package has written.
//!
//! A file is the header's length (u64), the header (a flatbuffer with the shape
//! of a chip's part and each chip's place and length in what follows), and the
//! packed parts. Two small tensors show where in the header these numbers are:
//! they are all that may differ between them. If anything else does, this is
//! not the format known here, and the package has to write its files itself.

use std::fs;
use std::path::Path;

use half::bf16;
use kernels::bfp::tile_bytes;

use super::TtnnOps;
use crate::ops::Result;
use crate::packing;
use crate::spec::{DataType, HostData, HostMatrix, Layout, Shape, Spread, TILE};
use mesh::MeshError;

/// Rows and columns, in tiles, of a chip's part of the two tensors.
const SAMPLES: [[usize; 2]; 2] = [[3, 5], [7, 11]];
/// Bytes of the header's length.
const PREFIX: usize = 8;

/// A number of the header that depends on the shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    /// Rows of a chip's part, u32.
    Rows,
    /// Columns of a chip's part, u32.
    Columns,
    /// This many times the bytes of a chip's part, u64: where the chip of this
    /// number starts, and at 1 a length too.
    Parts(u64),
}

/// A header, and where in it the numbers are that depend on the shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    header: Vec<u8>,
    fields: Vec<(usize, Field)>,
}

/// A chip's part of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    rows: usize,
    columns: usize,
    bytes: u64,
}

impl Part {
    fn new([rows, columns]: [usize; 2], dtype: DataType) -> Option<Self> {
        let tiles = rows.div_ceil(TILE).checked_mul(columns.div_ceil(TILE))?;
        let bytes = tiles.checked_mul(tile_bytes(packing::format(dtype)?))? as u64;
        Some(Self { rows, columns, bytes })
    }
}

impl Template {
    /// What two files of `num_chips` chips have in common, each beside the part
    /// that a chip has of it. None if they are not as they are known here.
    fn between(files: [(&[u8], Part); 2], num_chips: u64, is_cut: bool) -> Option<Self> {
        let num_parts = if is_cut { num_chips } else { 1 };
        let mut headers = [&[][..]; 2];
        for (header, (file, part)) in headers.iter_mut().zip(files) {
            let (len, rest) = file.split_first_chunk::<PREFIX>()?;
            let len = usize::try_from(u64::from_le_bytes(*len)).ok()?;
            let (own, data) = rest.split_at_checked(len)?;
            if data.len() as u64 != num_parts.checked_mul(part.bytes)? {
                return None;
            }
            *header = own;
        }
        let [first, second] = headers;
        if first.len() != second.len() || !first.len().is_multiple_of(8) {
            return None;
        }
        let [one, other] = files.map(|(_, part)| part);
        let mut fields = Vec::new();
        let mut at = 0;
        while at < first.len() {
            let found = [first, second].map(|header| word(header, at));
            let wide = [first, second].map(|header| {
                let high = at.is_multiple_of(8).then(|| word(header, at + 4));
                high.map(|high| u64::from(high) << 32 | u64::from(word(header, at)))
            });
            let starts = (1..num_chips.max(2))
                .find(|n| wide == [one, other].map(|part| n.checked_mul(part.bytes)));
            if found[0] == found[1] {
                at += 4;
            } else if found.map(|word| word as usize) == [one.rows, other.rows] {
                fields.push((at, Field::Rows));
                at += 4;
            } else if found.map(|word| word as usize) == [one.columns, other.columns] {
                fields.push((at, Field::Columns));
                at += 4;
            } else {
                fields.push((at, Field::Parts(starts?)));
                at += 8;
            }
        }
        let template = Self { header: first.to_vec(), fields };
        template.is_complete(num_chips, is_cut).then_some(template)
    }

    /// Whether each number is there as often as it must be.
    fn is_complete(&self, num_chips: u64, is_cut: bool) -> bool {
        let places = |field| self.fields.iter().filter(|(_, found)| *found == field).count() as u64;
        let starts = if is_cut { num_chips } else { 1 };
        places(Field::Rows) == 1
            && places(Field::Columns) == 1
            && places(Field::Parts(1)) == num_chips + u64::from(starts > 1)
            && (2..num_chips).all(|n| places(Field::Parts(n)) == u64::from(n < starts))
    }

    /// All that stands before the parts in a file, for another part of a chip.
    fn fill(&self, part: Part) -> Option<Vec<u8>> {
        let mut file = (self.header.len() as u64).to_le_bytes().to_vec();
        file.extend(&self.header);
        for &(at, field) in &self.fields {
            let to = &mut file[PREFIX + at..];
            match field {
                Field::Rows => {
                    to[..4].copy_from_slice(&u32::try_from(part.rows).ok()?.to_le_bytes());
                }
                Field::Columns => {
                    to[..4].copy_from_slice(&u32::try_from(part.columns).ok()?.to_le_bytes());
                }
                Field::Parts(n) => {
                    to[..8].copy_from_slice(&n.checked_mul(part.bytes)?.to_le_bytes());
                }
            }
        }
        Some(file)
    }
}

/// The u32 at `at`, a multiple of 4; the header is whole words.
fn word(header: &[u8], at: usize) -> u32 {
    let bytes = header[at..].first_chunk().expect("the header is whole words");
    u32::from_le_bytes(*bytes)
}

impl TtnnOps {
    pub(super) fn header_of_file(
        &mut self,
        shape: Shape,
        dtype: DataType,
        spread: Spread,
        scratch: &Path,
    ) -> Result<Option<Vec<u8>>> {
        let Some(part) = self.part(shape, spread).and_then(|part| Part::new(part, dtype)) else {
            return Ok(None);
        };
        if !self.templates.contains_key(&(dtype, spread)) {
            let template = self.template(dtype, spread, scratch)?;
            if template.is_none() {
                tracing::warn!(?dtype, ?spread, "ttnn's files are of an unknown format");
            }
            self.templates.insert((dtype, spread), template);
        }
        let template = self.templates.get(&(dtype, spread)).and_then(Option::as_ref);
        Ok(template.and_then(|template| template.fill(part)))
    }

    /// Rows and columns of a chip's part.
    fn part(&self, shape: Shape, spread: Spread) -> Option<[usize; 2]> {
        let [1, 1, rows, columns] = shape else { return None };
        if rows == 0 || columns == 0 {
            return None;
        }
        let cut = |size: usize| size.is_multiple_of(self.num_chips).then(|| size / self.num_chips);
        match spread {
            Spread::Replicated => Some([rows, columns]),
            Spread::Cut(2) => Some([cut(rows)?, columns]),
            Spread::Cut(3) => Some([rows, cut(columns)?]),
            Spread::Cut(_) => None,
        }
    }

    /// From two tensors that the package packs, and writes into `scratch`.
    fn template(
        &mut self,
        dtype: DataType,
        spread: Spread,
        scratch: &Path,
    ) -> Result<Option<Template>> {
        let mut files = Vec::with_capacity(SAMPLES.len());
        for tiles in SAMPLES {
            let part = tiles.map(|tiles| tiles * TILE);
            let mut shape = [1, 1, part[0], part[1]];
            if let Spread::Cut(axis) = spread {
                shape[axis] *= self.num_chips;
            }
            let tensor = self.pack_matrix(HostMatrix {
                shape,
                rank: 4,
                data: HostData::BFloat16(vec![bf16::ZERO; shape.iter().product()]),
                dtype,
                layout: Layout::Tile,
                spread,
            })?;
            self.dump_tensor(&tensor, scratch)?;
            let read = fs::read(scratch).and_then(|file| fs::remove_file(scratch).map(|()| file));
            let file =
                read.map_err(|error| MeshError::Device(format!("{}: {error}", scratch.display())))?;
            let Some(part) = Part::new(part, dtype) else { return Ok(None) };
            files.push((file, part));
        }
        let [(first, one), (second, other)] = files.as_slice() else { return Ok(None) };
        let is_cut = spread != Spread::Replicated;
        let files = [(first.as_slice(), *one), (second.as_slice(), *other)];
        Ok(Template::between(files, self.num_chips as u64, is_cut))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Part = Part { rows: 96, columns: 160, bytes: 16_320 };
    const OTHER: Part = Part { rows: 224, columns: 352, bytes: 83_776 };

    /// As the package writes for two chips: a number that happens to be one of
    /// the part's too, each chip's length and place, the shape.
    fn file(part: Part, change: impl Fn(&mut Vec<u64>)) -> Vec<u8> {
        let Part { rows, columns, bytes } = part;
        let shape = rows as u64 | (columns as u64) << 32;
        let mut header = vec![96, bytes, bytes, 160, bytes, shape];
        change(&mut header);
        let mut file = (header.len() as u64 * 8).to_le_bytes().to_vec();
        file.extend(header.iter().flat_map(|word| word.to_le_bytes()));
        file.resize(file.len() + 2 * bytes as usize, 0);
        file
    }

    fn template(change: impl Fn(&mut Vec<u64>)) -> Option<Template> {
        let (one, other) = (file(ONE, &change), file(OTHER, &change));
        Template::between([(&one, ONE), (&other, OTHER)], 2, true)
    }

    #[test]
    fn a_header_is_filled_in_where_two_differ() {
        let template = template(|_| ()).unwrap();
        for part in [ONE, OTHER, Part { rows: 28_672, columns: 1024, bytes: 5 << 30 }] {
            let header = template.fill(part).unwrap();
            let expected = file(Part { bytes: part.bytes.min(1 << 20), ..part }, |header| {
                for place in [1, 2, 4] {
                    header[place] = part.bytes;
                }
            });
            assert_eq!(header, expected[..header.len()]);
        }
        assert_eq!(template.fill(Part { rows: 1 << 32, ..ONE }), None);
    }

    #[test]
    fn a_header_that_is_not_as_known_is_no_template() {
        // A place less, one more, another dependence, no shape.
        assert_eq!(template(|header| header[4] = 0), None);
        assert_eq!(template(|header| header[3] = header[1]), None);
        assert_eq!(template(|header| header[3] = header[1] + 64), None);
        assert_eq!(template(|header| header[3] = header[5]), None);
        assert_eq!(template(|header| header[5] = 0), None);
        // Of another length, with other data behind, or cut off.
        let (one, mut other) = (file(ONE, |_| ()), file(OTHER, |header| header.push(0)));
        let between =
            |one: &[u8], other: &[u8]| Template::between([(one, ONE), (other, OTHER)], 2, true);
        assert_eq!(between(&one, &other), None);
        other = file(OTHER, |_| ());
        assert!(between(&one, &other).is_some());
        other.push(0);
        assert_eq!(between(&one, &other), None);
        assert_eq!(between(&one[..20], &other), None);
        assert_eq!(between(&[], &[]), None);
    }
}
