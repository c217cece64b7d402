//! Every operation once, as decoding and prefilling use it: shapes of results
//! are what the trait says. The numbers are zeros on mock devices.

use mesh_ttnn::ops::{Ops, PagedAttention, RopeTensors, SamplingTensors};
use mesh_ttnn::python::{Tensor, TtnnOps};
use mesh_ttnn::spec::{
    DataType, LinearConfig, MatmulProgram, MemoryConfig, NormConfig, NormProgram, SdpaConfig,
    SdpaProgram,
};

use crate::tensors::{
    HIFI2, HIFI4, a_user_a_core, ids, integers, numbers, rows, tiles, tiles_in, width_sharded,
};

const USERS: usize = 32;
const WIDTH: usize = 512;
const HEADS: usize = 4;
const KV_HEADS: usize = 1;
const HEAD_DIM: usize = 64;
const QKV: usize = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
const BLOCK: usize = 32;
/// Blocks of a sequence.
const BLOCKS: usize = 8;
/// Rows of a prompt.
const ROWS: usize = 128;
const BF16: DataType = DataType::BFloat16;
const BFP8: DataType = DataType::BFloat8B;
const DRAM: MemoryConfig = MemoryConfig::DRAM;

/// Runs all of it on an open mesh.
pub(crate) fn check(ops: &mut TtnnOps) {
    placement(ops);
    norms_and_products(ops);
    decode_attention(ops);
    prefill_attention(ops);
    sampling(ops);
    if ops.num_chips() > 1 {
        collectives(ops);
    }
    ops.synchronize().unwrap();
}

fn shape_is(ops: &TtnnOps, tensor: &Tensor, shape: [usize; 4]) {
    assert_eq!(ops.shape(tensor), shape);
}

fn placement(ops: &mut TtnnOps) {
    let x = tiles(ops, [1, 1, ROWS, WIDTH], BF16);
    let last = ops.slice(&x, [0, 0, ROWS - 32, 0], [1, 1, ROWS, WIDTH]).unwrap();
    shape_is(ops, &last, [1, 1, 32, WIDTH]);
    let sharded = ops.to_memory_config(&last, &width_sharded(8, 1, [32, 64])).unwrap();
    shape_is(ops, &sharded, [1, 1, 32, WIDTH]);
    let folded = ops.reshape(&x, [1, 4, ROWS / 4, WIDTH]).unwrap();
    shape_is(ops, &folded, [1, 4, ROWS / 4, WIDTH]);
    let both = ops.concat(&[last.clone(), last.clone()]).unwrap();
    shape_is(ops, &both, [1, 1, 32, 2 * WIDTH]);
    let turned = ops.transpose_1_2(&last).unwrap();
    shape_is(ops, &turned, [1, 32, 1, WIDTH]);
    let packed = ops.typecast(&last, BFP8).unwrap();
    shape_is(ops, &packed, [1, 1, 32, WIDTH]);
    let flat = ops.untilize(&last).unwrap();
    shape_is(ops, &flat, [1, 1, 32, WIDTH]);
}

fn norms_and_products(ops: &mut TtnnOps) {
    let table = rows(ops, [1, 1, 1000, WIDTH], BF16);
    let tokens = ids(ops, &[1, 1, 1, USERS], (0..32).collect());
    let x = ops.embedding(&tokens, &table, &MemoryConfig::L1).unwrap();
    shape_is(ops, &x, [1, 1, USERS, WIDTH]);

    let residual = width_sharded(8, 1, [USERS, WIDTH / 8]);
    let x = ops.to_memory_config(&x, &residual).unwrap();
    let gain = rows(ops, [1, 1, WIDTH / 32, 32], BF16);
    let program =
        NormProgram { grid: mesh_ttnn::spec::Grid { x: 8, y: 1 }, subblock_w: 2, block_w: 2 };
    let norm = NormConfig { eps: 1e-5, program: Some(program), compute: HIFI4, memory: residual };
    let normed = ops.rms_norm(&x, &gain, &norm).unwrap();
    shape_is(ops, &normed, [1, 1, USERS, WIDTH]);

    let banks = ops.num_dram_banks();
    let weight =
        MemoryConfig::DramWidthSharded { banks, shard: [WIDTH, 2 * WIDTH / 32 / banks * 32 + 32] };
    let weight = tiles_in(ops, [1, 1, WIDTH, 2 * WIDTH], BFP8, weight);
    let config = LinearConfig {
        program: MatmulProgram::DramSharded { in0_block_w: 2, per_core_n: 4 },
        compute: HIFI2,
        memory: MemoryConfig::WidthShardedByOp,
        dtype: BF16,
    };
    let product = ops.linear(&normed, &weight, &config).unwrap();
    shape_is(ops, &product, [1, 1, USERS, 2 * WIDTH]);
    let gated = ops.silu_mul(&product, &product, BFP8, &width_sharded(8, 1, [32, 128])).unwrap();
    shape_is(ops, &gated, [1, 1, USERS, 2 * WIDTH]);
    let beside = MemoryConfig::WidthShardedByOp;
    let gated = ops.silu_mul(&product, &product, BFP8, &beside).unwrap();
    shape_is(ops, &gated, [1, 1, USERS, 2 * WIDTH]);
    let sum = ops.add(&x, &normed, &residual).unwrap();
    shape_is(ops, &sum, [1, 1, USERS, WIDTH]);

    let prompt = tiles(ops, [1, 1, ROWS, WIDTH], BF16);
    let config = LinearConfig {
        program: MatmulProgram::Multicast2d {
            grid: mesh_ttnn::spec::Grid { x: 8, y: 4 },
            in0_block_w: 4,
            out_subblock_w: 4,
            per_core_m: 1,
            fuse_batch: true,
            per_core_n: 4,
        },
        memory: DRAM,
        ..config
    };
    let product = ops.linear(&prompt, &weight, &config).unwrap();
    shape_is(ops, &product, [1, 1, ROWS, 2 * WIDTH]);
    let norm = NormConfig { program: None, memory: DRAM, ..norm };
    let normed = ops.rms_norm(&prompt, &gain, &norm).unwrap();
    shape_is(ops, &normed, [1, 1, ROWS, WIDTH]);
}

fn attention_config(ops: &TtnnOps, q_chunk_size: usize, k_chunk_size: usize) -> SdpaConfig {
    SdpaConfig {
        // Not exactly a double of few digits: `ttnn` takes floats alone.
        scale: 1.0 / (3.0 * HEAD_DIM as f32).sqrt(),
        program: SdpaProgram { grid: ops.grid(), q_chunk_size, k_chunk_size },
        compute: HIFI4,
    }
}

fn decode_attention(ops: &mut TtnnOps) {
    let qkv = tiles_in(ops, [1, 1, USERS, QKV], BF16, width_sharded(4, 1, [32, 96]));
    let [q, k, v] = ops.nlp_create_qkv_heads_decode(&qkv, HEADS, KV_HEADS).unwrap();
    shape_is(ops, &q, [1, USERS, HEADS, HEAD_DIM]);
    shape_is(ops, &k, [1, USERS, KV_HEADS, HEAD_DIM]);

    let a_row = a_user_a_core([32, HEAD_DIM]);
    let angles = tiles(ops, [1, USERS, 1, HEAD_DIM], BF16);
    let angles = ops.to_memory_config(&angles, &a_row).unwrap();
    let turn = a_user_a_core([32, 32]);
    let turn = tiles_in(ops, [1, 1, 32 * USERS, 32], BF16, turn);
    let rope = RopeTensors { cos: &angles, sin: &angles, transformation: &turn };
    let q = ops.rotary_embedding_llama(&q, &rope, true).unwrap();
    let k = ops.rotary_embedding_llama(&k, &rope, true).unwrap();
    shape_is(ops, &k, [1, USERS, KV_HEADS, HEAD_DIM]);

    let cache = [USERS * BLOCKS, KV_HEADS, BLOCK, HEAD_DIM];
    let k_cache = tiles(ops, cache, BFP8);
    let v_cache = tiles(ops, cache, BFP8);
    let positions = integers(ops, &[USERS], (0..32).collect());
    let pages = (0..(USERS * BLOCKS) as i32).collect();
    let page_table = integers(ops, &[USERS, BLOCKS], pages);
    ops.paged_update_cache(&k_cache, &k, &positions, &page_table).unwrap();
    ops.paged_update_cache(&v_cache, &v, &positions, &page_table).unwrap();
    let attention = PagedAttention {
        q: &q,
        k_cache: &k_cache,
        v_cache: &v_cache,
        page_table: &page_table,
        positions: &positions,
    };
    let config = attention_config(ops, 0, 0);
    let attended = ops.paged_sdpa_decode(&attention, &config, &DRAM).unwrap();
    shape_is(ops, &attended, [1, USERS, HEADS, HEAD_DIM]);
    let attended = ops.to_memory_config(&attended, &a_row).unwrap();
    let rows = ops.nlp_concat_heads_decode(&attended, HEADS).unwrap();
    shape_is(ops, &rows, [1, 1, USERS, HEADS * HEAD_DIM]);
}

fn prefill_attention(ops: &mut TtnnOps) {
    let qkv = tiles(ops, [1, 1, ROWS, QKV], BF16);
    let [q, k, v] = ops.nlp_create_qkv_heads(&qkv, HEADS, KV_HEADS).unwrap();
    shape_is(ops, &q, [1, HEADS, ROWS, HEAD_DIM]);
    shape_is(ops, &k, [1, KV_HEADS, ROWS, HEAD_DIM]);
    let angles = tiles(ops, [1, 1, ROWS, HEAD_DIM], BF16);
    let turn = tiles(ops, [1, 1, 32, 32], BF16);
    let rope = RopeTensors { cos: &angles, sin: &angles, transformation: &turn };
    let q = ops.rotary_embedding_llama(&q, &rope, false).unwrap();
    let q = ops.typecast(&q, BFP8).unwrap();
    let k = ops.typecast(&k, BFP8).unwrap();
    let v = ops.typecast(&v, BFP8).unwrap();
    let cache = tiles(ops, [USERS * BLOCKS, KV_HEADS, BLOCK, HEAD_DIM], BFP8);
    let page_table = integers(ops, &[1, BLOCKS], (0..BLOCKS as i32).collect());
    ops.paged_fill_cache(&cache, &k, &page_table).unwrap();
    let config = attention_config(ops, 64, 64);
    let attended = ops.sdpa(&q, &k, &v, &config).unwrap();
    shape_is(ops, &attended, [1, HEADS, ROWS, HEAD_DIM]);

    let start = integers(ops, &[1], vec![128]);
    let attention = PagedAttention {
        q: &q,
        k_cache: &cache,
        v_cache: &cache,
        page_table: &page_table,
        positions: &start,
    };
    let attended = ops.chunked_sdpa(&attention, &config).unwrap();
    shape_is(ops, &attended, [1, HEADS, ROWS, HEAD_DIM]);
    let rows = ops.nlp_concat_heads(&attended).unwrap();
    shape_is(ops, &rows, [1, 1, ROWS, HEADS * HEAD_DIM]);
}

fn sampling(ops: &mut TtnnOps) {
    let logits = tiles(ops, [1, 1, USERS, 4096], BF16);
    let flat = ops.untilize(&logits).unwrap();
    let best = ops.argmax(&flat).unwrap();
    shape_is(ops, &best, [1, 1, USERS, 1]);
    assert_eq!(ops.read_ids(&best, 0).unwrap(), [0; USERS]);

    let [values, indices] = ops.topk_32(&logits).unwrap();
    shape_is(ops, &values, [1, 1, USERS, 32]);
    let offsets = tiles(ops, [1, 1, USERS, 32], DataType::Int32);
    let indices = ops.offset_indices(&indices, &offsets).unwrap();
    let indices = ops.untilize(&indices).unwrap();
    let top_k = ids(ops, &[USERS], vec![5; USERS]);
    let seeds = ids(ops, &[USERS], (100..132).collect());
    let ones = numbers(ops, &[USERS], &[1.0; USERS]);
    let parameters =
        SamplingTensors { top_k: &top_k, top_p: &ones, inverse_temperature: &ones, seeds: &seeds };
    let drawn = ops.sampling(&values, &indices, &parameters).unwrap();
    shape_is(ops, &drawn, [1, 1, 1, USERS]);

    // Another step's seeds are data: nothing is compiled for them.
    let programs = ops.program_counts().programs;
    let seeds = ids(ops, &[USERS], (200..232).collect());
    let parameters = SamplingTensors { seeds: &seeds, ..parameters };
    ops.sampling(&values, &indices, &parameters).unwrap();
    assert_eq!(ops.program_counts().programs, programs);
}

fn collectives(ops: &mut TtnnOps) {
    let n = ops.num_chips();
    let part = tiles(ops, [1, 1, USERS, WIDTH], BF16);
    let all = ops.all_gather(&part, &DRAM).unwrap();
    shape_is(ops, &all, [1, 1, USERS, n * WIDTH]);
    let mine = ops.reduce_scatter(&all, &width_sharded(8, 1, [USERS, WIDTH / 8])).unwrap();
    shape_is(ops, &mine, [1, 1, USERS, WIDTH]);

    let statistics = ops.rms_norm_pre_all_gather(&part, HIFI4).unwrap();
    shape_is(ops, &statistics, [1, 1, USERS, 32]);
    let statistics = ops.all_gather(&statistics, &DRAM).unwrap();
    let gain = rows(ops, [1, 1, WIDTH / 32, 32], BF16);
    let normed = ops.rms_norm_post_all_gather(&part, &statistics, &gain, 1e-5, HIFI4).unwrap();
    shape_is(ops, &normed, [1, 1, USERS, WIDTH]);
}
