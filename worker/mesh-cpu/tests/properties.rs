//! Random shapes: products, norms, gates and attention against f64, gathers, and bit-exact independence of threads,
//! batch and chunks.

use kernels::Isa;
use mesh::conformance::probe::{
    assert_close, assert_same, matmul, noise, read_replicated, read_sharded, shard, upload,
    upload_cut,
};
use mesh::conformance::{AttentionRig, Piece, Sequence, Strength};
use mesh::{AttentionShape, DType, DenseMatrix, KvCacheShape, Mesh};
use mesh_cpu::CpuMesh;
use proptest::prelude::*;
use proptest::sample::select;

fn isas() -> impl Strategy<Value = Isa> {
    select(Isa::available().to_vec())
}

fn dtypes() -> impl Strategy<Value = DType> {
    select(vec![DType::F32, DType::Bf16, DType::Bfp8, DType::Bfp4])
}

/// Column- and row-parallel product of the same matrix.
fn products(
    mesh: &mut CpuMesh,
    weight: &DenseMatrix,
    dtype: DType,
    x: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let k = mesh::Matrix::cols(weight);
    let columns = mesh.load_column_parallel(&[weight], dtype).expect("it divides");
    let rows = mesh.load_row_parallel(weight, dtype).expect("it divides");
    let uploaded = upload(mesh, k, x);
    let y = mesh.column_linear(&uploaded, &columns).expect("the operation works");
    let y = read_sharded(mesh, y);
    let sharded = shard(mesh, &uploaded, k);
    let partial = mesh.row_linear(&sharded, &rows).expect("the operation works");
    let sum = mesh.reduce_scatter(partial).expect("the operation works");
    (y, read_sharded(mesh, sum))
}

/// `x / sqrt(mean(x²) + eps) · gain`
fn rms_norm(x: &[f32], gain: &[f32], eps: f32) -> Vec<f64> {
    let squares: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let root = (squares / x.len() as f64 + f64::from(eps)).sqrt();
    x.iter().zip(gain).map(|(&x, &gain)| f64::from(x) / root * f64::from(gain)).collect()
}

/// `gate / (1 + e^-gate) · up` of one chip's `[gate | up]`
fn swiglu(gate_up: &[f32]) -> Vec<f64> {
    let (gate, up) = gate_up.split_at(gate_up.len() / 2);
    let values = gate.iter().zip(up).map(|(&gate, &up)| (f64::from(gate), f64::from(up)));
    values.map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn linear_layers_of_any_shape_are_products(
        num_chips in 1usize..=8,
        (n, k) in (1usize..40, 1usize..40),
        m in 1usize..20,
        isa in isas(),
        seed in any::<u64>(),
    ) {
        let (n, k) = (n * num_chips, k * num_chips);
        let weight = noise(seed, n * k);
        let x = noise(!seed, m * k);
        let mut mesh = CpuMesh::with_isa(num_chips, 2, isa).unwrap();
        let source = DenseMatrix::new("w", k, weight.clone());
        let (columns, rows) = products(&mut mesh, &source, DType::F32, &x);
        let want = matmul(&x, &weight, k);
        assert_close("column_linear", &columns, &want, 1e-4);
        assert_close("row_linear", &rows, &want, 1e-4);
    }

    #[test]
    fn norms_gates_and_gathers_of_any_shape_follow_their_formulae(
        num_chips in 1usize..=8,
        width in 1usize..40,
        rows in 1usize..12,
        (scale, eps) in (select(vec![1e-3f32, 1.0, 30.0]), select(vec![1e-6f32, 1e-5, 1e-2])),
        isa in isas(),
        seed in any::<u64>(),
    ) {
        // [gate | up] on every chip.
        let width = 2 * width * num_chips;
        let mut mesh = CpuMesh::with_isa(num_chips, 2, isa).unwrap();
        let x: Vec<f32> = noise(seed, rows * width).into_iter().map(|x| x * scale).collect();
        let gain = noise(!seed, width);
        let loaded = mesh.load_gain(&DenseMatrix::new("gain", width, gain.clone())).unwrap();
        let cut = upload_cut(&mut mesh, width, &x);
        let normed = mesh.rms_norm(&cut, &loaded, eps).unwrap();
        let normed = read_replicated(&mut mesh, &normed, width);
        let want: Vec<f64> = x.chunks_exact(width).flat_map(|x| rms_norm(x, &gain, eps)).collect();
        assert_close("rms_norm", &normed, &want, 1e-5);

        let uploaded = upload(&mut mesh, width, &x);
        let gate_up = shard(&mut mesh, &uploaded, width);
        let activated = mesh.silu_mul(gate_up).unwrap();
        let activated = read_sharded(&mut mesh, activated);
        let on_a_chip = width / num_chips;
        let want: Vec<f64> = x.chunks_exact(on_a_chip).flat_map(swiglu).collect();
        assert_close("silu_mul", &activated, &want, 1e-5);

        let cut = shard(&mut mesh, &uploaded, width);
        let gathered = mesh.all_gather(cut).unwrap();
        let gathered = read_replicated(&mut mesh, &gathered, width);
        assert_same("all_gather", &gathered, &x, Strength::EXACT);
    }

    #[test]
    fn a_row_depends_neither_on_threads_nor_on_other_rows(
        num_chips in 1usize..=4,
        (n, k) in (1usize..12, 1usize..12),
        m in 2usize..40,
        dtype in dtypes(),
        isa in isas(),
        seed in any::<u64>(),
    ) {
        let (n, k) = (16 * n * num_chips, 16 * k * num_chips);
        let weight = DenseMatrix::new("w", k, noise(seed, n * k));
        let x = noise(!seed, m * k);
        let mut one = CpuMesh::with_isa(num_chips, 1, isa).unwrap();
        let mut three = CpuMesh::with_isa(num_chips, 3, isa).unwrap();
        let whole = products(&mut one, &weight, dtype, &x);
        let threaded = products(&mut three, &weight, dtype, &x);
        assert_same("columns, threads", &threaded.0, &whole.0, Strength::EXACT);
        assert_same("rows, threads", &threaded.1, &whole.1, Strength::EXACT);
        let last = products(&mut three, &weight, dtype, &x[(m - 1) * k..]);
        assert_same("columns, alone", &last.0, &whole.0[(m - 1) * n..], Strength::EXACT);
        assert_same("rows, alone", &last.1, &whole.1[(m - 1) * n..], Strength::EXACT);
    }

    #[test]
    fn attention_of_any_shape_and_chunking_is_the_same(
        num_chips in 1usize..=3,
        (kv_heads, group, half_dim) in (1usize..3, 1usize..5, 1usize..33),
        block_size in select(vec![1usize, 3, 16, 32]),
        chunks in prop::collection::vec(1usize..30, 1..5),
        other_tokens in 1usize..40,
        dtype in select(vec![DType::F32, DType::Bf16, DType::Bfp8]),
        isa in isas(),
        seed in any::<u64>(),
    ) {
        // Shared exponents need whole groups of 16 channels.
        let head_dim = if dtype == DType::Bfp8 { 32 * half_dim.div_ceil(16) } else { 2 * half_dim };
        let shape = AttentionShape {
            num_attention_heads: num_chips * kv_heads * group,
            num_key_value_heads: num_chips * kv_heads,
            head_dim,
        };
        let num_tokens: usize = chunks.iter().sum();
        let [own, others] = [num_tokens, other_tokens].map(|n| n.div_ceil(block_size));
        let cache = KvCacheShape { num_layers: 1, num_blocks: own + others, block_size, dtype };
        // Blocks of two sequences, from the end.
        let blocks: Vec<u32> = (0..(own + others) as u32).rev().collect();
        let (own_table, other_table) = (&blocks[..own], &blocks[own..]);
        let sequence = Sequence::new(seed, num_tokens, shape);
        let other = Sequence::new(!seed, other_tokens, shape);

        let mut one = CpuMesh::with_isa(num_chips, 1, isa).unwrap();
        let mut three = CpuMesh::with_isa(num_chips, 3, isa).unwrap();
        let whole = AttentionRig::new(&mut one, shape, cache)
            .run_in_chunks(&sequence, &[num_tokens], own_table);
        let tolerance = if dtype == DType::F32 { 1e-4 } else { 0.03 };
        assert_close("attention", &whole, &sequence.attention(), tolerance);

        let mut rig = AttentionRig::new(&mut three, shape, cache);
        let chunked = rig.run_in_chunks(&sequence, &chunks, own_table);
        assert_same("chunked", &chunked, &whole, Strength::EXACT);
        let batched = rig.step(&[
            Piece { sequence: &other, tokens: 0..other_tokens, block_table: other_table },
            Piece { sequence: &sequence, tokens: 0..num_tokens, block_table: own_table },
        ]);
        assert_same("batched", &batched[1], &whole, Strength::EXACT);
    }
}

#[test]
fn a_step_without_logits_gives_none() {
    for num_chips in [1, 2] {
        let mut mesh = CpuMesh::new(num_chips, 2).unwrap();
        let head = DenseMatrix::new("head", 64, noise(1, 64 * 64));
        let head = mesh.load_column_parallel(&[&head], DType::Bfp8).unwrap();
        let x = upload_cut(&mut mesh, 64, &noise(2, 3 * 64));
        let none = mesh.select_rows(x, &[]).unwrap();
        let none = mesh.all_gather(none).unwrap();
        let logits = mesh.column_linear(&none, &head).unwrap();
        assert!(read_sharded(&mut mesh, logits).is_empty(), "{num_chips} chips");
    }
}

#[test]
fn a_mesh_without_chips_or_threads_is_refused() {
    for (num_chips, num_threads) in [(0, 1), (9, 1), (1, 0)] {
        let error = CpuMesh::new(num_chips, num_threads).err();
        assert!(matches!(error, Some(mesh::MeshError::DoesNotFit(_))), "{error:?}");
    }
}
