//! Matrix products: column- and row-parallel against loops in f64.

use super::Strength;
use super::probe::{
    assert_close, assert_same, matmul, noise, read_replicated, read_sharded, shard, upload,
    weight_noise,
};
use crate::{DType, DenseMatrix, Matrix, Mesh};

/// Divides by every number of chips up to 8 but 5 and 7, in whole tiles by 8.
const WIDTH: usize = 768;
/// Row counts of one row, a few, and more than one tile.
const ROW_COUNTS: [usize; 3] = [1, 5, 33];

/// `column_linear` is `x · Wᵀ`, its shards in rank order.
///
/// # Panics
/// When the law is broken.
pub fn column_linear_is_a_matmul<M: Mesh>(mesh: &mut M, strength: Strength) {
    let weight = weight_noise(1, WIDTH / 2, WIDTH);
    let loaded = mesh.load_column_parallel(&[&weight], DType::F32).expect("the weight fits");
    for rows in ROW_COUNTS {
        let x = noise(2, rows * WIDTH);
        let uploaded = upload(mesh, WIDTH, &x);
        let y = mesh.column_linear(&uploaded, &loaded).expect("column_linear works");
        let y = read_sharded(mesh, y);
        let want = matmul(&x, &values(&weight), WIDTH);
        assert_close(&format!("column_linear of {rows} rows"), &y, &want, strength.tolerance);
    }
}

/// Chip `c` of a fused projection holds the `c`-th slice of the first part,
/// then of the second, and so on.
///
/// # Panics
/// When the law is broken.
pub fn fused_parts_lie_in_order_on_each_chip<M: Mesh>(mesh: &mut M, strength: Strength) {
    let num_chips = mesh.describe().num_chips;
    let parts = [(3, WIDTH), (4, WIDTH / 2), (5, WIDTH / 4)]
        .map(|(seed, rows)| weight_noise(seed, rows, WIDTH));
    let sources = parts.each_ref().map(|part| part as &dyn Matrix);
    let loaded = mesh.load_column_parallel(&sources, DType::F32).expect("the parts fit");
    let rows = 3;
    let x = noise(6, rows * WIDTH);
    let uploaded = upload(mesh, WIDTH, &x);
    let y = mesh.column_linear(&uploaded, &loaded).expect("column_linear works");
    let y = read_sharded(mesh, y);

    let products: Vec<Vec<f64>> =
        parts.iter().map(|part| matmul(&x, &values(part), WIDTH)).collect();
    let mut want = Vec::new();
    for row in 0..rows {
        for chip in 0..num_chips {
            for (part, product) in parts.iter().zip(&products) {
                let share = part.rows() / num_chips;
                want.extend(&product[row * part.rows() + chip * share..][..share]);
            }
        }
    }
    assert_close("fused column_linear", &y, &want, strength.tolerance);
}

/// `row_linear` then `reduce_scatter` is `x · Wᵀ`, whatever the number of chips.
///
/// # Panics
/// When the law is broken.
pub fn row_linear_sums_over_the_chips<M: Mesh>(mesh: &mut M, strength: Strength) {
    let weight = weight_noise(7, WIDTH, WIDTH);
    let loaded = mesh.load_row_parallel(&weight, DType::F32).expect("the weight fits");
    for rows in ROW_COUNTS {
        let x = noise(8, rows * WIDTH);
        let uploaded = upload(mesh, WIDTH, &x);
        let sharded = shard(mesh, &uploaded, WIDTH);
        let partial = mesh.row_linear(&sharded, &loaded).expect("row_linear works");
        let sum = mesh.reduce_scatter(partial).expect("reduce_scatter works");
        let sum = read_sharded(mesh, sum);
        let want = matmul(&x, &values(&weight), WIDTH);
        assert_close(&format!("row_linear of {rows} rows"), &sum, &want, strength.tolerance);
    }
}

/// `all_gather` then `column_linear` is the other way to multiply what the
/// chips hold in slices: the product of the whole row, with no sum over chips,
/// so that it is the product of the uncut activation in every bit.
///
/// # Panics
/// When the law is broken.
pub fn a_gathered_product_is_the_uncut_one<M: Mesh>(mesh: &mut M, strength: Strength) {
    let weight = weight_noise(11, WIDTH, WIDTH);
    for dtype in [DType::Bf16, DType::Bfp8] {
        let loaded = mesh.load_column_parallel(&[&weight], dtype).expect("the weight fits");
        for rows in ROW_COUNTS {
            let uploaded = upload(mesh, WIDTH, &noise(12, rows * WIDTH));
            let uncut = mesh.column_linear(&uploaded, &loaded).expect("column_linear works");
            let uncut = read_sharded(mesh, uncut);
            let cut = shard(mesh, &uploaded, WIDTH);
            let gathered = mesh.all_gather(cut).expect("all_gather works");
            let product = mesh.column_linear(&gathered, &loaded).expect("column_linear works");
            let product = mesh.all_gather(product).expect("all_gather works");
            let product = read_replicated(mesh, &product, WIDTH);
            assert_same(&format!("{rows} gathered rows in {dtype}"), &product, &uncut, strength);
        }
    }
}

/// A weight stored in fewer bits loses no more than its format must: the error
/// of a product, root mean square over its values, is bounded by a few times
/// the rounding step of uniform noise.
///
/// # Panics
/// When the law is broken.
pub fn stored_weights_keep_their_precision<M: Mesh>(mesh: &mut M, strength: Strength) {
    let weight = weight_noise(9, WIDTH, WIDTH);
    let x = noise(10, 4 * WIDTH);
    let want = matmul(&x, &values(&weight), WIDTH);
    // Rounding to b magnitude bits under a shared exponent leaves about
    // 2^-b / sqrt(3) of the root mean square.
    for (dtype, bound) in
        [(DType::F32, 1e-6), (DType::Bf16, 0.004), (DType::Bfp8, 0.012), (DType::Bfp4, 0.18)]
    {
        let bound = f64::max(bound, strength.tolerance);
        let uploaded = upload(mesh, WIDTH, &x);
        let columns = mesh.load_column_parallel(&[&weight], dtype).expect("the weight fits");
        let y = mesh.column_linear(&uploaded, &columns).expect("column_linear works");
        let y = read_sharded(mesh, y);
        assert_rms(&format!("column_linear in {dtype}"), &y, &want, bound);

        let rows = mesh.load_row_parallel(&weight, dtype).expect("the weight fits");
        let sharded = shard(mesh, &uploaded, WIDTH);
        let partial = mesh.row_linear(&sharded, &rows).expect("row_linear works");
        let sum = mesh.reduce_scatter(partial).expect("reduce_scatter works");
        let sum = read_sharded(mesh, sum);
        assert_rms(&format!("row_linear in {dtype}"), &sum, &want, bound);
    }
}

fn values(matrix: &DenseMatrix) -> Vec<f32> {
    let mut values = vec![0.0; matrix.rows() * matrix.cols()];
    matrix.read_rows(0, &mut values).expect("a matrix in memory can be read");
    values
}

#[track_caller]
fn assert_rms(what: &str, got: &[f32], want: &[f64], bound: f64) {
    assert_eq!(got.len(), want.len(), "{what}: number of values");
    let error: f64 = got.iter().zip(want).map(|(&g, w)| (f64::from(g) - w).powi(2)).sum();
    let size: f64 = want.iter().map(|w| w * w).sum();
    let relative = (error / size).sqrt();
    assert!(relative <= bound, "{what}: relative error is {relative:.2e}, allowed {bound:.2e}");
}
