//! Candidates and draws.

use proptest::prelude::*;

use super::*;
use crate::ops::SamplingTensors;

const BF16: DataType = DataType::BFloat16;

#[test]
fn the_largest_comes_first_and_the_lowest_index_wins_a_tie() {
    let mut ops = ReferenceOps::new(1);
    let mut values = vec![0.0; 3 * 64];
    values[10] = 1.0;
    values[40] = 1.0;
    values[64..128].fill(-3.0);
    values[128..192].fill(f32::NAN);
    values[128 + 63] = f32::NEG_INFINITY;
    let x = Upload::tiles([1, 1, 3, 64], BF16).reals(&mut ops, &values);
    let rows = ops.untilize(&x).unwrap();
    let best = ops.argmax(&rows).unwrap();
    assert_eq!(ops.shape(&best), [1, 1, 3, 1]);
    assert_eq!(ops.read_ids(&best, 0).unwrap(), [10, 0, 63]);

    let [largest, indices] = ops.topk_32(&x).unwrap();
    let indices = ops.read_ids(&indices, 0).unwrap();
    assert_eq!(ops.read(&largest, 0).unwrap()[..3], [1.0, 1.0, 0.0]);
    assert_eq!(indices[..4], [10, 40, 0, 1]);
    assert_eq!(indices[32..64], (0..32).collect::<Vec<u32>>());
    assert_eq!(indices[64..66], [63, 0], "no number is above a NaN");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn candidates_are_the_first_of_the_sorted_row(width in 32usize..400, seed in 0u64..1000) {
        let mut ops = ReferenceOps::new(1);
        let values = numbers(seed, 2 * width);
        let x = Upload::tiles([1, 1, 2, width], BF16).reals(&mut ops, &values);
        let [_, indices] = ops.topk_32(&x).unwrap();
        let indices = ops.read_ids(&indices, 0).unwrap();
        for (row, indices) in values.chunks(width).zip(indices.chunks(32)) {
            let mut order: Vec<usize> = (0..width).collect();
            order.sort_by(|a, b| row[*b].partial_cmp(&row[*a]).unwrap());
            prop_assert!(indices.iter().zip(order).all(|(got, want)| *got as usize == want));
        }
    }
}

#[test]
fn wide_rows_have_wide_indices() {
    let mut ops = ReferenceOps::new(1);
    for (width, dtype) in [(65_535, DataType::UInt16), (65_536, DataType::UInt32)] {
        let x = ops.zeros([1, 1, 1, width], BF16, Layout::Tile, &MemoryConfig::DRAM).unwrap();
        let [_, indices] = ops.topk_32(&x).unwrap();
        assert_eq!(indices.spec().dtype, dtype);
    }
    let narrow = ops.zeros([1, 1, 1, 31], BF16, Layout::Tile, &MemoryConfig::DRAM).unwrap();
    assert_refused(ops.topk_32(&narrow), &["topk", "at least 32 columns"]);
}

/// One sampling of 32 users over the same candidates.
#[derive(Clone, Copy)]
struct Sampling<'a> {
    values: &'a [f32],
    top_k: u32,
    top_p: f32,
    inverse_temperature: f32,
    first_seed: u32,
}

impl Sampling<'_> {
    /// Ids from 1000 up.
    fn run(self, ops: &mut ReferenceOps) -> crate::ops::Result<Vec<u32>> {
        let width = self.values.len();
        let values = Upload::tiles([1, 1, 32, width], BF16).reals(ops, &self.values.repeat(32));
        let local: Vec<i32> = (0..width as i32).collect();
        let indices = Upload::tiles([1, 1, 32, width], DataType::Int32);
        let local = indices.int32(ops, &local.repeat(32));
        let offsets = indices.int32(ops, &vec![1000; 32 * width]);
        let indices = ops.offset_indices(&local, &offsets)?;
        let indices = ops.untilize(&indices)?;
        let ids = Upload::rows([1, 1, 1, 32], DataType::UInt32).rank(1);
        let reals = Upload::rows([1, 1, 1, 32], BF16).rank(1);
        let top_k = ids.uint32(ops, &[self.top_k; 32]);
        let seeds: Vec<u32> = (0..32).map(|user| self.first_seed.wrapping_add(user)).collect();
        let seeds = ids.uint32(ops, &seeds);
        let top_p = reals.reals(ops, &[self.top_p; 32]);
        let inverse_temperature = reals.reals(ops, &[self.inverse_temperature; 32]);
        let parameters = SamplingTensors {
            top_k: &top_k,
            top_p: &top_p,
            inverse_temperature: &inverse_temperature,
            seeds: &seeds,
        };
        let y = ops.sampling(&values, &indices, &parameters)?;
        assert_eq!(ops.shape(&y), [1, 1, 1, 32]);
        ops.read_ids(&y, 0)
    }
}

/// Probabilities 1/2, 1/4 and two of 1/8; the other candidates have none.
fn candidates() -> Vec<f32> {
    let mut values = vec![-1000.0; 32];
    values[20] = 3.0;
    values[3] = 2.0;
    values[30] = 1.0;
    values[7] = 1.0;
    values
}

/// The inverse temperature that makes powers of 2 of whole numbers.
const LN_2: f32 = std::f32::consts::LN_2;

#[test]
fn draws_follow_the_probabilities() {
    let mut ops = ReferenceOps::new(1);
    let values = candidates();
    let all = Sampling {
        values: &values,
        top_k: 32,
        top_p: 1.0,
        inverse_temperature: LN_2,
        first_seed: 0,
    };
    let mut counts = [0u32; 32];
    for step in 0..100 {
        let ids = Sampling { first_seed: step * 32, ..all }.run(&mut ops).unwrap();
        ids.iter().for_each(|id| counts[*id as usize - 1000] += 1);
    }
    // 3200 draws: within 5 standard deviations of 28, 24 and 19.
    for (id, expected) in [(20, 1600), (3, 800), (30, 400), (7, 400)] {
        assert!(counts[id].abs_diff(expected) < 140, "{id}: {} for {expected}", counts[id]);
    }
    assert_eq!(counts.iter().sum::<u32>(), 3200);

    let again = all.run(&mut ops).unwrap();
    assert_eq!(all.run(&mut ops).unwrap(), again, "a seed's draw is always the same");
}

#[test]
fn top_k_and_top_p_keep_the_fewest() {
    let mut ops = ReferenceOps::new(1);
    let values = candidates();
    let kept = |ops: &mut ReferenceOps, top_k, top_p| {
        let inverse_temperature = LN_2;
        let mut ids: Vec<u32> = (0..20)
            .flat_map(|step| {
                let first_seed = step * 32;
                let sampling =
                    Sampling { values: &values, top_k, top_p, inverse_temperature, first_seed };
                sampling.run(ops).unwrap()
            })
            .map(|id| id - 1000)
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    };
    assert_eq!(kept(&mut ops, 1, 1.0), [20]);
    assert_eq!(kept(&mut ops, 2, 1.0), [3, 20]);
    // Of two that are equal the lower id is kept.
    assert_eq!(kept(&mut ops, 3, 1.0), [3, 7, 20]);
    assert_eq!(kept(&mut ops, 32, 0.0), [20]);
    assert_eq!(kept(&mut ops, 32, 0.4), [20]);
    assert_eq!(kept(&mut ops, 32, 0.6), [3, 20]);
    assert_eq!(kept(&mut ops, 32, 0.8), [3, 7, 20]);
    // Of the two kept by top_k, the first has 2/3.
    assert_eq!(kept(&mut ops, 2, 0.6), [20]);
}

#[test]
fn sampling_demands_what_the_package_does() {
    let mut ops = ReferenceOps::new(1);
    let good = Sampling {
        values: &[0.0; 64],
        top_k: 32,
        top_p: 1.0,
        inverse_temperature: 1.0,
        first_seed: 0,
    };
    good.run(&mut ops).unwrap();
    let three = Sampling { values: &[0.0; 96], ..good };
    assert_refused(three.run(&mut ops), &["sampling", "power-of-2 number of tiles", "96"]);
    for top_k in [0, 33] {
        let k = Sampling { top_k, ..good };
        assert_refused(k.run(&mut ops), &["k from 1 to 32", &top_k.to_string()]);
    }
    let seeds = Sampling { first_seed: u32::MAX, ..good };
    assert_refused(seeds.run(&mut ops), &["seeds below 2^32 - 1"]);
}

#[test]
fn an_argmax_reads_rows() {
    let mut ops = ReferenceOps::new(1);
    let x = Upload::tiles([1, 1, 1, 64], BF16).reals(&mut ops, &[0.0; 64]);
    assert_refused(ops.argmax(&x), &["argmax", "layout RowMajor"]);
    let blocks = ops.typecast(&x, DataType::BFloat8B).unwrap();
    assert_refused(ops.argmax(&blocks), &["argmax", "BFloat8B"]);
}
