//! A checkpoint on a CPU mesh, driven as the engine drives it: the prompt in
//! chunks, then token by token.

use llama::{Checkpoint, DTypePolicy, LoadOptions, Runner};
use mesh::{SequenceSlice, StepBatch, StepOutput};
use mesh_cpu::CpuMesh;

const THREADS: usize = 2;
const BLOCK_SIZE: usize = 32;
const MAX_MODEL_LEN: usize = 128;
/// Blocks in no order, as an engine hands them out after a while.
const BLOCK_TABLE: [u32; 4] = [2, 0, 3, 1];

/// A loaded model with room for one sequence.
pub(crate) struct Model {
    runner: Runner<CpuMesh>,
}

impl Model {
    pub(crate) fn load(checkpoint: &Checkpoint, chips: usize, policy: DTypePolicy) -> Self {
        let options = LoadOptions {
            policy,
            max_model_len: MAX_MODEL_LEN,
            kv_blocks: BLOCK_TABLE.len(),
            kv_block_size: BLOCK_SIZE,
        };
        let mesh = CpuMesh::new(chips, THREADS).expect("fits");
        let runner = Runner::load(mesh, checkpoint, &options, &mut |_| {}).expect("loads");
        Self { runner }
    }

    /// Logits after every token, `[tokens, vocab]`: steps of the given numbers
    /// of tokens, and one a step for the rest.
    pub(crate) fn logits(&mut self, tokens: &[u32], chunks: &[usize]) -> Vec<Vec<f32>> {
        let mut rows = Vec::new();
        let (mut position, mut chunks) = (0, chunks.iter().copied());
        while position < tokens.len() {
            let count = chunks.next().unwrap_or(1);
            rows.extend(self.step(&tokens[position..position + count], position));
            position += count;
        }
        rows
    }

    fn step(&mut self, tokens: &[u32], position: usize) -> Vec<Vec<f32>> {
        let batch = StepBatch {
            token_ids: tokens.to_vec(),
            sequences: vec![SequenceSlice {
                first_row: 0,
                num_tokens: tokens.len(),
                first_position: position,
                block_table: BLOCK_TABLE.to_vec(),
            }],
            logit_rows: (0..tokens.len()).collect(),
            choices: None,
        };
        let mut out = StepOutput::default();
        self.runner.forward(&batch, &mut out).expect("runs");
        out.logits.chunks(out.logits.len() / tokens.len()).map(<[f32]>::to_vec).collect()
    }
}
