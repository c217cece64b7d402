//! Candidates and draws.
//!
//! Ties go to the lower index everywhere; a NaN is below all numbers. The draws
//! are ours: which number a seed gives is the device's own affair.

use std::cmp::Ordering;

use super::commands::{Call, Commands};
use super::refusal::Op;
use super::rounding::is_whole;
use super::tensor::{Data, Tensor, TensorSpec};
use crate::ops::{Result, SamplingTensors};
use crate::spec::{DataType, Layout, TILE};

/// Candidates of a chip.
const CANDIDATES: usize = 32;
/// Leaves a generator as it is, so that what it draws depends on steps before.
const NO_SEED: u32 = u32::MAX;

pub(super) fn argmax(commands: &mut Commands, x: &Tensor) -> Result<Tensor> {
    let op = Op("argmax");
    op.needs_dtype("x", x.spec(), &[DataType::BFloat16, DataType::Float32])?;
    op.needs_layout("x", x.spec(), Layout::RowMajor)?;
    op.needs_interleaved("x", x.spec().memory)?;
    let (rows, width) = (x.spec().num_rows(), x.spec().width());
    op.needs_shape("x", x.spec(), [1, 1, rows, width])?;
    let spec = TensorSpec::row_major([1, 1, rows, 1], DataType::UInt32);
    let call = Call { op, inputs: &[x], config: &() };
    let [y] = commands.on_each_chip(&call, [spec], move |inputs| {
        let rows = inputs[0].reals().chunks_exact(width);
        Ok([Data::Whole(rows.map(|row| first_largest(row) as i64).collect())])
    })?;
    Ok(y)
}

fn first_largest(row: &[f32]) -> usize {
    let mut best = 0;
    for (idx, value) in row.iter().enumerate() {
        if descending(*value, row[best]) == Ordering::Less {
            best = idx;
        }
    }
    best
}

/// Largest first, NaN last; zeros of both signs are equal.
fn descending(a: f32, b: f32) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Greater,
        (false, true) => Ordering::Less,
        (false, false) => b.partial_cmp(&a).unwrap_or(Ordering::Equal),
    }
}

pub(super) fn topk_32(commands: &mut Commands, x: &Tensor) -> Result<[Tensor; 2]> {
    let op = Op("topk");
    op.needs_dtype("x", x.spec(), &[DataType::BFloat16, DataType::BFloat8B])?;
    op.needs_layout("x", x.spec(), Layout::Tile)?;
    op.needs_interleaved("x", x.spec().memory)?;
    let [_, _, rows, width] = x.spec().shape;
    op.needs_shape("x", x.spec(), [1, 1, rows, width])?;
    op.needs(width >= CANDIDATES, format_args!("at least {CANDIDATES} columns"), width)?;
    let index_dtype =
        if width <= usize::from(u16::MAX) { DataType::UInt16 } else { DataType::UInt32 };
    let values = TensorSpec { shape: [1, 1, rows, CANDIDATES], ..*x.spec() };
    let indices = TensorSpec { dtype: index_dtype, ..values };
    let call = Call { op, inputs: &[x], config: &CANDIDATES };
    commands.on_each_chip(&call, [values, indices], move |inputs| {
        let (mut values, mut indices) = (Vec::new(), Vec::new());
        for row in inputs[0].reals().chunks_exact(width) {
            let mut order: Vec<usize> = (0..width).collect();
            let before = |a: &usize, b: &usize| descending(row[*a], row[*b]).then(a.cmp(b));
            order.select_nth_unstable_by(CANDIDATES - 1, before);
            order.truncate(CANDIDATES);
            order.sort_unstable_by(before);
            values.extend(order.iter().map(|idx| row[*idx]));
            indices.extend(order.iter().map(|idx| *idx as i64));
        }
        Ok([Data::Real(values), Data::Whole(indices)])
    })
}

pub(super) fn offset_indices(
    commands: &mut Commands,
    indices: &Tensor,
    offsets: &Tensor,
) -> Result<Tensor> {
    let op = Op("add");
    op.needs(
        is_whole(indices.spec().dtype),
        "indices of integers",
        format_args!("{:?}", indices.spec().dtype),
    )?;
    op.needs_layout("indices", indices.spec(), Layout::Tile)?;
    op.needs_dtype("offsets", offsets.spec(), &[DataType::Int32])?;
    op.needs_layout("offsets", offsets.spec(), Layout::Tile)?;
    op.needs_shape("offsets", offsets.spec(), indices.spec().shape)?;
    let spec = TensorSpec { dtype: DataType::Int32, ..*indices.spec() };
    commands.log(Op("typecast"));
    let call = Call { op, inputs: &[indices, offsets], config: &"after typecast" };
    let [y] = commands.on_each_chip(&call, [spec], |inputs| {
        let pairs = inputs[0].wholes().iter().zip(inputs[1].wholes());
        Ok([Data::Whole(pairs.map(|(index, offset)| index + offset).collect())])
    })?;
    Ok(y)
}

pub(super) fn sampling(
    commands: &mut Commands,
    values: &Tensor,
    indices: &Tensor,
    parameters: &SamplingTensors<'_, Tensor>,
) -> Result<Tensor> {
    let op = Op("sampling");
    let SamplingTensors { top_k, top_p, inverse_temperature, seeds } = *parameters;
    op.needs_dtype("values", values.spec(), &[DataType::BFloat16])?;
    op.needs_layout("values", values.spec(), Layout::Tile)?;
    op.needs_interleaved("values", values.spec().memory)?;
    op.needs_dtype("indices", indices.spec(), &[DataType::Int32, DataType::UInt32])?;
    op.needs_layout("indices", indices.spec(), Layout::RowMajor)?;
    let (users, candidates) = (TILE, values.spec().width());
    op.needs_shape("values", values.spec(), [1, 1, users, candidates])?;
    op.needs_shape("indices", indices.spec(), values.spec().shape)?;
    let tiles = candidates / CANDIDATES;
    op.needs(
        candidates.is_multiple_of(CANDIDATES) && tiles.is_power_of_two(),
        "a power-of-2 number of tiles of candidates",
        candidates,
    )?;
    let per_user = [
        ("k", top_k, DataType::UInt32),
        ("p", top_p, DataType::BFloat16),
        ("temp", inverse_temperature, DataType::BFloat16),
        ("seeds", seeds, DataType::UInt32),
    ];
    for (what, tensor, dtype) in per_user {
        op.needs_dtype(what, tensor.spec(), &[dtype])?;
        op.needs_layout(what, tensor.spec(), Layout::RowMajor)?;
        op.needs_shape(what, tensor.spec(), [1, 1, 1, users])?;
        op.needs(tensor.spec().rank == 1, format_args!("{what} of rank 1"), tensor.spec().rank)?;
    }
    let spec = TensorSpec::row_major([1, 1, 1, users], DataType::UInt32);
    commands.log(Op("manual_seed"));
    let inputs = [values, indices, top_k, top_p, inverse_temperature, seeds];
    let call = Call { op, inputs: &inputs, config: &() };
    let [y] = commands.on_each_chip(&call, [spec], move |inputs| {
        let ids = (0..users).map(|user| {
            let row = user * candidates..(user + 1) * candidates;
            let (values, ids) = (&inputs[0].reals()[row.clone()], &inputs[1].wholes()[row]);
            let top_k = inputs[2].wholes()[user];
            let kept = usize::try_from(top_k).ok().filter(|k| (1..=CANDIDATES).contains(k));
            let seed = u32::try_from(inputs[5].wholes()[user]).ok().filter(|s| *s != NO_SEED);
            let seed = seed.ok_or_else(|| op.refusal("seeds below 2^32 - 1", NO_SEED))?;
            let draw = Draw {
                top_k: kept.ok_or_else(|| op.refusal("k from 1 to 32", top_k))?,
                top_p: inputs[3].reals()[user],
                inverse_temperature: inputs[4].reals()[user],
                uniform: uniform(seed, user),
            };
            Ok(draw.of(values, ids))
        });
        Ok([Data::Whole(ids.collect::<Result<_>>()?)])
    })?;
    Ok(y)
}

/// How one user's id is drawn.
struct Draw {
    top_k: usize,
    top_p: f32,
    inverse_temperature: f32,
    /// In 0..1.
    uniform: f64,
}

impl Draw {
    /// The `top_k` largest, of them the fewest whose probability reaches `top_p`,
    /// and one of those by its probability.
    fn of(&self, values: &[f32], ids: &[i64]) -> i64 {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_unstable_by(|a, b| {
            descending(values[*a], values[*b]).then(ids[*a].cmp(&ids[*b]))
        });
        order.truncate(self.top_k);
        let scaled = |idx: &usize| f64::from(values[*idx]) * f64::from(self.inverse_temperature);
        let largest = scaled(&order[0]);
        let weights: Vec<f64> = order.iter().map(|idx| (scaled(idx) - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let (mut kept, mut mass) = (0, 0.0);
        while kept < weights.len() && (kept == 0 || mass < f64::from(self.top_p) * total) {
            mass += weights[kept];
            kept += 1;
        }
        let mut left = self.uniform * mass;
        for (idx, weight) in order.iter().zip(&weights[..kept]) {
            left -= weight;
            if left < 0.0 {
                return ids[*idx];
            }
        }
        // Rounding, or NaN: the last one kept.
        ids[order[kept - 1]]
    }
}

/// A number from 0 to 1 of a seed and a row: SplitMix64's finalizer.
fn uniform(seed: u32, row: usize) -> f64 {
    let mut bits = (u64::from(seed) << 32 | row as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    // 53 bits fill a double's significand.
    (bits >> 11) as f64 / (1u64 << 53) as f64
}
