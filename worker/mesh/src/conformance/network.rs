//! A whole transformer layer with embedding and LM head: what only shows when
//! the operations work together.

use super::Strength;
use super::probe::{assert_close, assert_same, noise, weight_noise};
use super::reference::rope_tables;
use crate::{
    AttentionShape, ColumnParallel, DType, DenseMatrix, KvCacheShape, Mesh, MeshError, Replicated,
    RowParallel, SequenceSlice, Sharded, StepBatch,
};

/// Whole tiles on each of 1, 2, 3, 4, 6 or 8 chips.
const HIDDEN: usize = 768;
const VOCAB: usize = 768;
const BLOCK_SIZE: usize = 32;

/// Rows of a step are the same alone, batched and chunked, through a whole
/// layer, in every weight format.
///
/// # Panics
/// When the law is broken.
pub fn rows_do_not_depend_on_their_batch<M: Mesh>(mesh: &mut M, strength: Strength) {
    let kv_heads = mesh.describe().num_chips;
    for dtype in [DType::F32, DType::Bf16, DType::Bfp8, DType::Bfp4] {
        let mut network = Network::load(mesh, kv_heads, dtype).expect("the network fits");
        let prompts: Vec<Vec<u32>> = [37, 1, 5, 64].map(|len| prompt(len as u64, len)).into();
        let tables: [&[u32]; 4] = [&[4, 1], &[7], &[0], &[3, 6]];
        let alone: Vec<Vec<f32>> = prompts
            .iter()
            .zip(tables)
            .map(|(prompt, table)| network.logits(mesh, &[Chunk::all(prompt, table)]))
            .collect();
        let all: Vec<Chunk<'_>> =
            prompts.iter().zip(tables).map(|(prompt, table)| Chunk::all(prompt, table)).collect();
        let together = network.logits(mesh, &all);
        assert_same(&format!("batched in {dtype}"), &together, &alone.concat(), strength);

        let mut one_by_one = Vec::new();
        for token in 0..prompts[0].len() {
            let chunk = Chunk { prompt: &prompts[0], tokens: token..token + 1, table: tables[0] };
            one_by_one.extend(network.logits(mesh, &[chunk]));
        }
        assert_same(&format!("one by one in {dtype}"), &one_by_one, &alone[0], strength);
    }
}

/// Every number of chips gives the same logits within tolerance.
///
/// # Panics
/// When the law is broken.
pub fn chip_counts_agree<M: Mesh>(
    strength: Strength,
    chip_counts: &[usize],
    make: impl Fn(usize) -> M,
) {
    let kv_heads = chip_counts.iter().copied().fold(1, lcm);
    let prompt = prompt(80, 50);
    let mut logits = chip_counts.iter().map(|&num_chips| {
        let mut mesh = make(num_chips);
        let mut network = Network::load(&mut mesh, kv_heads, DType::F32).expect("it fits");
        network.logits(&mut mesh, &[Chunk::all(&prompt, &[1, 0])])
    });
    let Some(first) = logits.next() else { return };
    let want: Vec<f64> = first.into_iter().map(f64::from).collect();
    for (got, num_chips) in logits.zip(&chip_counts[1..]) {
        let what = format!("logits on {num_chips} chips against {}", chip_counts[0]);
        assert_close(&what, &got, &want, strength.tolerance);
    }
}

fn lcm(a: usize, b: usize) -> usize {
    let gcd =
        (1..=a.min(b)).rev().find(|d| a.is_multiple_of(*d) && b.is_multiple_of(*d)).unwrap_or(1);
    a / gcd * b
}

fn prompt(seed: u64, len: usize) -> Vec<u32> {
    noise(seed, len).into_iter().map(|v| ((v + 1.0) / 2.0 * VOCAB as f32) as u32).collect()
}

/// Tokens of a prompt that one step computes.
struct Chunk<'a> {
    prompt: &'a [u32],
    tokens: std::ops::Range<usize>,
    table: &'a [u32],
}

impl<'a> Chunk<'a> {
    fn all(prompt: &'a [u32], table: &'a [u32]) -> Self {
        Self { prompt, tokens: 0..prompt.len(), table }
    }
}

/// One Llama layer between an embedding and an LM head, random weights.
struct Network<M: Mesh> {
    embedding: Sharded<M::Weight>,
    norm: Replicated<M::Weight>,
    qkv: ColumnParallel<M::Weight>,
    output: RowParallel<M::Weight>,
    gate_up: ColumnParallel<M::Weight>,
    down: RowParallel<M::Weight>,
    head: ColumnParallel<M::Weight>,
    rope: Replicated<M::Rope>,
    cache: M::KvCache,
}

impl<M: Mesh> Network<M> {
    fn load(mesh: &mut M, kv_heads: usize, dtype: DType) -> Result<Self, MeshError> {
        let shape = AttentionShape {
            num_attention_heads: 2 * kv_heads,
            num_key_value_heads: kv_heads,
            head_dim: 32,
        };
        let q_width = shape.num_attention_heads * shape.head_dim;
        let kv_width = kv_heads * shape.head_dim;
        let ffn = 64 * kv_heads;
        let matrix = weight_noise;
        let qkv = [
            matrix(82, q_width, HIDDEN),
            matrix(83, kv_width, HIDDEN),
            matrix(84, kv_width, HIDDEN),
        ];
        let gate_up = [matrix(85, ffn, HIDDEN), matrix(86, ffn, HIDDEN)];
        let gain = DenseMatrix::new("norm", HIDDEN, noise(87, HIDDEN));
        let (cos, sin) = rope_tables(8 * BLOCK_SIZE, shape.head_dim);
        let cache = KvCacheShape {
            num_layers: 1,
            num_blocks: 8,
            block_size: BLOCK_SIZE,
            dtype: DType::Bfp8,
        };
        Ok(Self {
            embedding: mesh.load_embedding(&matrix(81, VOCAB, HIDDEN), dtype)?,
            norm: mesh.load_gain(&gain)?,
            qkv: mesh.load_column_parallel(&[&qkv[0], &qkv[1], &qkv[2]], dtype)?,
            output: mesh.load_row_parallel(&matrix(88, HIDDEN, q_width), dtype)?,
            gate_up: mesh.load_gate_up(&gate_up[0], &gate_up[1], dtype)?,
            down: mesh.load_row_parallel(&matrix(89, HIDDEN, ffn), dtype)?,
            head: mesh.load_lm_head(&matrix(90, VOCAB, HIDDEN), dtype)?,
            rope: mesh.load_rope(&cos, &sin, shape.head_dim)?,
            cache: mesh.new_kv_cache(cache, shape)?,
        })
    }

    /// Logits of every row of the step: `[rows, VOCAB]`.
    fn logits(&mut self, mesh: &mut M, chunks: &[Chunk<'_>]) -> Vec<f32> {
        let mut batch = StepBatch::default();
        for chunk in chunks {
            batch.sequences.push(SequenceSlice {
                first_row: batch.token_ids.len(),
                num_tokens: chunk.tokens.len(),
                first_position: chunk.tokens.start,
                block_table: chunk.table.to_vec(),
            });
            batch.token_ids.extend(&chunk.prompt[chunk.tokens.clone()]);
        }
        batch.logit_rows = (0..batch.num_tokens()).collect();
        let mut logits = Vec::new();
        self.forward(mesh, &batch, &mut logits).expect("the step works");
        logits
    }

    fn forward(
        &mut self,
        mesh: &mut M,
        batch: &StepBatch,
        logits: &mut Vec<f32>,
    ) -> Result<(), MeshError> {
        const EPS: f32 = 1e-5;
        let x = mesh.embed(&self.embedding, batch)?;
        let normed = mesh.rms_norm(&x, &self.norm, EPS)?;
        let qkv = mesh.column_linear(&normed, &self.qkv)?;
        let attended = mesh.attention(qkv, &self.rope, &mut self.cache, 0, batch)?;
        let partial = mesh.row_linear(&attended, &self.output)?;
        let sum = mesh.reduce_scatter(partial)?;
        let x = mesh.add(x, &sum)?;
        let normed = mesh.rms_norm(&x, &self.norm, EPS)?;
        let gate_up = mesh.column_linear(&normed, &self.gate_up)?;
        let activated = mesh.silu_mul(gate_up)?;
        let partial = mesh.row_linear(&activated, &self.down)?;
        let sum = mesh.reduce_scatter(partial)?;
        let x = mesh.add(x, &sum)?;
        let x = mesh.select_rows(x, &batch.logit_rows)?;
        let normed = mesh.rms_norm(&x, &self.norm, EPS)?;
        let out = mesh.column_linear(&normed, &self.head)?;
        mesh.read_logits(out, logits)
    }
}
