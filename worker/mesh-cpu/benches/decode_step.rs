//! One decode step of SmolLM2-135M's shapes with random bfp8 weights: what the
//! mesh costs beyond reading the weights, by threads, chips and batch.
//!
//! The weights take 143 MB, so a step of one sequence cannot be faster than
//! that divided by the memory bandwidth.

use divan::Bencher;
use divan::counter::ItemsCount;
use mesh::conformance::probe::{noise, weight_noise};
use mesh::{
    AttentionShape, ColumnParallel, DType, DenseMatrix, KvCacheShape, Mesh, MeshError, Replicated,
    RowParallel, SequenceSlice, Sharded, StepBatch,
};
use mesh_cpu::CpuMesh;

const NUM_LAYERS: usize = 30;
const HIDDEN: usize = 576;
const FFN: usize = 1536;
const VOCAB: usize = 49152;
const SHAPE: AttentionShape =
    AttentionShape { num_attention_heads: 9, num_key_value_heads: 3, head_dim: 64 };
const BLOCK_SIZE: usize = 32;
const EPS: f32 = 1e-5;

fn main() {
    divan::main();
}

/// `[num_chips, num_threads]`
const MESHES: [[usize; 2]; 4] = [[1, 1], [1, 2], [3, 1], [3, 2]];

#[divan::bench(args = MESHES, sample_count = 40, sample_size = 1)]
fn decode_1(bencher: Bencher<'_, '_>, mesh: [usize; 2]) {
    decode(bencher, mesh, 1, 128);
}

#[divan::bench(args = MESHES, sample_count = 20, sample_size = 1)]
fn decode_32(bencher: Bencher<'_, '_>, mesh: [usize; 2]) {
    decode(bencher, mesh, 32, 128);
}

#[divan::bench(args = MESHES, sample_count = 40, sample_size = 1)]
fn decode_1_at_2000(bencher: Bencher<'_, '_>, mesh: [usize; 2]) {
    decode(bencher, mesh, 1, 2000);
}

#[divan::bench(args = MESHES, sample_count = 5, sample_size = 1)]
fn prefill_512(bencher: Bencher<'_, '_>, mesh: [usize; 2]) {
    let batch = StepBatch {
        token_ids: (0..512).map(|i| i * 61 % VOCAB as u32).collect(),
        sequences: vec![sequence(0, 0, 512, 16)],
        logit_rows: vec![511],
        choices: None,
    };
    run(bencher, mesh, &batch);
}

fn decode(bencher: Bencher<'_, '_>, mesh: [usize; 2], num_sequences: usize, position: usize) {
    run(bencher, mesh, &decode_batch(num_sequences, position));
}

fn run(bencher: Bencher<'_, '_>, [num_chips, num_threads]: [usize; 2], batch: &StepBatch) {
    let mut mesh = CpuMesh::new(num_chips, num_threads).expect("the mesh is valid");
    let mut model = Model::load(&mut mesh).expect("the model fits");
    let mut logits = Vec::new();
    bencher.counter(ItemsCount::new(batch.num_tokens())).bench_local(|| {
        model.step(&mut mesh, batch, &mut logits).expect("the step works");
    });
}

fn decode_batch(num_sequences: usize, position: usize) -> StepBatch {
    let blocks = (position + 1).div_ceil(BLOCK_SIZE);
    StepBatch {
        token_ids: (0..num_sequences as u32).collect(),
        sequences: (0..num_sequences)
            .map(|row| SequenceSlice { first_position: position, ..sequence(row, row, 1, blocks) })
            .collect(),
        logit_rows: (0..num_sequences).collect(),
        choices: None,
    }
}

fn sequence(nth: usize, first_row: usize, num_tokens: usize, num_blocks: usize) -> SequenceSlice {
    let first_block = nth * num_blocks;
    SequenceSlice {
        first_row,
        num_tokens,
        first_position: 0,
        block_table: (first_block..first_block + num_blocks).map(|block| block as u32).collect(),
    }
}

struct Layer {
    qkv: ColumnParallel<mesh_cpu::Weight>,
    output: RowParallel<mesh_cpu::Weight>,
    gate_up: ColumnParallel<mesh_cpu::Weight>,
    down: RowParallel<mesh_cpu::Weight>,
}

struct Model {
    embedding: Sharded<mesh_cpu::Weight>,
    norm: Replicated<mesh_cpu::Weight>,
    layers: Vec<Layer>,
    head: ColumnParallel<mesh_cpu::Weight>,
    rope: Replicated<mesh_cpu::Rope>,
    cache: mesh_cpu::KvCache,
}

impl Model {
    fn load(mesh: &mut CpuMesh) -> Result<Self, MeshError> {
        let q = weight_noise(1, HIDDEN, HIDDEN);
        let [k, v] = [2, 3].map(|seed| weight_noise(seed, HIDDEN / 3, HIDDEN));
        let output = weight_noise(4, HIDDEN, HIDDEN);
        let [gate, up] = [5, 6].map(|seed| weight_noise(seed, FFN, HIDDEN));
        let down = weight_noise(7, HIDDEN, FFN);
        let embedding = weight_noise(8, VOCAB, HIDDEN);
        let layers = (0..NUM_LAYERS)
            .map(|_| {
                Ok(Layer {
                    qkv: mesh.load_column_parallel(&[&q, &k, &v], DType::Bfp8)?,
                    output: mesh.load_row_parallel(&output, DType::Bfp8)?,
                    gate_up: mesh.load_column_parallel(&[&gate, &up], DType::Bfp8)?,
                    down: mesh.load_row_parallel(&down, DType::Bfp8)?,
                })
            })
            .collect::<Result<_, MeshError>>()?;
        let table = noise(9, 2048 * SHAPE.head_dim / 2);
        let cache = KvCacheShape {
            num_layers: NUM_LAYERS,
            num_blocks: 32 * 5,
            block_size: BLOCK_SIZE,
            dtype: DType::Bfp8,
        };
        Ok(Self {
            embedding: mesh.load_embedding(&embedding, DType::Bfp8)?,
            norm: mesh.load_gain(&DenseMatrix::new("norm", HIDDEN, vec![1.0; HIDDEN]))?,
            layers,
            head: mesh.load_column_parallel(&[&embedding], DType::Bfp8)?,
            rope: mesh.load_rope(&table, &table, SHAPE.head_dim)?,
            cache: mesh.new_kv_cache(cache, SHAPE)?,
        })
    }

    fn step(
        &mut self,
        mesh: &mut CpuMesh,
        batch: &StepBatch,
        logits: &mut Vec<f32>,
    ) -> Result<(), MeshError> {
        let mut x = mesh.embed(&self.embedding, batch)?;
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            let normed = mesh.rms_norm(&x, &self.norm, EPS)?;
            let qkv = mesh.column_linear(&normed, &layer.qkv)?;
            let attended = mesh.attention(qkv, &self.rope, &mut self.cache, layer_idx, batch)?;
            let partial = mesh.row_linear(&attended, &layer.output)?;
            let sum = mesh.reduce_scatter(partial)?;
            x = mesh.add(x, &sum)?;
            let normed = mesh.rms_norm(&x, &self.norm, EPS)?;
            let gate_up = mesh.column_linear(&normed, &layer.gate_up)?;
            let activated = mesh.silu_mul(gate_up)?;
            let partial = mesh.row_linear(&activated, &layer.down)?;
            let sum = mesh.reduce_scatter(partial)?;
            x = mesh.add(x, &sum)?;
        }
        let x = mesh.select_rows(x, &batch.logit_rows)?;
        let normed = mesh.rms_norm(&x, &self.norm, EPS)?;
        let out = mesh.column_linear(&normed, &self.head)?;
        mesh.read_logits(out, logits)
    }
}
