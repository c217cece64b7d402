//! Choosing tokens on the chips.

use half::bf16;
use mesh::{Choice, MAX_CANDIDATES, MeshError};

use crate::chips::Chips;
use crate::layout::DECODE_ROWS;
use crate::ops::{Ops, SamplingTensors};
use crate::spec::{DataType, HostData, HostMatrix, Layout, MemoryConfig, Spread};
use crate::step::{counts, upload};

/// Candidates of a chip.
const CANDIDATES: usize = MAX_CANDIDATES as usize;
/// The one seed that the device takes for none.
const NO_SEED: u32 = u32::MAX;

/// How the rows of a step are chosen: always the same memory, so that a record
/// of a step stays right.
pub(crate) struct SamplingInputs<T> {
    top_k: T,
    top_p: T,
    inverse_temperature: T,
    seeds: T,
    /// What to add to an index on a chip, int32 tiles `[1, 1, 32, 32·chips]`.
    offsets: T,
}

/// What was chosen of a step, on the chips.
pub(crate) struct Chosen<T> {
    /// uint32 `[1, 1, 32, 1]`: the largest logit of each row.
    greedy: T,
    /// uint32 `[1, 1, 1, 32]`: a drawn one, if any row draws.
    sampled: Option<T>,
}

impl<T: Clone> SamplingInputs<T> {
    /// Memory for them, of a vocabulary of which each chip has `vocab_on_chip`.
    pub(crate) fn new<O: Ops<Tensor = T>>(
        ops: &mut O,
        vocab_on_chip: usize,
    ) -> Result<Self, MeshError> {
        let num_chips = ops.num_chips();
        let row = (0..num_chips).flat_map(|chip| [(chip * vocab_on_chip) as i32; CANDIDATES]);
        let row: Vec<i32> = row.collect();
        let offsets = HostMatrix {
            shape: [1, 1, DECODE_ROWS, row.len()],
            rank: 4,
            data: HostData::Int32(row.repeat(DECODE_ROWS)),
            dtype: DataType::Int32,
            layout: Layout::Tile,
            spread: Spread::Replicated,
        };
        let [top_k, top_p, inverse_temperature, seeds] = parameters(&[]);
        Ok(Self {
            top_k: upload(ops, top_k)?,
            top_p: upload(ops, top_p)?,
            inverse_temperature: upload(ops, inverse_temperature)?,
            seeds: upload(ops, seeds)?,
            offsets: upload(ops, offsets)?,
        })
    }

    /// Writes how each row draws; `choices` by row of the tile.
    pub(crate) fn write<O: Ops<Tensor = T>>(
        &mut self,
        ops: &mut O,
        choices: &[(usize, Choice)],
    ) -> Result<(), MeshError> {
        let into = [&self.top_k, &self.top_p, &self.inverse_temperature, &self.seeds];
        for (matrix, into) in parameters(choices).into_iter().zip(into) {
            let packed = ops.pack(matrix)?;
            ops.write(&packed, into)?;
        }
        Ok(())
    }
}

/// Top-k, top-p, 1 / temperature and seed of 32 rows; a row that does not draw
/// takes its largest.
fn parameters(choices: &[(usize, Choice)]) -> [HostMatrix; 4] {
    let mut k = vec![1; DECODE_ROWS];
    let mut p = vec![bf16::ONE; DECODE_ROWS];
    let mut inverse = vec![bf16::ONE; DECODE_ROWS];
    let mut seeds: Vec<u32> = (0..DECODE_ROWS as u32).collect();
    for &(row, choice) in choices {
        if let Choice::Sampled { temperature, top_k, top_p, seed } = choice {
            k[row] = top_k.clamp(1, MAX_CANDIDATES);
            p[row] = bf16::from_f32(top_p);
            inverse[row] = bf16::from_f32(temperature.recip());
            seeds[row] = ((seed >> 32) ^ seed) as u32 % NO_SEED;
        }
    }
    [counts(k), fractions(p), fractions(inverse), counts(seeds)]
}

/// bf16 `[n]`
fn fractions(values: Vec<bf16>) -> HostMatrix {
    HostMatrix {
        shape: [1, 1, 1, values.len()],
        rank: 1,
        data: HostData::BFloat16(values),
        dtype: DataType::BFloat16,
        layout: Layout::RowMajor,
        spread: Spread::Replicated,
    }
}

impl<O: Ops> Chips<O> {
    /// Chooses of one tile of logits, which the chips hold in slices.
    pub(crate) fn choose(
        &mut self,
        logits: &O::Tensor,
        inputs: &SamplingInputs<O::Tensor>,
        draws: bool,
    ) -> Result<Chosen<O::Tensor>, MeshError> {
        let whole = if self.count() == 1 {
            logits.clone()
        } else {
            self.ops.all_gather(logits, &MemoryConfig::DRAM)?
        };
        let rows = self.ops.untilize(&whole)?;
        let greedy = self.ops.argmax(&rows)?;
        let sampled = if draws { Some(self.sample(logits, inputs)?) } else { None };
        Ok(Chosen { greedy, sampled })
    }

    /// Draws one of the most likely of all chips' most likely.
    fn sample(
        &mut self,
        logits: &O::Tensor,
        inputs: &SamplingInputs<O::Tensor>,
    ) -> Result<O::Tensor, MeshError> {
        let logits = self.ops.typecast(logits, DataType::BFloat16)?;
        let [mut values, mut indices] = self.ops.topk_32(&logits)?;
        if self.count() > 1 {
            values = self.ops.all_gather(&values, &MemoryConfig::DRAM)?;
            indices = self.ops.all_gather(&indices, &MemoryConfig::DRAM)?;
        }
        let indices = self.ops.offset_indices(&indices, &inputs.offsets)?;
        let indices = self.ops.untilize(&indices)?;
        let parameters = SamplingTensors {
            top_k: &inputs.top_k,
            top_p: &inputs.top_p,
            inverse_temperature: &inputs.inverse_temperature,
            seeds: &inputs.seeds,
        };
        self.ops.sampling(&values, &indices, &parameters)
    }

    /// The chosen id of each of `choices`, by row of the tile.
    pub(crate) fn read_chosen(
        &mut self,
        chosen: &Chosen<O::Tensor>,
        choices: &[(usize, Choice)],
        out: &mut Vec<u32>,
    ) -> Result<(), MeshError> {
        let greedy = self.ops.read_ids(&chosen.greedy, 0)?;
        let sampled = match &chosen.sampled {
            Some(sampled) => self.ops.read_ids(sampled, 0)?,
            None => Vec::new(),
        };
        for &(row, choice) in choices {
            let ids = if choice == Choice::Greedy { &greedy } else { &sampled };
            let missing = || MeshError::Device(format!("no token was chosen for row {row}"));
            out.push(*ids.get(row).ok_or_else(missing)?);
        }
        Ok(())
    }
}
