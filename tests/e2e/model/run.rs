//! The packaged model on a CPU mesh, driven by hand.

use llama::{Checkpoint, DTypePolicy, LoadOptions, Optimizations, Runner};
use mesh::{SequenceSlice, StepBatch, StepOutput};
use mesh_cpu::CpuMesh;

const THREADS: usize = 2;
const BLOCK_SIZE: usize = 32;
const MAX_MODEL_LEN: usize = 1024;

/// A model with one sequence's worth of cache.
pub(crate) struct Model {
    runner: Runner<CpuMesh>,
}

/// How a sequence is fed.
pub(crate) enum Feed<'a> {
    /// All ids in one step.
    Whole(&'a [u32]),
    /// In steps of this many ids.
    Chunks(&'a [u32], usize),
}

impl Model {
    pub(crate) fn load(chips: usize, optimizations: Optimizations) -> Self {
        let checkpoint = Checkpoint::open(&integration_tests::packaged_model()).expect("opens");
        let options = LoadOptions {
            policy: DTypePolicy::choose(checkpoint.config(), optimizations),
            max_model_len: MAX_MODEL_LEN,
            kv_blocks: MAX_MODEL_LEN / BLOCK_SIZE,
            kv_block_size: BLOCK_SIZE,
        };
        let mesh = CpuMesh::new(chips, THREADS).expect("fits");
        let runner = Runner::load(mesh, &checkpoint, &options, &mut |_| {}).expect("loads");
        Self { runner }
    }

    /// Logits after every id, `[ids, vocab]`, from position 0.
    pub(crate) fn logits(&mut self, feed: &Feed<'_>) -> Vec<Vec<f32>> {
        let (ids, chunk) = match *feed {
            Feed::Whole(ids) => (ids, ids.len()),
            Feed::Chunks(ids, chunk) => (ids, chunk),
        };
        let mut rows = Vec::new();
        for (index, part) in ids.chunks(chunk).enumerate() {
            rows.extend(self.step(part, index * chunk));
        }
        rows
    }

    /// Greedy ids after a prompt, end of turn ignored.
    pub(crate) fn greedy(&mut self, prompt: &[u32], count: usize) -> Vec<u32> {
        let mut answer = Vec::new();
        let mut last = self.step(prompt, 0).pop().expect("one row a token");
        for position in prompt.len()..prompt.len() + count {
            let token = argmax(&last);
            answer.push(token);
            last = self.step(&[token], position).pop().expect("one row a token");
        }
        answer
    }

    fn step(&mut self, ids: &[u32], first_position: usize) -> Vec<Vec<f32>> {
        let blocks = (first_position + ids.len()).div_ceil(BLOCK_SIZE);
        let batch = StepBatch {
            token_ids: ids.to_vec(),
            sequences: vec![SequenceSlice {
                first_row: 0,
                num_tokens: ids.len(),
                first_position,
                // Out of order on purpose: nothing may rely on neighbours.
                block_table: (0..u32::try_from(blocks).expect("few")).map(|b| b ^ 1).collect(),
            }],
            logit_rows: (0..ids.len()).collect(),
            choices: None,
        };
        let mut out = StepOutput::default();
        self.runner.forward(&batch, &mut out).expect("the CPU mesh does not fail");
        out.logits.chunks(self.runner.config().vocab_size).map(<[f32]>::to_vec).collect()
    }
}

/// The highest logit, the lowest id on a tie.
pub(crate) fn argmax(row: &[f32]) -> u32 {
    let mut best = 0;
    for (id, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = id;
        }
    }
    u32::try_from(best).expect("a vocabulary fits 32 bits")
}

/// Natural logarithm of the probability of `id`.
pub(crate) fn logprob(row: &[f32], id: u32) -> f64 {
    let top = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = row.iter().map(|&x| (f64::from(x) - top).exp()).sum();
    f64::from(row[id as usize]) - top - sum.ln()
}
