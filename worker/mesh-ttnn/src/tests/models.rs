//! The five models in miniature: real ratios of heads, widths that divide into
//! whole tiles on 8 chips, random weights.

use llama::tiny::{TinyModel, family};
use llama::{Checkpoint, DTypePolicy, Llama3Size, LlamaConfig, LoadOptions, Optimizations, Runner};
use mesh::{Mesh, SequenceSlice, StepBatch, StepOutput};
use mesh_cpu::CpuMesh;
use tempfile::TempDir;

use crate::layout::Chip;
use crate::reference::ReferenceOps;
use crate::spec::Grid;
use crate::{TtnnMesh, TtnnOptions, WeightCacheDir};

pub(super) const BLOCK_SIZE: usize = 32;
pub(super) const MAX_MODEL_LEN: usize = 512;
const NUM_BLOCKS: usize = 64;

/// A miniature on disk.
pub(super) struct Miniature {
    pub(super) size: Llama3Size,
    pub(super) checkpoint: Checkpoint,
    _directory: TempDir,
}

/// Shapes of the miniature.
pub(super) fn config(size: Llama3Size) -> LlamaConfig {
    use Llama3Size::{B1, B3, B8, B11, B70};
    let (hidden_size, head_dim) = match size {
        B1 => (2048, 64),
        B3 => (768, 64),
        // Wo by its output on 8 chips, as 1B; 11B's text tower by its input.
        B8 => (2048, 32),
        B11 => (512, 64),
        // Wide enough for norms part by part.
        B70 => (8192, 32),
    };
    let real = family::config(size);
    LlamaConfig {
        hidden_size,
        head_dim,
        intermediate_size: 512,
        num_hidden_layers: 2,
        vocab_size: 512,
        max_position_embeddings: MAX_MODEL_LEN,
        num_cross_attention_layers: 0,
        // With random weights a token's own logit would drown all others.
        tie_word_embeddings: false,
        ..real
    }
}

impl Miniature {
    pub(super) fn new(size: Llama3Size) -> Self {
        let directory = tempfile::tempdir().unwrap();
        TinyModel::new(config(size), 11).write_hugging_face(directory.path()).unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        Self { size, checkpoint, _directory: directory }
    }

    fn options(&self, optimizations: Optimizations) -> LoadOptions {
        // A miniature has not the sizes by which a model is recognised.
        let policy = DTypePolicy::choose(&family::config(self.size), optimizations);
        LoadOptions {
            policy,
            max_model_len: MAX_MODEL_LEN,
            kv_blocks: NUM_BLOCKS,
            kv_block_size: BLOCK_SIZE,
        }
    }

    pub(super) fn on_cpu(&self, chips: usize, optimizations: Optimizations) -> Model<CpuMesh> {
        Model::load(CpuMesh::new(chips, 2).unwrap(), self, optimizations)
    }

    pub(super) fn on_ttnn(
        &self,
        chips: usize,
        optimizations: Optimizations,
    ) -> Model<TtnnMesh<ReferenceOps>> {
        self.on_ttnn_with(chips, optimizations, None)
    }

    pub(super) fn on_ttnn_with(
        &self,
        chips: usize,
        optimizations: Optimizations,
        weight_cache: Option<WeightCacheDir>,
    ) -> Model<TtnnMesh<ReferenceOps>> {
        let options = TtnnOptions {
            device: "test".into(),
            chip: Chip { grid: Grid { x: 8, y: 8 }, dram_banks: 12 },
            max_prefill_chunk: MAX_MODEL_LEN,
            weight_cache,
            without_weights: false,
        };
        Model::load(TtnnMesh::new(ReferenceOps::new(chips), options), self, optimizations)
    }
}

/// A loaded miniature.
pub(super) struct Model<M: Mesh> {
    pub(super) runner: Runner<M>,
}

/// Tokens of one sequence in a step.
pub(super) struct Piece<'a> {
    pub(super) tokens: &'a [u32],
    pub(super) first_position: usize,
    pub(super) block_table: &'a [u32],
}

impl<M: Mesh> Model<M> {
    fn load(mesh: M, miniature: &Miniature, optimizations: Optimizations) -> Self {
        let options = miniature.options(optimizations);
        let runner = Runner::load(mesh, &miniature.checkpoint, &options, &mut |_| {}).unwrap();
        Self { runner }
    }

    /// Logits of every row.
    pub(super) fn step(&mut self, pieces: &[Piece<'_>]) -> Vec<Vec<f32>> {
        let rows = pieces.iter().map(|piece| piece.tokens.len()).sum();
        self.rows(pieces, (0..rows).collect())
    }

    /// Logits of some rows.
    pub(super) fn rows(&mut self, pieces: &[Piece<'_>], logit_rows: Vec<usize>) -> Vec<Vec<f32>> {
        let out = self.run(StepBatch { logit_rows, ..batch(pieces) });
        out.logits.chunks(self.runner.config().vocab_size).map(<[f32]>::to_vec).collect()
    }

    pub(super) fn run(&mut self, batch: StepBatch) -> StepOutput {
        let mut out = StepOutput::default();
        self.runner.forward(&batch, &mut out).unwrap();
        out
    }
}

/// A step without logits.
pub(super) fn batch(pieces: &[Piece<'_>]) -> StepBatch {
    let mut batch = StepBatch::default();
    for piece in pieces {
        batch.sequences.push(SequenceSlice {
            first_row: batch.token_ids.len(),
            num_tokens: piece.tokens.len(),
            first_position: piece.first_position,
            block_table: piece.block_table.to_vec(),
        });
        batch.token_ids.extend(piece.tokens);
    }
    batch
}

/// Token ids that depend on the seed alone.
pub(super) fn tokens(seed: u32, count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i * 97 + seed * 31 + i * i % 53) % 512).collect()
}
