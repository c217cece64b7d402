//! Speed of the kernels: decode (one row, GB/s of weights), batches (GFLOP/s),
//! attention, and every matrix product of a SmolLM2-135M token.
//!
//! `cargo bench -p kernels [FILTER]`. Compare ratios inside one run only: a
//! shared machine's bandwidth moves.

use std::convert::Infallible;

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use kernels::{
    Attention, AttentionSequence, Format, Isa, KvCacheStore, Matmul, PackedMatrix, Pool, attention,
    matmul,
};

const FORMATS: [Format; 4] = [Format::F32, Format::Bf16, Format::Bfp8, Format::Bfp4];

fn main() {
    divan::main();
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 2003) as f32 / 1001.5 - 1.0).collect()
}

fn weight(format: Format, n: usize, k: usize) -> PackedMatrix {
    let pool = Pool::new(2);
    let packed = PackedMatrix::pack(&pool, format, [n, k], &|first_row, rows: &mut [f32]| {
        for (i, value) in rows.iter_mut().enumerate() {
            *value = ((first_row * k + i) * 31 % 2003) as f32 / 1001.5 - 1.0;
        }
        Ok::<(), Infallible>(())
    });
    packed.expect("writing numbers cannot fail")
}

/// 64 matrices of 2048 × 2048 in turn, so that no cache holds them.
#[divan::bench(args = FORMATS, consts = [1, 2])]
fn decode_row<const THREADS: usize>(bencher: Bencher<'_, '_>, format: Format) {
    let pool = Pool::new(THREADS);
    let (n, k) = (2048, 2048);
    let weights: Vec<PackedMatrix> = (0..64).map(|_| weight(format, n, k)).collect();
    let (x, mut y) = (values(k), vec![0.0; n]);
    let mut turn = 0;
    bencher.counter(BytesCount::new(weights[0].bytes())).bench_local(|| {
        turn = (turn + 1) % weights.len();
        let weight = &weights[turn];
        matmul(&pool, Isa::detect(), 1, &mut [Matmul { x: black_box(&x), weight, y: &mut y }]);
    });
}

/// One 2048 × 2048 matrix, m rows; "items" are floating-point operations.
fn batch<const THREADS: usize>(bencher: Bencher<'_, '_>, format: Format, m: usize) {
    let pool = Pool::new(THREADS);
    let (n, k) = (2048, 2048);
    let weight = weight(format, n, k);
    let (x, mut y) = (values(m * k), vec![0.0; m * n]);
    bencher.counter(ItemsCount::new(2 * m * n * k)).bench_local(|| {
        let weight = &weight;
        matmul(&pool, Isa::detect(), m, &mut [Matmul { x: black_box(&x), weight, y: &mut y }]);
    });
}

#[divan::bench(args = FORMATS, consts = [1, 2])]
fn batch_2<const THREADS: usize>(bencher: Bencher<'_, '_>, format: Format) {
    batch::<THREADS>(bencher, format, 2);
}

#[divan::bench(args = FORMATS, consts = [1, 2])]
fn batch_8<const THREADS: usize>(bencher: Bencher<'_, '_>, format: Format) {
    batch::<THREADS>(bencher, format, 8);
}

#[divan::bench(args = FORMATS, consts = [1, 2])]
fn batch_32<const THREADS: usize>(bencher: Bencher<'_, '_>, format: Format) {
    batch::<THREADS>(bencher, format, 32);
}

#[divan::bench(args = FORMATS, consts = [1, 2])]
fn batch_256<const THREADS: usize>(bencher: Bencher<'_, '_>, format: Format) {
    batch::<THREADS>(bencher, format, 256);
}

/// The matrices of SmolLM2-135M: 30 layers of qkv, o, gate and up, down, and the LM head.
fn smollm2(format: Format) -> Vec<PackedMatrix> {
    let layer = [(960, 576), (576, 576), (3072, 576), (576, 1536)];
    let layers = (0..30).flat_map(|_| layer).map(|(n, k)| weight(format, n, k));
    layers.chain([weight(format, 49152, 576)]).collect()
}

/// Every matrix product of `m` tokens; "items" are tokens.
fn smollm2_tokens<const THREADS: usize>(bencher: Bencher<'_, '_>, format: Format, m: usize) {
    let pool = Pool::new(THREADS);
    let weights = smollm2(format);
    let x = values(m * 1536);
    let mut y = vec![0.0; m * 49152];
    bencher.counter(ItemsCount::new(m)).bench_local(|| {
        for weight in &weights {
            let (x, y) = (&x[..m * weight.k()], &mut y[..m * weight.n()]);
            matmul(&pool, Isa::detect(), m, &mut [Matmul { x: black_box(x), weight, y }]);
        }
    });
}

#[divan::bench(args = FORMATS, consts = [1, 2])]
fn smollm2_decode<const THREADS: usize>(bencher: Bencher<'_, '_>, format: Format) {
    smollm2_tokens::<THREADS>(bencher, format, 1);
}

#[divan::bench(args = [Format::Bfp8], consts = [1, 2], sample_count = 10)]
fn smollm2_batch_32<const THREADS: usize>(bencher: Bencher<'_, '_>, format: Format) {
    smollm2_tokens::<THREADS>(bencher, format, 32);
}

#[divan::bench(args = FORMATS, consts = [1, 2], sample_count = 10)]
fn smollm2_prefill_256<const THREADS: usize>(bencher: Bencher<'_, '_>, format: Format) {
    // Prefill needs the logits of its last row only, so leave out the LM head.
    let pool = Pool::new(THREADS);
    let mut weights = smollm2(format);
    weights.pop();
    let m = 256;
    let (x, mut y) = (values(m * 1536), vec![0.0; m * 3072]);
    bencher.counter(ItemsCount::new(m)).bench_local(|| {
        for weight in &weights {
            let (x, y) = (&x[..m * weight.k()], &mut y[..m * weight.n()]);
            matmul(&pool, Isa::detect(), m, &mut [Matmul { x: black_box(x), weight, y }]);
        }
    });
}

/// Packing 1024 × 1024 weights; "items" are weights.
#[divan::bench(args = FORMATS)]
fn pack(bencher: Bencher<'_, '_>, format: Format) {
    bencher.counter(ItemsCount::new(1024_usize * 1024)).bench(|| weight(format, 1024, 1024));
}

/// One layer's attention of SmolLM2 (9 heads, 3 KV heads of 64): `rows` new
/// tokens at the end of a context of 1024; "items" are query tokens.
fn smollm2_attention<const THREADS: usize>(bencher: Bencher<'_, '_>, format: Format, rows: usize) {
    let pool = Pool::new(THREADS);
    let (heads, kv_heads, head_dim, block_size, context) = (9, 3, 64, 32, 1024);
    let mut cache = KvCacheStore::new(format, context / block_size, block_size, kv_heads, head_dim);
    let kv = values(kv_heads * head_dim);
    for position in 0..context {
        cache.write(position / block_size, position % block_size, &kv, &kv);
    }
    let block_table: Vec<u32> = (0..(context / block_size) as u32).collect();
    let row_len = heads * head_dim;
    let (q, mut out) = (values(rows * row_len), vec![0.0; rows * row_len]);
    let sequences = [AttentionSequence {
        first_row: 0,
        num_tokens: rows,
        first_position: context - rows,
        block_table: &block_table,
    }];
    bencher.counter(ItemsCount::new(rows)).bench_local(|| {
        let (q, cache) = (black_box(&q[..]), &cache);
        let mut jobs = [Attention { q, q_stride: row_len, cache, out: &mut out, num_heads: heads }];
        attention(&pool, Isa::detect(), 0.125, &sequences, &mut jobs);
    });
}

const KV_FORMATS: [Format; 3] = [Format::F32, Format::Bf16, Format::Bfp8];

#[divan::bench(args = KV_FORMATS, consts = [1, 2])]
fn attention_decode<const THREADS: usize>(bencher: Bencher<'_, '_>, format: Format) {
    smollm2_attention::<THREADS>(bencher, format, 1);
}

#[divan::bench(args = KV_FORMATS, consts = [1, 2])]
fn attention_prefill_256<const THREADS: usize>(bencher: Bencher<'_, '_>, format: Format) {
    smollm2_attention::<THREADS>(bencher, format, 256);
}
