//! What a step needs from the host: ids, positions, block tables.

use mesh::{MeshError, SequenceSlice, StepBatch};

use crate::kv_cache::Paging;
use crate::layout::{DECODE_ROWS, padded_prompt};
use crate::ops::Ops;
use crate::spec::{DataType, HostData, HostMatrix, Layout, MemoryConfig, Spread};

/// The step that runs now.
pub(crate) struct Step<T> {
    pub(crate) kind: StepKind,
    /// Token ids, uint32 `[1, 1, 1, rows]`.
    pub(crate) ids: T,
    /// Decode: each user's position, int32 `[32]`. Prefill: of the first row,
    /// `[1]`.
    pub(crate) positions: T,
    /// Position of each row, uint32 `[1, 1, 1, rows]`: what is looked up in the
    /// rotary tables.
    pub(crate) rotation: T,
    /// Blocks of each user, int32 `[32, blocks]` or `[1, blocks]`.
    pub(crate) page_table: T,
    /// Prefill: the blocks that this chunk fills, `[1, blocks]`.
    pub(crate) fill_table: Option<T>,
    /// Cosines and sines of the rows, once they have been looked up.
    pub(crate) rope: Option<[T; 2]>,
}

/// What a step computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StepKind {
    /// One token each of up to 32 users.
    Decode,
    /// A chunk of one prompt.
    Prefill {
        /// With padding.
        rows: usize,
        first_position: usize,
    },
}

/// Where decodes find what they need: always the same memory, so that a record
/// of a step stays right.
pub(crate) struct DecodeInputs<T> {
    ids: T,
    positions: T,
    rotation: T,
    page_table: T,
    /// What `page_table` holds.
    blocks: Vec<i32>,
}

/// How long a row of a page table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageTable {
    pub(crate) paging: Paging,
    /// Blocks of the longest sequence, rounded up to what a read transfers.
    pub(crate) width: usize,
}

impl PageTable {
    pub(crate) fn new(paging: Paging, max_positions: usize) -> Self {
        Self { paging, width: max_positions.div_ceil(paging.block_size).next_multiple_of(8) }
    }

    /// A row: `blocks`, then spare ones.
    fn row(&self, blocks: &[u32]) -> impl Iterator<Item = i32> {
        let spare = self.paging.spare_block;
        let blocks: Vec<i32> =
            blocks.iter().map(|&block| i32::try_from(block).unwrap_or(spare)).collect();
        assert!(blocks.len() <= self.width, "a sequence is no longer than the rotary tables");
        let padding = self.width - blocks.len();
        blocks.into_iter().chain(std::iter::repeat_n(spare, padding))
    }

    fn used<'a>(&self, sequence: &'a SequenceSlice) -> &'a [u32] {
        let positions = sequence.first_position + sequence.num_tokens;
        &sequence.block_table[..positions.div_ceil(self.paging.block_size)]
    }
}

impl<T: Clone> DecodeInputs<T> {
    /// Memory for them.
    pub(crate) fn new<O: Ops<Tensor = T>>(
        ops: &mut O,
        table: &PageTable,
    ) -> Result<Self, MeshError> {
        let blocks = vec![table.paging.spare_block; DECODE_ROWS * table.width];
        Ok(Self {
            ids: upload(ops, row_of_ids(vec![0; DECODE_ROWS]))?,
            positions: upload(ops, positions(vec![0; DECODE_ROWS]))?,
            rotation: upload(ops, row_of_ids(vec![0; DECODE_ROWS]))?,
            page_table: upload(ops, page_table(blocks.clone(), table.width))?,
            blocks,
        })
    }

    /// Writes `batch`'s. Rows without a user decode token 0 at position 0 of the
    /// spare block.
    pub(crate) fn write<O: Ops<Tensor = T>>(
        &mut self,
        ops: &mut O,
        table: &PageTable,
        batch: &StepBatch,
    ) -> Result<(), MeshError> {
        let padded = |mut values: Vec<u32>| {
            values.resize(DECODE_ROWS, 0);
            values
        };
        let at: Vec<u32> = batch.sequences.iter().map(|s| s.first_position as u32).collect();
        let ids = ops.pack(row_of_ids(padded(batch.token_ids.clone())))?;
        ops.write(&ids, &self.ids)?;
        let at = padded(at);
        let as_positions = ops.pack(positions(at.iter().map(|&at| at as i32).collect()))?;
        ops.write(&as_positions, &self.positions)?;
        let as_rows = ops.pack(row_of_ids(at))?;
        ops.write(&as_rows, &self.rotation)?;

        let users = batch.sequences.iter().flat_map(|s| table.row(table.used(s)));
        let mut blocks: Vec<i32> = users.collect();
        blocks.resize(self.blocks.len(), table.paging.spare_block);
        // It changes only when a sequence comes, goes or takes another block.
        if blocks != self.blocks {
            let packed = ops.pack(page_table(blocks.clone(), table.width))?;
            ops.write(&packed, &self.page_table)?;
            self.blocks = blocks;
        }
        Ok(())
    }

    pub(crate) fn step(&self) -> Step<T> {
        Step {
            kind: StepKind::Decode,
            ids: self.ids.clone(),
            positions: self.positions.clone(),
            rotation: self.rotation.clone(),
            page_table: self.page_table.clone(),
            fill_table: None,
            rope: None,
        }
    }
}

/// A chunk of one prompt, uploaded.
pub(crate) fn prefill<O: Ops>(
    ops: &mut O,
    table: &PageTable,
    batch: &StepBatch,
) -> Result<Step<O::Tensor>, MeshError> {
    let [sequence] = batch.sequences.as_slice() else {
        panic!("a step prefills one sequence, not {}", batch.sequences.len());
    };
    let first_position = sequence.first_position;
    let block_size = table.paging.block_size;
    assert!(first_position.is_multiple_of(block_size), "a chunk begins with a block");
    let rows = padded_prompt(sequence.num_tokens);
    let mut ids = batch.token_ids.clone();
    ids.resize(rows, 0);
    // Padding is at the last position that there is, at most: nobody reads it.
    let last = (table.width * block_size - 1).min(first_position + sequence.num_tokens - 1);
    let at = (first_position..first_position + rows).map(|at| at.min(last) as u32).collect();
    let used = table.used(sequence);
    let mut filled: Vec<i32> = table.row(&used[first_position / block_size..]).collect();
    // Padding may go beyond the longest sequence.
    let width = table.width.max(rows.div_ceil(block_size).next_multiple_of(8));
    filled.resize(width, table.paging.spare_block);
    let start = i32::try_from(first_position).expect("positions are below 2³¹");
    Ok(Step {
        kind: StepKind::Prefill { rows, first_position },
        ids: upload(ops, row_of_ids(ids))?,
        positions: upload(ops, positions(vec![start]))?,
        rotation: upload(ops, row_of_ids(at))?,
        page_table: upload(ops, page_table(table.row(used).collect(), table.width))?,
        fill_table: Some(upload(ops, page_table(filled, width))?),
        rope: None,
    })
}

/// `matrix` in DRAM of every chip.
pub(crate) fn upload<O: Ops>(ops: &mut O, matrix: HostMatrix) -> Result<O::Tensor, MeshError> {
    let packed = ops.pack(matrix)?;
    ops.to_device(&packed, &MemoryConfig::DRAM)
}

/// uint32 `[1, 1, 1, n]`
pub(crate) fn row_of_ids(values: Vec<u32>) -> HostMatrix {
    whole_numbers([1, 1, 1, values.len()], 4, HostData::UInt32(values), DataType::UInt32)
}

/// uint32 `[n]`
pub(crate) fn counts(values: Vec<u32>) -> HostMatrix {
    whole_numbers([1, 1, 1, values.len()], 1, HostData::UInt32(values), DataType::UInt32)
}

/// int32 `[n]`
fn positions(values: Vec<i32>) -> HostMatrix {
    whole_numbers([1, 1, 1, values.len()], 1, HostData::Int32(values), DataType::Int32)
}

/// int32 `[n, width]`
fn page_table(values: Vec<i32>, width: usize) -> HostMatrix {
    let shape = [1, 1, values.len() / width, width];
    whole_numbers(shape, 2, HostData::Int32(values), DataType::Int32)
}

fn whole_numbers(shape: [usize; 4], rank: usize, data: HostData, dtype: DataType) -> HostMatrix {
    HostMatrix { shape, rank, data, dtype, layout: Layout::RowMajor, spread: Spread::Replicated }
}
