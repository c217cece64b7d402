//! A whole decode step in the order of calls that the package takes, from tokens
//! to the next ones: eager and replayed, on every number of chips.

use super::super::heads::by_user;
use super::*;
use crate::ops::{PagedAttention, RopeTensors};
use crate::spec::{LinearConfig, MatmulProgram, NormConfig, NormProgram, SdpaConfig, SdpaProgram};

const BF16: DataType = DataType::BFloat16;
const BFP8: DataType = DataType::BFloat8B;
const DRAM: MemoryConfig = MemoryConfig::DRAM;
const HIDDEN: usize = 512;
const HEADS: usize = 16;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 32;
const FFN: usize = 1024;
const VOCAB: usize = 1024;
const LAYERS: usize = 2;
/// Values of weights shrink by this, so that activations do not grow.
const SHRINK: f32 = 1.0 / 16.0;

struct Weights {
    qkv: Tensor,
    out: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    caches: [Tensor; 2],
}

struct Model {
    table: Tensor,
    gain: Tensor,
    layers: Vec<Weights>,
    head: Tensor,
    angles: Tensor,
    transformation: Tensor,
    page_table: Tensor,
    tokens: Tensor,
    positions: Tensor,
    /// The positions, as rows of the angles.
    rows: Tensor,
    num_chips: usize,
}

/// Columns over as many cores of a row as divide the tiles.
fn cores(width: usize) -> Grid {
    let tiles = width / 32;
    Grid { x: (1..=8).rev().find(|x| tiles.is_multiple_of(*x)).unwrap(), y: 1 }
}

fn over_cores(width: usize) -> MemoryConfig {
    width_sharded(32, width, cores(width))
}

/// A weight `[k, n]` on each chip, cut along one axis.
fn weight(ops: &mut ReferenceOps, seed: u64, [k, n]: [usize; 2], axis: usize) -> Tensor {
    let num_chips = ops.num_chips();
    let mut shape = [1, 1, k, n];
    shape[axis] *= num_chips;
    let values: Vec<f32> =
        numbers(seed, k * n * num_chips).iter().map(|value| value * SHRINK).collect();
    Upload::tiles(shape, BFP8)
        .spread(Spread::Cut(axis))
        .into(MemoryConfig::DramWidthSharded {
            banks: 12,
            shard: [k, n.next_multiple_of(384) / 12],
        })
        .reals(ops, &values)
}

impl Model {
    fn new(ops: &mut ReferenceOps) -> Self {
        let num_chips = ops.num_chips();
        let (heads, kv_heads) = (HEADS / num_chips, KV_HEADS / num_chips);
        let (ffn, vocab) = (FFN / num_chips, VOCAB / num_chips);
        let cache = [64, kv_heads, 32, HEAD_DIM];
        let layers = (0..LAYERS as u64)
            .map(|layer| Weights {
                qkv: weight(ops, layer * 9 + 1, [HIDDEN, (heads + 2 * kv_heads) * HEAD_DIM], 3),
                out: weight(ops, layer * 9 + 2, [heads * HEAD_DIM, HIDDEN], 2),
                gate: weight(ops, layer * 9 + 3, [HIDDEN, ffn], 3),
                up: weight(ops, layer * 9 + 4, [HIDDEN, ffn], 3),
                down: weight(ops, layer * 9 + 5, [ffn, HIDDEN], 2),
                caches: [0, 1].map(|_| ops.zeros(cache, BFP8, Layout::Tile, &DRAM).unwrap()),
            })
            .collect();
        let pages: Vec<i32> = (0..64).map(|page| page * 23 % 64).collect();
        let mut swap = vec![0.0; 1024];
        (0..32).for_each(|channel| swap[(channel ^ 1) * 32 + channel] = 1.0);
        Self {
            table: Upload::rows([1, 1, VOCAB, HIDDEN], BF16)
                .spread(Spread::Cut(3))
                .reals(ops, &numbers(50, VOCAB * HIDDEN)),
            gain: Upload::rows([1, 1, HIDDEN / 32, 32], BF16).reals(ops, &numbers(51, HIDDEN)),
            layers,
            head: weight(ops, 52, [HIDDEN, vocab], 3),
            angles: Upload::rows([1, 1, 64, HEAD_DIM], BF16).reals(ops, &numbers(53, 2048)),
            transformation: Upload::tiles([1, 1, 1024, 32], BF16)
                .into(by_user(1, 32))
                .reals(ops, &swap.repeat(32)),
            page_table: Upload::rows([1, 1, 32, 2], DataType::Int32).rank(2).int32(ops, &pages),
            tokens: Upload::rows([1, 1, 1, 32], DataType::UInt32).uint32(ops, &[0; 32]),
            positions: Upload::rows([1, 1, 1, 32], DataType::Int32).rank(1).int32(ops, &[0; 32]),
            rows: Upload::rows([1, 1, 1, 32], DataType::UInt32).uint32(ops, &[0; 32]),
            num_chips,
        }
    }

    fn write(&self, ops: &mut ReferenceOps, step: u32) {
        let ids = (0..32).map(|user| (user * 31 + step * 7) % VOCAB as u32).collect();
        let host = |rank, data, dtype| HostMatrix {
            shape: [1, 1, 1, 32],
            rank,
            data,
            dtype,
            layout: Layout::RowMajor,
            spread: Spread::Replicated,
        };
        let tokens = ops.pack(host(4, HostData::UInt32(ids), DataType::UInt32)).unwrap();
        ops.write(&tokens, &self.tokens).unwrap();
        let rows = HostData::UInt32(vec![step; 32]);
        let rows = ops.pack(host(4, rows, DataType::UInt32)).unwrap();
        ops.write(&rows, &self.rows).unwrap();
        let at = HostData::Int32(vec![step as i32; 32]);
        let at = ops.pack(host(1, at, DataType::Int32)).unwrap();
        ops.write(&at, &self.positions).unwrap();
    }

    /// `x · w` for a row of tiles.
    fn product(&self, ops: &mut ReferenceOps, x: &Tensor, w: &Tensor, dtype: DataType) -> Tensor {
        let [k, n] = [ops.shape(w)[2], ops.shape(w)[3]];
        let x = ops.to_memory_config(x, &over_cores(k)).unwrap();
        let per_core_n = (n / 32).div_ceil(cores(k).x);
        let config = LinearConfig {
            program: MatmulProgram::DramSharded { in0_block_w: 1, per_core_n },
            compute: COMPUTE,
            memory: MemoryConfig::WidthShardedByOp,
            dtype,
        };
        ops.linear(&x, w, &config).unwrap()
    }

    fn norm(&self, ops: &mut ReferenceOps, x: &Tensor) -> Tensor {
        let memory = over_cores(HIDDEN);
        let whole = if self.num_chips > 1 {
            ops.all_gather(x, &memory).unwrap()
        } else {
            ops.to_memory_config(x, &memory).unwrap()
        };
        let grid = cores(HIDDEN);
        let block_w = HIDDEN / 32 / grid.x;
        let program = Some(NormProgram { grid, subblock_w: block_w, block_w });
        let config = NormConfig { eps: 1e-5, program, compute: COMPUTE, memory };
        ops.rms_norm(&whole, &self.gain, &config).unwrap()
    }

    /// Adds the sum of all chips' addends to the residual stream.
    fn reduce(&self, ops: &mut ReferenceOps, addends: &Tensor, x: &Tensor) -> Tensor {
        let memory = x.spec().memory;
        let sum = if self.num_chips > 1 {
            ops.reduce_scatter(addends, &memory).unwrap()
        } else {
            ops.to_memory_config(addends, &memory).unwrap()
        };
        ops.add(x, &sum, &memory).unwrap()
    }

    fn attention(&self, ops: &mut ReferenceOps, weights: &Weights, x: &Tensor) -> Tensor {
        let (heads, kv_heads) = (HEADS / self.num_chips, KV_HEADS / self.num_chips);
        let angles = ops.embedding(&self.rows, &self.angles, &DRAM).unwrap();
        let angles = ops.transpose_1_2(&angles).unwrap();
        let angles = ops.to_memory_config(&angles, &by_user(1, HEAD_DIM)).unwrap();
        let rope = RopeTensors { cos: &angles, sin: &angles, transformation: &self.transformation };
        let qkv = self.product(ops, x, &weights.qkv, BF16);
        let [q, k, v] = ops.nlp_create_qkv_heads_decode(&qkv, heads, kv_heads).unwrap();
        let [q, k] = [q, k].map(|x| ops.rotary_embedding_llama(&x, &rope, true).unwrap());
        let (positions, page_table) = (&self.positions, &self.page_table);
        for (cache, x) in weights.caches.iter().zip([&k, &v]) {
            ops.paged_update_cache(cache, x, positions, page_table).unwrap();
        }
        let [k_cache, v_cache] = &weights.caches;
        let attention = PagedAttention { q: &q, k_cache, v_cache, page_table, positions };
        let grid = Grid { x: 8, y: 8 };
        let program = SdpaProgram { grid, q_chunk_size: 0, k_chunk_size: 0 };
        let config = SdpaConfig { scale: 0.125, program, compute: COMPUTE };
        let y = ops.paged_sdpa_decode(&attention, &config, &DRAM).unwrap();
        let y = ops.to_memory_config(&y, &by_user(heads, HEAD_DIM)).unwrap();
        let y = ops.nlp_concat_heads_decode(&y, heads).unwrap();
        self.product(ops, &y, &weights.out, BF16)
    }

    fn step(&self, ops: &mut ReferenceOps) -> [Tensor; 2] {
        let residual = over_cores(HIDDEN / self.num_chips);
        let x = ops.embedding(&self.tokens, &self.table, &MemoryConfig::L1).unwrap();
        let mut x = ops.to_memory_config(&x, &residual).unwrap();
        for weights in &self.layers {
            let normed = self.norm(ops, &x);
            let addends = self.attention(ops, weights, &normed);
            x = self.reduce(ops, &addends, &x);
            let normed = self.norm(ops, &x);
            let gate = self.product(ops, &normed, &weights.gate, BF16);
            let up = self.product(ops, &normed, &weights.up, BF16);
            let gated = ops.silu_mul(&gate, &up, BFP8, &gate.spec().memory).unwrap();
            let addends = self.product(ops, &gated, &weights.down, BF16);
            x = self.reduce(ops, &addends, &x);
        }
        let normed = self.norm(ops, &x);
        let logits = self.product(ops, &normed, &self.head, BFP8);
        let mut logits = ops.to_memory_config(&logits, &DRAM).unwrap();
        if self.num_chips > 1 {
            logits = ops.all_gather(&logits, &DRAM).unwrap();
        }
        let rows = ops.untilize(&logits).unwrap();
        let ids = ops.argmax(&rows).unwrap();
        [rows, ids]
    }
}

fn read(ops: &mut ReferenceOps, [logits, ids]: &[Tensor; 2]) -> (Vec<f32>, Vec<u32>) {
    (ops.read(logits, 0).unwrap(), ops.read_ids(ids, 0).unwrap())
}

/// Logits and ids of three steps, each called anew.
fn eager(num_chips: usize) -> Vec<(Vec<f32>, Vec<u32>)> {
    let mut ops = ReferenceOps::new(num_chips);
    let model = Model::new(&mut ops);
    let mut step = |step| {
        model.write(&mut ops, step);
        let result = model.step(&mut ops);
        read(&mut ops, &result)
    };
    (0..3).map(&mut step).collect()
}

#[test]
fn a_replayed_step_is_the_step_and_compiles_nothing() {
    for num_chips in [1, 2, 8] {
        let expected = eager(num_chips);
        for (logits, _) in &expected {
            assert!(logits.iter().all(|logit| logit.is_finite()));
            assert_ne!(logits[..VOCAB], logits[VOCAB..2 * VOCAB], "users differ");
        }
        assert_ne!(expected[0], expected[1], "steps differ");

        let mut ops = ReferenceOps::new(num_chips);
        let model = Model::new(&mut ops);
        model.write(&mut ops, 0);
        model.step(&mut ops);
        let counts = ops.program_counts();
        let trace = ops.begin_trace().unwrap();
        let result = model.step(&mut ops);
        ops.end_trace(trace).unwrap();
        for (step, expected) in expected.iter().enumerate() {
            model.write(&mut ops, step as u32);
            ops.execute_trace(trace).unwrap();
            assert_eq!(read(&mut ops, &result), *expected, "step {step} on {num_chips} chips");
        }
        assert_eq!(ops.program_counts(), counts);
    }
}
