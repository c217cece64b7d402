//! Against `ttnn`'s own golden functions: `tests/golden/make_ttnn_golden.py`.

use std::collections::BTreeMap;

use super::super::heads::by_user;
use super::*;
use crate::ops::PagedAttention;
use crate::spec::{LinearConfig, MatmulProgram, NormConfig, SdpaConfig, SdpaProgram};

const DRAM: MemoryConfig = MemoryConfig::DRAM;
const BF16: DataType = DataType::BFloat16;
const EPS: f32 = 1e-5;

/// What the package says, by case.
struct Golden(BTreeMap<String, Vec<f64>>);

impl Golden {
    fn read() -> Self {
        let text =
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/ttnn_ops.json"));
        Self(serde_json::from_str(text).unwrap())
    }

    /// Fails unless every value is within one rounding to bf16 of the golden one.
    #[track_caller]
    fn assert_close(&self, case: &str, values: &[f32]) {
        let golden = &self.0[case];
        assert_eq!(values.len(), golden.len(), "{case}");
        for (idx, (value, golden)) in values.iter().zip(golden).enumerate() {
            let error = (f64::from(*value) - golden).abs();
            assert!(error <= golden.abs() / 256.0 + 1e-5, "{case}[{idx}]: {value} for {golden}");
        }
    }

    #[track_caller]
    fn assert_equal(&self, case: &str, values: impl IntoIterator<Item = f64>) {
        assert_eq!(values.into_iter().collect::<Vec<_>>(), self.0[case], "{case}");
    }

    #[track_caller]
    fn assert_exact(&self, case: &str, values: &[f32]) {
        self.assert_equal(case, values.iter().map(|value| f64::from(*value)));
    }

    #[track_caller]
    fn assert_ids(&self, case: &str, ids: &[u32]) {
        self.assert_equal(case, ids.iter().map(|id| f64::from(*id)));
    }
}

fn tiles(ops: &mut ReferenceOps, seed: u64, shape: Shape) -> Tensor {
    let values = numbers(seed, shape.iter().product());
    Upload::tiles(shape, BF16).reals(ops, &values)
}

/// Of numbers, each chip's own: those of `seed`, `seed + 1`, …
fn own_tiles(ops: &mut ReferenceOps, seed: u64, shape: Shape) -> Tensor {
    let len = shape.iter().product();
    let num_chips = ops.num_chips();
    let values: Vec<f32> =
        (0..num_chips as u64).flat_map(|chip| numbers(seed + chip, len)).collect();
    let [a, b, rows, width] = shape;
    Upload::tiles([a * num_chips, b, rows, width], BF16).spread(Spread::Cut(0)).reals(ops, &values)
}

#[test]
fn arithmetic_is_the_packages() {
    let golden = Golden::read();
    let mut ops = ReferenceOps::new(1);
    let ids = Upload::rows([1, 1, 1, 8], DataType::UInt32)
        .uint32(&mut ops, &[63, 0, 7, 7, 31, 32, 1, 62]);
    let table = Upload::rows([1, 1, 64, 64], BF16).reals(&mut ops, &numbers(1, 64 * 64));
    let y = ops.embedding(&ids, &table, &DRAM).unwrap();
    golden.assert_exact("embedding", &ops.read(&y, 0).unwrap());

    let x = tiles(&mut ops, 2, [1, 1, 8, 64]);
    let gain = Upload::rows([1, 1, 2, 32], BF16).reals(&mut ops, &numbers(3, 64));
    let config = NormConfig { eps: EPS, program: None, compute: COMPUTE, memory: DRAM };
    let y = ops.rms_norm(&x, &gain, &config).unwrap();
    golden.assert_close("rms_norm", &ops.read(&y, 0).unwrap());

    let weight = tiles(&mut ops, 4, [1, 1, 64, 96]);
    let config = LinearConfig {
        program: MatmulProgram::Multicast2d {
            grid: Grid { x: 1, y: 1 },
            in0_block_w: 2,
            out_subblock_w: 3,
            per_core_m: 1,
            fuse_batch: true,
            per_core_n: 3,
        },
        compute: COMPUTE,
        memory: DRAM,
        dtype: BF16,
    };
    let y = ops.linear(&x, &weight, &config).unwrap();
    golden.assert_close("linear", &ops.read(&y, 0).unwrap());

    let other = tiles(&mut ops, 5, [1, 1, 8, 64]);
    let y = ops.add(&x, &other, &DRAM).unwrap();
    golden.assert_close("add", &ops.read(&y, 0).unwrap());
    let y = ops.silu_mul(&x, &other, BF16, &DRAM).unwrap();
    golden.assert_close("silu_mul", &ops.read(&y, 0).unwrap());
}

#[test]
fn block_floats_are_the_packages() {
    let golden = Golden::read();
    let mut ops = ReferenceOps::new(1);
    // Magnitudes that differ within a group.
    let powers = (0..2048).map(|i| 2f32.powi(i * 7 % 23 - 11));
    let mixed: Vec<f32> = numbers(6, 2048).iter().zip(powers).map(|(x, p)| x * p).collect();
    let x = Upload::tiles([1, 1, 32, 64], BF16).reals(&mut ops, &mixed);
    assert_eq!(ops.read(&x, 0).unwrap(), mixed, "bf16 has them");
    for (case, dtype) in
        [("typecast_bfp8", DataType::BFloat8B), ("typecast_bfp4", DataType::BFloat4B)]
    {
        let y = ops.typecast(&x, dtype).unwrap();
        golden.assert_exact(case, &ops.read(&y, 0).unwrap());
        let packed = Upload::tiles([1, 1, 32, 64], dtype).reals(&mut ops, &mixed);
        golden.assert_exact(case, &ops.read(&packed, 0).unwrap());
    }
}

#[test]
fn norms_over_chips_are_the_packages() {
    let golden = Golden::read();
    let mut ops = ReferenceOps::new(2);
    let x =
        Upload::tiles([1, 1, 8, 64], BF16).spread(Spread::Cut(3)).reals(&mut ops, &numbers(2, 512));
    let gain =
        Upload::rows([1, 1, 2, 32], BF16).spread(Spread::Cut(2)).reals(&mut ops, &numbers(3, 64));
    let statistics = ops.rms_norm_pre_all_gather(&x, COMPUTE).unwrap();
    let gathered = ops.all_gather(&statistics, &DRAM).unwrap();
    let y = ops.rms_norm_post_all_gather(&x, &gathered, &gain, EPS, COMPUTE).unwrap();
    let (mut sums, mut normed) = (Vec::new(), Vec::new());
    for chip in 0..2 {
        sums.extend(ops.read(&statistics, chip).unwrap().iter().step_by(32));
        normed.extend(ops.read(&y, chip).unwrap());
    }
    golden.assert_close("rms_norm_pre_all_gather", &sums);
    golden.assert_close("rms_norm_post_all_gather", &normed);
}

#[test]
fn movement_is_the_packages() {
    let golden = Golden::read();
    let mut ops = ReferenceOps::new(2);
    let x = tiles(&mut ops, 7, [1, 4, 2, 32]);
    let y = ops.transpose_1_2(&x).unwrap();
    assert_eq!(ops.shape(&y), [1, 2, 4, 32]);
    golden.assert_exact("transpose", &ops.read(&y, 1).unwrap());

    let parts = [tiles(&mut ops, 8, [1, 1, 4, 32]), tiles(&mut ops, 9, [1, 1, 4, 64])];
    let y = ops.concat(&parts).unwrap();
    golden.assert_exact("concat", &ops.read(&y, 0).unwrap());
    let y = ops.slice(&parts[1], [0, 0, 1, 0], [1, 1, 3, 32]).unwrap();
    golden.assert_exact("slice", &ops.read(&y, 0).unwrap());

    let x = own_tiles(&mut ops, 10, [1, 1, 4, 64]);
    let y = ops.all_gather(&x, &DRAM).unwrap();
    for chip in 0..2 {
        golden.assert_exact("all_gather", &ops.read(&y, chip).unwrap());
    }
    let y = ops.reduce_scatter(&x, &DRAM).unwrap();
    let halves = [ops.read(&y, 0).unwrap(), ops.read(&y, 1).unwrap()];
    let rows: Vec<f32> = (0..4)
        .flat_map(|row| halves.iter().flat_map(move |half| &half[row * 32..(row + 1) * 32]))
        .copied()
        .collect();
    golden.assert_close("reduce_scatter", &rows);
}

#[test]
fn attention_is_the_packages() {
    let golden = Golden::read();
    let mut ops = ReferenceOps::new(1);
    let config = |q_chunk_size, k_chunk_size| SdpaConfig {
        scale: 0.25,
        program: SdpaProgram { grid: Grid { x: 8, y: 7 }, q_chunk_size, k_chunk_size },
        compute: COMPUTE,
    };
    let q = tiles(&mut ops, 20, [1, 4, 32, 32]);
    let [k, v] = [21, 22].map(|seed| tiles(&mut ops, seed, [1, 2, 32, 32]));
    let y = ops.sdpa(&q, &k, &v, &config(32, 32)).unwrap();
    golden.assert_close("sdpa", &ops.read(&y, 0).unwrap());

    let [k_cache, v_cache] = [23, 24].map(|seed| tiles(&mut ops, seed, [12, 2, 32, 32]));
    let q = tiles(&mut ops, 25, [1, 32, 4, 32]);
    let q = ops.to_memory_config(&q, &by_user(4, 32)).unwrap();
    let table: Vec<i32> = (0..32).flat_map(|u| [u * 5 % 12, (u * 5 + 7) % 12]).collect();
    let table = Upload::rows([1, 1, 32, 2], DataType::Int32).rank(2).int32(&mut ops, &table);
    let positions: Vec<i32> = (0..32).map(|user| user * 2 + 1).collect();
    let positions =
        Upload::rows([1, 1, 1, 32], DataType::Int32).rank(1).int32(&mut ops, &positions);
    let (k_cache, v_cache) = (&k_cache, &v_cache);
    let attention =
        PagedAttention { q: &q, k_cache, v_cache, page_table: &table, positions: &positions };
    let y = ops.paged_sdpa_decode(&attention, &config(0, 0), &DRAM).unwrap();
    golden.assert_close("paged_sdpa_decode", &ops.read(&y, 0).unwrap());

    let q = tiles(&mut ops, 26, [1, 2, 32, 32]);
    let table = Upload::rows([1, 1, 1, 4], DataType::Int32).rank(2).int32(&mut ops, &[3, 11, 0, 6]);
    let start = Upload::rows([1, 1, 1, 1], DataType::Int32).rank(1).int32(&mut ops, &[64]);
    let attention =
        PagedAttention { q: &q, k_cache, v_cache, page_table: &table, positions: &start };
    let y = ops.chunked_sdpa(&attention, &config(32, 64)).unwrap();
    golden.assert_close("chunked_sdpa", &ops.read(&y, 0).unwrap());
}

#[test]
fn choices_are_the_packages() {
    let golden = Golden::read();
    let mut ops = ReferenceOps::new(1);
    let x = tiles(&mut ops, 30, [1, 1, 4, 320]);
    let [values, indices] = ops.topk_32(&x).unwrap();
    golden.assert_exact("topk_values", &ops.read(&values, 0).unwrap());
    golden.assert_ids("topk_indices", &ops.read_ids(&indices, 0).unwrap());
    let rows = ops.untilize(&x).unwrap();
    let ids = ops.argmax(&rows).unwrap();
    golden.assert_ids("argmax", &ops.read_ids(&ids, 0).unwrap());
}
