//! How far logits are from the reference's.

/// Largest difference of any logit, over the largest logit of its position; the
/// worst position counts.
pub(crate) fn relative_error(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let errors = found.iter().zip(expected).map(|(found, expected)| {
        assert_eq!(found.len(), expected.len());
        let largest = expected.iter().fold(0.0, |most: f64, x| most.max(f64::from(x.abs())));
        let differences =
            found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
        differences.fold(0.0, max_or_nan) / largest
    });
    errors.fold(0.0, max_or_nan)
}

/// Pearson's correlation with the reference's logits, all positions together.
pub(crate) fn pcc(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f64 {
    correlation(&found.concat(), &expected.concat())
}

/// That of the position where it is least.
pub(crate) fn worst_pcc(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f64 {
    assert_eq!(found.len(), expected.len());
    // One minus, so that a NaN is the worst.
    let errors = found.iter().zip(expected).map(|(a, b)| 1.0 - correlation(a, b));
    1.0 - errors.fold(0.0, max_or_nan)
}

fn correlation(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let mean = |x: &[f32]| x.iter().copied().map(f64::from).sum::<f64>() / x.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (f64::from(*a) - mean_a, f64::from(*b) - mean_b);
        ab += a * b;
        aa += a * a;
        bb += b * b;
    }
    ab / (aa * bb).sqrt()
}

/// `f64::max` forgets a NaN; a bar must not.
fn max_or_nan(most: f64, x: f64) -> f64 {
    if x.is_nan() || x > most { x } else { most }
}

/// The likeliest id; of equal ones the lowest.
pub(crate) fn argmax(row: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in row.iter().enumerate() {
        if *logit > row[best] {
            best = id;
        }
    }
    best as u32
}
