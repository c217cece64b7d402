//! Weights, packed once so that a kernel reads them front to back.

use crate::aligned::AlignedBuffer;
use crate::block::{self, Exponents, ROWS, block_bytes};
use crate::lanes::LANES;

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
    data: AlignedBuffer,
}

impl PackedMatrix {
    /// Packs the matrix whose rows `read_rows(first_row, rows)` writes: `rows`
    /// is `[r, k]`, r at most 16, and is asked for in order, each row once.
    ///
    /// # Errors
    /// The first error of `read_rows`.
    ///
    /// # Panics
    /// If `n` or `k` is 0.
    pub fn pack<E>(
        format: Format,
        n: usize,
        k: usize,
        read_rows: &mut dyn FnMut(usize, &mut [f32]) -> Result<(), E>,
    ) -> Result<Self, E> {
        assert!(n > 0 && k > 0, "a matrix [{n}, {k}] has no values");
        let num_panels = n.div_ceil(LANES);
        let blocks_per_panel = k.div_ceil(ROWS);
        let panel_bytes = blocks_per_panel * block_bytes(format);
        let mut data = AlignedBuffer::zeroed(num_panels * panel_bytes);
        // [16, k]; rows past n stay 0.
        let mut rows = vec![0.0; LANES * k];
        for (panel_idx, panel) in
            data.as_mut_slice().chunks_exact_mut(panel_bytes).take(num_panels).enumerate()
        {
            let first_row = panel_idx * LANES;
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
        Ok(Self { format, n, k, blocks_per_panel, data })
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

    /// Bytes of memory it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.data.num_bytes()
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
