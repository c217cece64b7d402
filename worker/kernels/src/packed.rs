//! Weights, packed once so that a kernel reads them front to back.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::Pool;
use crate::aligned::{AlignedBuffer, size_of_shape};
use crate::block::{self, Exponents, ROWS, block_bytes};
use crate::lanes::LANES;
use crate::mapped::{MappedBytes, MappedFile, WeightBytes};

/// Number of the arrangement of values in memory. Whoever changes a layout, or
/// a rounding, raises it: files of packed weights outlive the program.
pub const LAYOUT_VERSION: u32 = 1;

/// Panels that one task packs: a few reads' worth, so that tasks cost nothing
/// beside packing and the threads still finish together.
const PANELS_PER_TASK: usize = 4;

/// How numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// IEEE single precision, 32 bits a value.
    F32,
    /// The upper half of an f32, 16 bits a value.
    Bf16,
    /// ttnn's `bfloat8_b`: 16 values share an exponent; 8.5 bits a value.
    Bfp8,
    /// ttnn's `bfloat4_b`: 16 values share an exponent; 4.5 bits a value.
    Bfp4,
}

/// Writes whole rows of a matrix, the given one first: `(first_row, rows)`.
/// Called from any thread of the pool.
pub type ReadRows<'a, E> = dyn Fn(usize, &mut [f32]) -> Result<(), E> + Sync + 'a;

/// A weight matrix `[n, k]` (`n` outputs, `k` inputs) in one [`Format`].
///
/// Stored as panels of 16 outputs; a panel is a sequence of 16×16 blocks along
/// k, so a panel is one stream of memory. In bfp8 and bfp4, 16 consecutive
/// outputs share an exponent for each input, which is how ttnn groups a weight
/// (stored there transposed, `[in, out]`). Values of groups whose largest
/// magnitude is below 2^-120 are flushed to zero; a group with an infinity or
/// a NaN decodes to NaN throughout.
#[derive(Debug)]
pub struct PackedMatrix {
    format: Format,
    n: usize,
    k: usize,
    blocks_per_panel: usize,
    data: WeightBytes,
}

impl PackedMatrix {
    /// Packs the matrix whose rows `read_rows(first_row, rows)` writes, sharing
    /// the work out over the pool: `rows` is `[r, k]`, r at most 16, and each
    /// row is asked for once.
    ///
    /// # Errors
    /// An error of `read_rows`, after which little more is read.
    ///
    /// # Panics
    /// If `n` or `k` is 0, or `read_rows` panics.
    pub fn pack<E: Send>(
        pool: &Pool,
        format: Format,
        [n, k]: [usize; 2],
        read_rows: &ReadRows<'_, E>,
    ) -> Result<Self, E> {
        assert!(n > 0 && k > 0, "a matrix [{n}, {k}] has no values");
        let num_panels = n.div_ceil(LANES);
        let blocks_per_panel = k.div_ceil(ROWS);
        let panel_bytes = size_of_shape([blocks_per_panel, block_bytes(format)]);
        let mut data = AlignedBuffer::zeroed(size_of_shape([num_panels, panel_bytes]));
        let failure = Mutex::new(None);
        let failed = || failure.lock().unwrap_or_else(PoisonError::into_inner);
        let all_panels = &mut data.as_mut_slice()[..num_panels * panel_bytes];
        // Each is locked by the one task that has its index, so no lock waits.
        let tasks: Vec<Mutex<&mut [u8]>> =
            all_panels.chunks_mut(PANELS_PER_TASK * panel_bytes).map(Mutex::new).collect();
        pool.run(tasks.len(), &|task_idx| {
            if failed().is_some() {
                return;
            }
            let mut panels = tasks[task_idx].lock().unwrap_or_else(PoisonError::into_inner);
            let panels = panels.chunks_exact_mut(panel_bytes);
            let first_row = task_idx * PANELS_PER_TASK * LANES;
            if let Err(error) = pack_panels(format, [n, k], first_row, panels, read_rows) {
                failed().get_or_insert(error);
            }
        });
        drop(tasks);
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(Self { format, n, k, blocks_per_panel, data: WeightBytes::Owned(data) }),
        }
    }

    /// A matrix `[n, k]` that was packed before: `range` of `file` holds its
    /// [`packed_bytes`](Self::packed_bytes), from [`LAYOUT_VERSION`].
    ///
    /// Any bytes are a matrix; whether they are the right ones is the caller's
    /// to find out. `None` when `n` or `k` is 0, or the range has not the length
    /// of such a matrix, is not inside the file, or does not begin on a multiple
    /// of 64.
    #[must_use]
    pub fn from_mapped(
        format: Format,
        [n, k]: [usize; 2],
        file: &Arc<MappedFile>,
        range: Range<usize>,
    ) -> Option<Self> {
        let blocks_per_panel = k.div_ceil(ROWS);
        let num_bytes = [blocks_per_panel, block_bytes(format)]
            .into_iter()
            .try_fold(n.div_ceil(LANES), usize::checked_mul)?;
        if num_bytes == 0 || range.len() != num_bytes {
            return None;
        }
        let data = WeightBytes::Mapped(MappedBytes::new(Arc::clone(file), range)?);
        Some(Self { format, n, k, blocks_per_panel, data })
    }

    /// All of it as it lies in memory: what a file must hold to be mapped later.
    #[must_use]
    pub fn packed_bytes(&self) -> &[u8] {
        &self.data.as_slice()[..self.bytes()]
    }

    /// The storage format.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Outputs: the rows of the matrix.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs: the columns of the matrix.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bytes of memory it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.num_panels() * self.panel_bytes()
    }

    /// Row `r` as f32, for instance the embedding of token `r`. `out` is `[k]`.
    ///
    /// # Panics
    /// If `r` is not below [`n`](Self::n) or `out` has not the length [`k`](Self::k).
    pub fn row(&self, r: usize, out: &mut [f32]) {
        assert!(r < self.n, "row {r} of a matrix with {} rows", self.n);
        assert_eq!(out.len(), self.k, "a row has k values");
        let bytes = block_bytes(self.format);
        let panel = r / LANES * self.blocks_per_panel * bytes;
        let blocks = &self.data.as_slice()[panel..panel + self.blocks_per_panel * bytes];
        for (block, out) in blocks.chunks_exact(bytes).zip(out.chunks_mut(ROWS)) {
            for (row, out) in out.iter_mut().enumerate() {
                *out = block::value(self.format, row, r % LANES, block);
            }
        }
    }

    /// Panels of 16 outputs.
    pub(crate) fn num_panels(&self) -> usize {
        self.n.div_ceil(LANES)
    }

    /// Bytes from one panel to the next.
    pub(crate) fn panel_bytes(&self) -> usize {
        self.blocks_per_panel * block_bytes(self.format)
    }

    /// The first block of a panel.
    pub(crate) fn panel(&self, panel_idx: usize) -> *const u8 {
        debug_assert!(panel_idx < self.num_panels(), "panel {panel_idx}");
        // In bounds: the buffer holds every panel.
        self.data.as_ptr().wrapping_add(panel_idx * self.panel_bytes())
    }
}

/// Packs panels of 16 rows, from row `first_row` on, into zeroed memory.
fn pack_panels<'a, E>(
    format: Format,
    [n, k]: [usize; 2],
    first_row: usize,
    panels: impl Iterator<Item = &'a mut [u8]>,
    read_rows: &ReadRows<'_, E>,
) -> Result<(), E> {
    // [16, k]; rows past n are 0.
    let mut rows = vec![0.0; LANES * k];
    for (first_row, panel) in (first_row..n).step_by(LANES).zip(panels) {
        let num_rows = LANES.min(n - first_row);
        read_rows(first_row, &mut rows[..num_rows * k])?;
        rows[num_rows * k..].fill(0.0);
        for (block_idx, block) in panel.chunks_exact_mut(block_bytes(format)).enumerate() {
            for row in 0..ROWS.min(k - block_idx * ROWS) {
                let column = block_idx * ROWS + row;
                let group = std::array::from_fn(|lane| rows[lane * k + column]);
                block::encode_group(format, Exponents::OfRows, row, &group, block);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::bfp::{GROUP, decode_group, encode_group};
    use crate::convert::{bf16_from_f32, f32_from_bf16};
    use crate::testing::{FORMATS, assert_same_bits, pack, unpack, values};

    /// What a format keeps of a matrix `[n, k]`, by its definition.
    fn rounded(format: Format, n: usize, k: usize, rows: &[f32]) -> Vec<f32> {
        let mut out = rows.to_vec();
        match format {
            Format::F32 => {}
            Format::Bf16 => {
                out.iter_mut().for_each(|value| *value = f32_from_bf16(bf16_from_f32(*value)));
            }
            Format::Bfp8 | Format::Bfp4 => {
                for column in 0..k {
                    for first in (0..n).step_by(GROUP) {
                        let at = |lane: usize| (first + lane) * k + column;
                        let inside = |lane: &usize| first + lane < n;
                        let group =
                            std::array::from_fn(
                                |lane| {
                                    if inside(&lane) { rows[at(lane)] } else { 0.0 }
                                },
                            );
                        let group = decode_group(format, &encode_group(format, &group));
                        for lane in (0..GROUP).filter(inside) {
                            out[at(lane)] = group[lane];
                        }
                    }
                }
            }
        }
        out
    }

    #[test]
    fn rows_are_what_the_format_keeps() {
        for format in FORMATS {
            for (n, k) in [(1, 1), (16, 16), (17, 33), (50, 7), (200, 5)] {
                let rows = values(9, n * k);
                let packed = pack(format, n, k, &rows);
                assert_eq!((packed.n(), packed.k(), packed.format()), (n, k, format));
                let what = format!("{format:?} [{n}, {k}]");
                assert_same_bits(&unpack(&packed), &rounded(format, n, k, &rows), &what);
            }
        }
    }

    #[test]
    fn bits_per_weight_are_as_promised() {
        for (format, bits) in FORMATS.into_iter().zip([32.0, 16.0, 8.5, 4.5]) {
            let packed = pack(format, 64, 256, &values(1, 64 * 256));
            assert_eq!(packed.bytes() as f64 * 8.0 / (64.0 * 256.0), bits, "{format:?}");
        }
    }

    /// FNV-1a.
    fn hash(bytes: &[u8]) -> u64 {
        bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }

    #[test]
    fn a_layout_has_the_bytes_that_its_version_stands_for() {
        let packed =
            FORMATS.map(|format| hash(pack(format, 50, 40, &values(6, 50 * 40)).packed_bytes()));
        assert_eq!(
            (LAYOUT_VERSION, packed),
            (
                1,
                [
                    0x4656_0194_a2bf_5437,
                    0xf065_2906_9630_4900,
                    0xdd70_efce_c2b5_9115,
                    0xda34_17a4_224a_e4b6
                ]
            ),
            "files of packed weights are out of date: raise LAYOUT_VERSION with the hashes"
        );
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri maps no files")]
    fn a_mapped_matrix_is_the_one_that_was_packed() {
        for format in FORMATS {
            let packed = pack(format, 50, 40, &values(6, 50 * 40));
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&[[0xff; 64].as_slice(), packed.packed_bytes(), &[0xff]].concat())
                .unwrap();
            let file = Arc::new(MappedFile::new(&file).unwrap());
            let range = 64..64 + packed.bytes();
            let map = |shape, range| PackedMatrix::from_mapped(format, shape, &file, range);
            let mapped = map([50, 40], range.clone()).unwrap();
            assert_eq!((mapped.n(), mapped.k(), mapped.format()), (50, 40, format));
            assert_same_bits(&unpack(&mapped), &unpack(&packed), &format!("{format:?}"));
            // The same number of panels and blocks is the same number of bytes.
            assert!(map([49, 33], range.clone()).is_some());
            for shape in [[48, 40], [50, 49], [0, 40], [50, 0], [usize::MAX, usize::MAX]] {
                assert!(map(shape, range.clone()).is_none(), "{shape:?}");
            }
            for range in [range.start..range.end - 1, 63..range.end - 1, 128..range.end + 64] {
                assert!(map([50, 40], range.clone()).is_none(), "{range:?}");
            }
            assert!(map([0, 40], 64..64).is_none());
        }
    }

    #[test]
    fn an_error_of_the_reader_is_returned() {
        for num_threads in [1, 3] {
            let pool = Pool::new(num_threads);
            let result = PackedMatrix::pack(&pool, Format::Bf16, [4000, 2], &|first_row, rows| {
                rows.fill(1.0);
                if first_row == 2032 { Err("row 2032 is damaged") } else { Ok(()) }
            });
            assert_eq!(result.err(), Some("row 2032 is damaged"));
        }
    }

    #[test]
    fn tiny_groups_flush_and_a_nan_shows_in_its_whole_group() {
        let mut rows = vec![1e-37; 17];
        rows[16] = f32::NAN;
        let packed = pack(Format::Bfp8, 17, 1, &rows);
        let unpacked = unpack(&packed);
        assert!(unpacked[..16].iter().all(|&value| value == 0.0));
        assert!(unpacked[16].is_nan());
    }
}
