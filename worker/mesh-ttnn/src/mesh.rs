//! `ttnn`'s chips as a [`Mesh`]: the graph's operations, and what is between
//! steps.

use std::fmt;
use std::time::Instant;

use mesh::{
    AttentionShape, ColumnParallel, DType, KvCacheShape, Matrix, Mesh, MeshDescription, MeshError,
    MeshStatus, Partial, Replicated, RowParallel, Sharded, StepBatch, StepOutput, StepRules,
    WeightCacheUse,
};

use crate::cache::{WeightCache, WeightCacheDir};
use crate::chips::Chips;
use crate::choose::SamplingInputs;
use crate::kv_cache::{KvCache, Paging, Rope, check_cache, chip_heads, doubled, transformation};
use crate::layout::{Chip, DECODE_ROWS, PREFILL_MULTIPLE};
use crate::ops::{Ops, TraceId};
use crate::readback::{choices, fetch, read_rows, tile_of};
use crate::record::{Ending, Left, Record, Records};
use crate::spec::{DataType, Layout, MemoryConfig, TILE};
use crate::step::{DecodeInputs, PageTable, Step, StepKind, prefill, upload};
use crate::tensor::Tensor;
use crate::weight::Weight;

/// How a mesh is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TtnnOptions {
    /// "N150", "N300" or "T3K", for people.
    pub device: String,
    /// The cores and banks of a chip.
    pub chip: Chip,
    /// Most tokens of a prompt that one step computes.
    pub max_prefill_chunk: usize,
    /// Where prepared weights are kept; nowhere, if not said.
    pub weight_cache: Option<WeightCacheDir>,
    /// Takes memory for the weights and puts nothing into it, to see whether a
    /// model fits and what its steps call; the checkpoint's are not read.
    pub without_weights: bool,
}

/// Tenstorrent chips under one controller.
///
/// Activations are bf16, so that results differ from the CPU mesh's within the
/// formats' rounding, and between numbers of chips: partial sums are rounded
/// before they cross chips. A row of a decode does not depend on the others; a
/// prompt computed in chunks agrees with a whole one within rounding.
pub struct TtnnMesh<O: Ops> {
    pub(crate) cache: WeightCache,
    pub(crate) without_weights: bool,
    device: String,
    max_prefill_chunk: usize,
    logits_dtype: DType,
    /// Format of the MLP's product.
    pub(crate) activation: DataType,
    paging: Option<Paging>,
    max_positions: usize,
    pub(crate) vocab_on_chip: usize,
    inputs: Option<Inputs<O::Tensor>>,
    step: Option<Step<O::Tensor>>,
    num_rows: usize,
    records: Records<O::Tensor>,
    recording: Option<TraceId>,
    begun: Instant,
    status: MeshStatus,
    /// Last, so that the devices close after all that lies on them has gone.
    pub(crate) chips: Chips<O>,
}

/// Memory that every decode step reads.
struct Inputs<T> {
    table: PageTable,
    decode: DecodeInputs<T>,
    sampling: SamplingInputs<T>,
}

impl<O: Ops> TtnnMesh<O> {
    /// Chips that hold nothing yet.
    pub fn new(ops: O, options: TtnnOptions) -> Self {
        let TtnnOptions { device, chip, max_prefill_chunk, weight_cache, without_weights } =
            options;
        let cache = match weight_cache {
            Some(cache) => WeightCache::open(cache, ops.num_chips()),
            None => WeightCache::Off,
        };
        Self {
            chips: Chips { ops, chip },
            cache,
            without_weights,
            device,
            max_prefill_chunk,
            logits_dtype: DType::Bfp8,
            activation: DataType::BFloat8B,
            paging: None,
            max_positions: 0,
            vocab_on_chip: 0,
            inputs: None,
            step: None,
            num_rows: 0,
            records: Records::default(),
            recording: None,
            begun: Instant::now(),
            status: MeshStatus::default(),
        }
    }

    /// The operations themselves, for those who look at what they do.
    pub fn ops_mut(&mut self) -> &mut O {
        &mut self.chips.ops
    }

    pub(crate) fn set_logits_dtype(&mut self, dtype: DType) {
        self.logits_dtype = dtype;
    }

    fn step(&mut self) -> (&mut Chips<O>, &mut Step<O::Tensor>) {
        (&mut self.chips, self.step.as_mut().expect("the graph begins a step first"))
    }

    /// Reads what the step left on the chips.
    fn fetch(
        &mut self,
        ending: Ending,
        first_row: usize,
        batch: &StepBatch,
        out: &mut StepOutput,
    ) -> Result<(), MeshError> {
        let Record::Taken { left, .. } = self.records.of(ending) else {
            panic!("what is fetched was recorded");
        };
        fetch(&mut self.chips, left, first_row, batch, out)
    }

    fn finish_step(&mut self, dispatched: Instant) {
        self.step = None;
        self.status.dispatch = dispatched - self.begun;
        self.status.read = dispatched.elapsed();
    }
}

impl<O: Ops> Mesh for TtnnMesh<O> {
    type Tensor = Tensor<O::Tensor>;
    type Weight = Weight<O::Tensor>;
    type Rope = Rope<O::Tensor>;
    type KvCache = KvCache<O::Tensor>;

    fn describe(&self) -> MeshDescription {
        let block_size = self.paging.map_or(TILE, |paging| paging.block_size);
        MeshDescription {
            device: self.device.clone(),
            num_chips: self.chips.count(),
            logits_dtype: self.logits_dtype,
            rules: StepRules {
                mixes_prefill_with_decode: false,
                max_prefill_seqs: Some(1),
                decode_rows: Some(DECODE_ROWS),
                // Block sizes are powers of two.
                prefill_multiple: PREFILL_MULTIPLE.max(block_size),
                max_prefill_chunk: Some(self.max_prefill_chunk),
                chooses: true,
                compiles: true,
            },
        }
    }

    fn status(&self) -> MeshStatus {
        let counts = self.chips.ops.program_counts();
        MeshStatus { programs: counts.programs, kernels: counts.kernels, ..self.status }
    }

    fn load_column_parallel(
        &mut self,
        parts: &[&dyn Matrix],
        dtype: DType,
    ) -> Result<ColumnParallel<Self::Weight>, MeshError> {
        self.fused(parts, dtype).map(ColumnParallel)
    }

    fn load_gate_up(
        &mut self,
        gate: &dyn Matrix,
        up: &dyn Matrix,
        dtype: DType,
    ) -> Result<ColumnParallel<Self::Weight>, MeshError> {
        self.gate_and_up(gate, up, dtype).map(ColumnParallel)
    }

    fn load_lm_head(
        &mut self,
        matrix: &dyn Matrix,
        dtype: DType,
    ) -> Result<ColumnParallel<Self::Weight>, MeshError> {
        self.lm_head(matrix, dtype).map(ColumnParallel)
    }

    fn load_row_parallel(
        &mut self,
        matrix: &dyn Matrix,
        dtype: DType,
    ) -> Result<RowParallel<Self::Weight>, MeshError> {
        self.row_parallel(matrix, dtype).map(RowParallel)
    }

    fn load_embedding(
        &mut self,
        table: &dyn Matrix,
        dtype: DType,
    ) -> Result<Sharded<Self::Weight>, MeshError> {
        self.embedding(table, dtype).map(Sharded)
    }

    fn load_gain(&mut self, gain: &dyn Matrix) -> Result<Replicated<Self::Weight>, MeshError> {
        self.gain(gain).map(Replicated)
    }

    fn load_rope(
        &mut self,
        cos: &[f32],
        sin: &[f32],
        head_dim: usize,
    ) -> Result<Replicated<Self::Rope>, MeshError> {
        self.max_positions = cos.len() / (head_dim / 2);
        let ops = &mut self.chips.ops;
        let cos = upload(ops, doubled(cos, head_dim))?;
        let sin = upload(ops, doubled(sin, head_dim))?;
        let per_user = ops.pack(transformation(DECODE_ROWS))?;
        let decode_transformation = ops.to_device(&per_user, &self.chips.chip.users(TILE, TILE))?;
        let prefill_transformation = upload(ops, transformation(1))?;
        Ok(Replicated(Rope { cos, sin, decode_transformation, prefill_transformation }))
    }

    fn new_kv_cache(
        &mut self,
        cache: KvCacheShape,
        attention: AttentionShape,
    ) -> Result<Self::KvCache, MeshError> {
        let heads = chip_heads(attention, self.chips.count())?;
        check_cache(cache)?;
        // One more, which no sequence has.
        let blocks = cache.num_blocks + 1;
        let spare_block = i32::try_from(cache.num_blocks)
            .map_err(|_| MeshError::DoesNotFit("block ids are below 2³¹".into()))?;
        let shape = [blocks, heads.num_kv_heads, cache.block_size, heads.head_dim];
        let dtype = DataType::from(cache.dtype);
        let mut layers = Vec::with_capacity(cache.num_layers);
        for _ in 0..cache.num_layers {
            let mut zeros =
                || self.chips.ops.zeros(shape, dtype, Layout::Tile, &MemoryConfig::DRAM);
            layers.push([zeros()?, zeros()?]);
        }
        self.paging = Some(Paging { block_size: cache.block_size, spare_block });
        Ok(KvCache { layers, heads, dtype })
    }

    /// Also makes the memory that every step reads: it must be there before a
    /// step is recorded.
    fn finish_loading(&mut self) -> Result<WeightCacheUse, MeshError> {
        if let Some(paging) = self.paging {
            let table = PageTable::new(paging, self.max_positions);
            let ops = &mut self.chips.ops;
            let decode = DecodeInputs::new(ops, &table)?;
            let sampling = SamplingInputs::new(ops, self.vocab_on_chip)?;
            self.inputs = Some(Inputs { table, decode, sampling });
        }
        Ok(self.cache.finish())
    }

    fn begin_step(&mut self, batch: &StepBatch, out: &mut StepOutput) -> Result<bool, MeshError> {
        self.begun = Instant::now();
        self.num_rows = batch.num_tokens();
        let inputs = self.inputs.as_mut().expect("a step comes after loading");
        let ops = &mut self.chips.ops;
        let ending = Ending::of(batch);
        if ending == Ending::Drawn {
            // A prompt's row is known only once the graph has chosen its tile.
            let first_row = if batch.is_decode() { 0 } else { tile_of(batch) };
            inputs.sampling.write(ops, &choices(batch, first_row))?;
        }
        if !batch.is_decode() {
            self.step = Some(prefill(ops, &inputs.table, batch)?);
            self.status.inputs = self.begun.elapsed();
            return Ok(false);
        }
        assert!(batch.sequences.len() <= DECODE_ROWS, "a decode has at most {DECODE_ROWS} rows");
        inputs.decode.write(ops, &inputs.table, batch)?;
        self.status.inputs = self.begun.elapsed();
        match self.records.of(ending) {
            Record::Taken { trace, .. } => {
                ops.execute_trace(*trace)?;
                let dispatched = Instant::now();
                self.fetch(ending, 0, batch, out)?;
                self.finish_step(dispatched);
                return Ok(true);
            }
            Record::Compiled if ops.can_trace() => self.recording = Some(ops.begin_trace()?),
            Record::Compiled | Record::New => {}
        }
        self.step = Some(inputs.decode.step());
        Ok(false)
    }

    fn embed(
        &mut self,
        table: &Sharded<Self::Weight>,
        _batch: &StepBatch,
    ) -> Result<Sharded<Self::Tensor>, MeshError> {
        let (chips, step) = self.step();
        chips.embed(table.0.embedding(), step).map(Sharded)
    }

    fn rms_norm(
        &mut self,
        x: &Sharded<Self::Tensor>,
        gain: &Replicated<Self::Weight>,
        eps: f32,
    ) -> Result<Replicated<Self::Tensor>, MeshError> {
        self.chips.rms_norm(&x.0, gain.0.gain(), eps).map(Replicated)
    }

    fn column_linear(
        &mut self,
        x: &Replicated<Self::Tensor>,
        weight: &ColumnParallel<Self::Weight>,
    ) -> Result<Sharded<Self::Tensor>, MeshError> {
        self.chips.linear(&x.0, weight.0.linear()).map(Sharded)
    }

    fn attention(
        &mut self,
        qkv: Sharded<Self::Tensor>,
        rope: &Replicated<Self::Rope>,
        cache: &mut Self::KvCache,
        layer: usize,
        _batch: &StepBatch,
    ) -> Result<Sharded<Self::Tensor>, MeshError> {
        let (chips, step) = self.step();
        chips.attention(qkv.0, &rope.0, cache, layer, step).map(Sharded)
    }

    fn row_linear(
        &mut self,
        x: &Sharded<Self::Tensor>,
        weight: &RowParallel<Self::Weight>,
    ) -> Result<Partial<Self::Tensor>, MeshError> {
        self.chips.linear(&x.0, weight.0.linear()).map(Partial)
    }

    fn silu_mul(
        &mut self,
        gate_up: Sharded<Self::Tensor>,
    ) -> Result<Sharded<Self::Tensor>, MeshError> {
        self.chips.silu_mul(gate_up.0, self.activation).map(Sharded)
    }

    fn reduce_scatter(
        &mut self,
        x: Partial<Self::Tensor>,
    ) -> Result<Sharded<Self::Tensor>, MeshError> {
        self.chips.reduce_scatter(x.0).map(Sharded)
    }

    fn all_gather(
        &mut self,
        x: Sharded<Self::Tensor>,
    ) -> Result<Replicated<Self::Tensor>, MeshError> {
        self.chips.all_gather(x.0).map(Replicated)
    }

    fn add(
        &mut self,
        x: Sharded<Self::Tensor>,
        y: &Sharded<Self::Tensor>,
    ) -> Result<Sharded<Self::Tensor>, MeshError> {
        self.chips.add(&x.0, &y.0).map(Sharded)
    }

    fn select_rows(
        &mut self,
        x: Sharded<Self::Tensor>,
        rows: &[usize],
    ) -> Result<Sharded<Self::Tensor>, MeshError> {
        self.chips.select_rows(x.0, rows).map(Sharded)
    }

    fn read_logits(
        &mut self,
        logits: Sharded<Self::Tensor>,
        out: &mut Vec<f32>,
    ) -> Result<(), MeshError> {
        let logits = self.chips.logits(logits.0)?;
        read_rows(&mut self.chips, &logits, 0..self.num_rows, out)
    }

    fn read(
        &mut self,
        logits: Sharded<Self::Tensor>,
        batch: &StepBatch,
        out: &mut StepOutput,
    ) -> Result<(), MeshError> {
        let ending = Ending::of(batch);
        let first_row = logits.0.first_row;
        let is_decode = matches!(&self.step, Some(Step { kind: StepKind::Decode, .. }));
        let logits = self.chips.logits(logits.0)?;
        let left = match ending {
            // Rows are read in half the time that tiles take.
            Ending::Logits => Left::Logits(self.chips.ops.untilize(&logits)?),
            Ending::Greedy | Ending::Drawn => {
                let inputs = self.inputs.as_ref().expect("a step comes after loading");
                let draws = ending == Ending::Drawn;
                Left::Chosen(self.chips.choose(&logits, &inputs.sampling, draws)?)
            }
        };
        // What was looked up for this step goes before a record is closed.
        self.step = None;
        let dispatched;
        if let Some(trace) = self.recording.take() {
            self.chips.ops.end_trace(trace)?;
            self.chips.ops.execute_trace(trace)?;
            dispatched = Instant::now();
            *self.records.of(ending) = Record::Taken { trace, left };
            self.fetch(ending, first_row, batch, out)?;
        } else {
            dispatched = Instant::now();
            fetch(&mut self.chips, &left, first_row, batch, out)?;
            if is_decode {
                *self.records.of(ending) = Record::Compiled;
            }
        }
        self.finish_step(dispatched);
        Ok(())
    }
}

impl<O: Ops> fmt::Debug for TtnnMesh<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TtnnMesh")
            .field("device", &self.device)
            .field("chips", &self.chips.count())
            .finish_non_exhaustive()
    }
}
