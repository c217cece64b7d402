//! Sampling against naive oracles.

use super::*;

const VOCAB: usize = 200;

/// Logits with ties, as rounded model outputs have.
fn logits(seed: u64) -> Vec<f32> {
    (0..VOCAB as u32)
        .map(|i| ((philox::draw(seed, i) >> 52) as f32 / 128.0).floor() * 0.5 - 8.0)
        .collect()
}

fn with(sampling: &Sampling, index: u32, logits: &[f32]) -> u32 {
    with_counts(sampling, &TokenCounts::default(), index, logits)
}

fn with_counts(sampling: &Sampling, counts: &TokenCounts, index: u32, logits: &[f32]) -> u32 {
    let context =
        SampleContext { sampling, counts, index, banned: &[], fallback: 0, logprobs: None };
    sample(&mut logits.to_vec(), &context, &mut Scratch::default()).unwrap().token_id
}

/// The tokens that may be drawn, by sorting everything, with probabilities.
fn oracle(logits: &[f32], sampling: &Sampling) -> Vec<(u32, f64)> {
    let scaled = |logit: f32| f64::from(logit) / f64::from(sampling.temperature);
    let max = logits.iter().map(|l| scaled(*l)).fold(f64::MIN, f64::max);
    let mut tokens: Vec<(u32, f64)> =
        (0..).zip(logits.iter().map(|l| (scaled(*l) - max).exp())).collect();
    tokens.sort_by(|a, b| b.1.total_cmp(&a.1));
    tokens.retain(|(_, p)| *p >= f64::from(sampling.min_p) * (1.0 - 1e-9));
    tokens.truncate(sampling.top_k.map_or(usize::MAX, |k| k as usize));
    let total: f64 = tokens.iter().map(|(_, p)| p).sum();
    let mut reached = 0.0;
    let mut kept = 0;
    while kept < tokens.len() && reached < f64::from(sampling.top_p) * total - 1e-12 {
        reached += tokens[kept].1;
        kept += 1;
    }
    tokens.truncate(kept.max(1));
    tokens.into_iter().map(|(id, p)| (id, p / reached)).collect()
}

fn remaining(logits: &[f32], sampling: &Sampling) -> Vec<u32> {
    let mut candidates = Candidates::default();
    let max = logits.iter().copied().fold(f32::MIN, f32::max);
    candidates.weigh(logits, max, sampling);
    if let Some(top_k) = sampling.top_k {
        candidates.keep_top_k(top_k);
    }
    if sampling.top_p < 1.0 {
        candidates.keep_top_p(sampling.top_p);
    }
    candidates.ids()
}

#[test]
fn cuts_leave_what_a_full_sort_leaves() {
    for seed in 0..200 {
        let logits = logits(seed);
        for temperature in [0.3, 1.0, 1.7] {
            for top_k in [None, Some(2), Some(17), Some(199), Some(5000)] {
                for (top_p, min_p) in [(1.0, 0.0), (0.9, 0.0), (0.35, 0.013), (1e-6, 0.4)] {
                    let sampling =
                        Sampling { temperature, top_k, top_p, min_p, ..Sampling::default() };
                    let mut expected: Vec<u32> =
                        oracle(&logits, &sampling).into_iter().map(|(id, _)| id).collect();
                    expected.sort_unstable();
                    let mut kept = remaining(&logits, &sampling);
                    if top_p == 1.0 && expected.len() > kept.len() {
                        // Weights below 2^-31 are never drawn, nor kept.
                        let max = logits.iter().copied().fold(f32::MIN, f32::max);
                        expected.retain(|id| (logits[*id as usize] - max) / temperature >= -21.487);
                    }
                    kept.sort_unstable();
                    assert_eq!(kept, expected, "seed {seed} {sampling:?}");
                }
            }
        }
    }
}

#[test]
fn frequencies_are_the_probabilities() {
    const DRAWS: u32 = 40_000;
    for sampling in [
        Sampling { temperature: 1.0, seed: 5, ..Sampling::default() },
        Sampling { temperature: 1.6, top_k: Some(40), seed: 6, ..Sampling::default() },
        Sampling { temperature: 0.8, top_p: 0.9, min_p: 0.01, seed: 7, ..Sampling::default() },
    ] {
        let logits = logits(3);
        let expected = oracle(&logits, &sampling);
        let mut counts = vec![0u32; VOCAB];
        for index in 0..DRAWS {
            counts[with(&sampling, index, &logits) as usize] += 1;
        }
        let mut chi_square = 0.0f64;
        let mut cells = 0.0f64;
        for (id, p) in &expected {
            let mean = p * f64::from(DRAWS);
            if mean >= 5.0 {
                chi_square += (f64::from(counts[*id as usize]) - mean).powi(2) / mean;
                cells += 1.0;
            }
            counts[*id as usize] = 0;
        }
        assert!(counts.iter().all(|count| *count == 0), "an excluded token was drawn");
        // Five standard deviations above the mean of the distribution.
        assert!(chi_square < cells + 5.0 * (2.0 * cells).sqrt(), "{chi_square} of {cells}");
    }
}

#[test]
fn greedy_takes_the_lowest_id_of_the_greatest() {
    let check = |logits: &[f32], expected| {
        assert_eq!(with(&Sampling::default(), 0, logits), expected);
        let top_1 = Sampling { temperature: 1.0, top_k: Some(1), ..Sampling::default() };
        assert_eq!(with(&top_1, 0, logits), expected);
        let tiny = Sampling { temperature: f32::MIN_POSITIVE, top_p: 1e-9, ..Sampling::default() };
        assert_eq!(with(&tiny, 0, logits), expected);
    };
    check(&[1.0, 3.0, 2.0, 3.0], 1);
    check(&[0.0, 0.0], 0);
    check(&[-0.0, 0.0], 0);
    check(&[-5.0, -7.0, -4.5], 2);
    check(&[f32::MIN, f32::MAX], 1);
}

#[test]
fn a_draw_depends_on_seed_and_index_alone() {
    let logits = logits(9);
    let sampling = Sampling { temperature: 1.5, top_p: 0.95, seed: 77, ..Sampling::default() };
    let alone: Vec<u32> = (0..50).map(|index| with(&sampling, index, &logits)).collect();
    let mut scratch = Scratch::default();
    for index in (0..50).rev() {
        let counts = TokenCounts::default();
        // Something else in between, with the same scratch.
        let other = Sampling { temperature: 9.0, seed: index.into(), ..Sampling::default() };
        for (sampling, index) in [(&other, 3), (&sampling, index)] {
            let context = SampleContext {
                sampling,
                counts: &counts,
                index,
                banned: &[],
                fallback: 0,
                logprobs: None,
            };
            let token = sample(&mut logits.clone(), &context, &mut scratch).unwrap().token_id;
            if sampling.seed == 77 {
                assert_eq!(token, alone[index as usize]);
            }
        }
    }
    let other_seed = Sampling { seed: 78, ..sampling.clone() };
    let other: Vec<u32> = (0..50).map(|index| with(&other_seed, index, &logits)).collect();
    assert_ne!(alone, other);
}

#[test]
fn penalties_count_what_they_should() {
    let check = |sampling: Sampling, prompt: &[u32], answer: &[u32], expected: [f32; 4]| {
        let counts = TokenCounts::new(&sampling, prompt, answer);
        let context = SampleContext {
            sampling: &sampling,
            counts: &counts,
            index: 0,
            banned: &[],
            fallback: 0,
            logprobs: None,
        };
        let mut logits = [4.0, -4.0, 2.0, 1.0];
        adjust(&mut logits, &context);
        assert_eq!(logits, expected);
    };
    let none = Sampling::default();
    check(none.clone(), &[0, 1], &[2, 2], [4.0, -4.0, 2.0, 1.0]);
    let presence = Sampling { presence_penalty: 0.5, ..none.clone() };
    check(presence, &[0], &[2, 2, 1], [4.0, -4.5, 1.5, 1.0]);
    let frequency = Sampling { frequency_penalty: 0.5, ..none.clone() };
    check(frequency, &[0], &[2, 2, 1], [4.0, -4.5, 1.0, 1.0]);
    let repetition = Sampling { repetition_penalty: 2.0, ..none.clone() };
    check(repetition, &[0, 0, 1], &[1, 3, 3], [2.0, -8.0, 2.0, 0.5]);
    let bias = Sampling { logit_bias: vec![(1, 100.0), (3, -100.0)], ..none.clone() };
    check(bias, &[], &[], [4.0, 96.0, 2.0, -99.0]);
    let all = Sampling {
        logit_bias: vec![(2, 2.0)],
        repetition_penalty: 2.0,
        presence_penalty: 0.25,
        frequency_penalty: 0.5,
        ..none.clone()
    };
    check(all, &[3], &[2, 2], [4.0, -4.0, 0.75, 0.5]);
    let extreme = Sampling { repetition_penalty: 1e-38, ..none };
    check(extreme, &[0], &[], [f32::MAX, -4.0, 2.0, 1.0]);
}

#[test]
fn with_everything_banned_the_fallback_is_chosen() {
    let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
    let context = SampleContext {
        sampling: &sampling,
        counts: &TokenCounts::default(),
        index: 0,
        banned: &[0, 1, 2],
        fallback: 2,
        logprobs: Some(1),
    };
    let sampled = sample(&mut [1.0, 2.0, 3.0], &context, &mut Scratch::default()).unwrap();
    assert_eq!(sampled.token_id, 2);
    // Of the model's own distribution all the same.
    assert!(sampled.logprobs.unwrap().logprob > -0.5);
    let banned = SampleContext { banned: &[2], ..context };
    let sampled = sample(&mut [1.0, 2.0, 3.0], &banned, &mut Scratch::default()).unwrap();
    assert_ne!(sampled.token_id, 2);
    // A bias of -100 everywhere changes nothing but the level.
    let lowered = Sampling { logit_bias: (0..3).map(|id| (id, -100.0)).collect(), ..sampling };
    assert!(with(&lowered, 0, &[1.0, 2.0, 3.0]) < 3);
}

#[test]
fn a_row_that_is_not_finite_is_refused() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut logits = logits(1);
        logits[100] = bad;
        let sampling = Sampling::default();
        let context = SampleContext {
            sampling: &sampling,
            counts: &TokenCounts::default(),
            index: 0,
            banned: &[],
            fallback: 0,
            logprobs: None,
        };
        assert_eq!(sample(&mut logits, &context, &mut Scratch::default()), Err(NonFinite));
    }
}

#[test]
fn logprobs_are_those_of_the_softmax() {
    let logits = logits(4);
    let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
    let reported = logprobs(&logits, 17, 5);
    let exact = |id: u32| f64::from(logits[id as usize]) - sum.ln();
    assert!((f64::from(reported.logprob) - exact(17)).abs() < 1e-5);
    let mut order: Vec<u32> = (0..VOCAB as u32).collect();
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
    let ids: Vec<u32> = reported.top.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, order[..5]);
    for (id, logprob) in reported.top {
        assert!((f64::from(logprob) - exact(id)).abs() < 1e-5);
    }
    assert_eq!(logprobs(&logits, 17, 0).top, []);
    assert_eq!(logprobs(&logits[..3], 1, 20).top.len(), 3);
}

#[test]
fn logprobs_come_before_bias_and_temperature() {
    let sampling = Sampling {
        temperature: 3.0,
        logit_bias: vec![(0, 50.0)],
        repetition_penalty: 1.5,
        ..Sampling::default()
    };
    let counts = TokenCounts::new(&sampling, &[1], &[0]);
    let context = SampleContext {
        sampling: &sampling,
        counts: &counts,
        index: 0,
        banned: &[],
        fallback: 0,
        logprobs: Some(2),
    };
    let logits = [1.0, 2.0, 0.5];
    let sampled = sample(&mut logits.clone(), &context, &mut Scratch::default()).unwrap();
    assert_eq!(sampled.token_id, 0);
    assert_eq!(sampled.logprobs, Some(logprobs(&logits, 0, 2)));
}
