//! Operations on rows: embedding, norm, activation, residual, selection.

use super::Strength;
use super::probe::{
    assert_close, noise, read_replicated, read_sharded, row_batch, shard, upload, upload_cut,
};
use crate::{DType, DenseMatrix, Mesh};

const WIDTH: usize = 768;

/// `embed` gives the table's rows by token id, repeats included.
///
/// # Panics
/// When the law is broken.
pub fn embed_looks_rows_up<M: Mesh>(mesh: &mut M, strength: Strength) {
    let values = noise(20, 64 * WIDTH);
    let table = DenseMatrix::new("table", WIDTH, values.clone());
    let ids = vec![63, 0, 17, 17, 5];
    let want: Vec<f64> = ids
        .iter()
        .flat_map(|&id| &values[id as usize * WIDTH..][..WIDTH])
        .copied()
        .map(f64::from)
        .collect();
    for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::Bf16, 0.004), (DType::Bfp8, 0.008)] {
        let table = mesh.load_embedding(&table, dtype).expect("the table fits");
        let x = mesh.embed(&table, &row_batch(ids.clone())).expect("embed works");
        let got = read_sharded(mesh, x);
        let tolerance = f64::max(tolerance, strength.tolerance);
        assert_close(&format!("embed in {dtype}"), &got, &want, tolerance);
    }
}

/// `all_gather` puts the chips' slices side by side, in rank order, and changes
/// no bit of them: gathering what was cut gives the same as not cutting.
///
/// # Panics
/// When the law is broken.
pub fn all_gather_undoes_the_cut<M: Mesh>(mesh: &mut M, _strength: Strength) {
    let values = noise(25, 40 * WIDTH);
    let table = DenseMatrix::new("table", WIDTH, values);
    let table = mesh.load_embedding(&table, DType::Bf16).expect("the table fits");
    for ids in [vec![39], (0..40).collect()] {
        let batch = row_batch(ids);
        let x = mesh.embed(&table, &batch).expect("embed works");
        let want = read_sharded(mesh, x);
        let x = mesh.embed(&table, &batch).expect("embed works");
        let gathered = mesh.all_gather(x).expect("all_gather works");
        let got = read_replicated(mesh, &gathered, WIDTH);
        assert_eq!(got, want, "all_gather of {} rows", batch.num_tokens());
    }
}

/// `rms_norm` is `x / sqrt(mean(x²) + eps) · gain`; `eps` matters for small
/// rows, and rows of zeros stay zero.
///
/// # Panics
/// When the law is broken.
pub fn rms_norm_matches_its_formula<M: Mesh>(mesh: &mut M, strength: Strength) {
    let eps = 1e-5f32;
    let gain = noise(21, WIDTH);
    let loaded = DenseMatrix::new("gain", WIDTH, gain.clone());
    let loaded = mesh.load_gain(&loaded).expect("the gain fits");
    for (row, scale) in [1.0, 1e-3, 300.0, 0.0].into_iter().enumerate() {
        for num_rows in [1, 5] {
            let x: Vec<f32> = noise(22 + row as u64, num_rows * WIDTH)
                .into_iter()
                .map(|value| value * scale)
                .collect();
            let uploaded = upload_cut(mesh, WIDTH, &x);
            let y = mesh.rms_norm(&uploaded, &loaded, eps).expect("rms_norm works");
            let y = read_replicated(mesh, &y, WIDTH);
            let want: Vec<f64> = x.chunks_exact(WIDTH).flat_map(|x| norm(x, &gain, eps)).collect();
            let what = format!("rms_norm of {num_rows} rows of scale {scale}");
            assert_close(&what, &y, &want, strength.tolerance);
        }
    }
}

fn norm(x: &[f32], gain: &[f32], eps: f32) -> Vec<f64> {
    let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64;
    let scale = (mean + f64::from(eps)).sqrt().recip();
    x.iter().zip(gain).map(|(&x, &gain)| f64::from(x) * scale * f64::from(gain)).collect()
}

/// `silu_mul` is `gate / (1 + e^-gate) · up`, chip by chip, without overflow
/// for large gates.
///
/// # Panics
/// When the law is broken.
pub fn silu_mul_matches_its_formula<M: Mesh>(mesh: &mut M, strength: Strength) {
    let num_chips = mesh.describe().num_chips;
    let share = WIDTH / num_chips; // of [gate | up] on one chip
    for (seed, scale) in [(30, 4.0), (31, 120.0)] {
        let rows = 6;
        let x: Vec<f32> = noise(seed, rows * WIDTH).into_iter().map(|v| v * scale).collect();
        let uploaded = upload(mesh, WIDTH, &x);
        let gate_up = shard(mesh, &uploaded, WIDTH);
        let y = mesh.silu_mul(gate_up).expect("silu_mul works");
        let y = read_sharded(mesh, y);
        let want: Vec<f64> = x
            .chunks_exact(share)
            .flat_map(|gate_up| {
                let (gate, up) = gate_up.split_at(share / 2);
                gate.iter().zip(up).map(|(&gate, &up)| {
                    let gate = f64::from(gate);
                    gate / (1.0 + (-gate).exp()) * f64::from(up)
                })
            })
            .collect();
        assert_close(&format!("silu_mul at scale {scale}"), &y, &want, strength.tolerance);
    }
}

/// `add` adds value by value.
///
/// # Panics
/// When the law is broken.
pub fn add_is_elementwise<M: Mesh>(mesh: &mut M, strength: Strength) {
    for rows in [1, 40] {
        let (x, y) = (noise(40, rows * WIDTH), noise(41, rows * WIDTH));
        let (a, b) = (upload_cut(mesh, WIDTH, &x), upload_cut(mesh, WIDTH, &y));
        let sum = mesh.add(a, &b).expect("add works");
        let sum = read_sharded(mesh, sum);
        let want: Vec<f64> = x.iter().zip(&y).map(|(&x, &y)| f64::from(x) + f64::from(y)).collect();
        assert_close("add", &sum, &want, strength.tolerance);
    }
}

/// `select_rows` gives the rows asked for, in that order.
///
/// # Panics
/// When the law is broken.
pub fn select_rows_keeps_the_order_asked_for<M: Mesh>(mesh: &mut M, strength: Strength) {
    let x = noise(50, 5 * WIDTH);
    for rows in [vec![4], vec![0, 2, 4], vec![0, 1, 2, 3, 4], vec![4, 3, 2, 1, 0], vec![0, 1]] {
        let uploaded = upload_cut(mesh, WIDTH, &x);
        let selected = mesh.select_rows(uploaded, &rows).expect("select_rows works");
        let got = read_sharded(mesh, selected);
        let want: Vec<f64> = rows
            .iter()
            .flat_map(|&row| &x[row * WIDTH..][..WIDTH])
            .copied()
            .map(f64::from)
            .collect();
        assert_close(&format!("select_rows {rows:?}"), &got, &want, strength.tolerance);
    }
}
