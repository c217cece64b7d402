//! Pearson's correlation of two rows of logits.

/// 1 when one row is the other scaled and shifted, 0 when they have nothing in
/// common. Two rows without any variation correlate if they are equal.
///
/// # Panics
/// When the rows differ in length.
pub(super) fn pearson(left: &[f32], right: &[f32]) -> f64 {
    assert_eq!(left.len(), right.len(), "rows of one vocabulary");
    let mean = |row: &[f32]| row.iter().copied().map(f64::from).sum::<f64>() / row.len() as f64;
    let (left_mean, right_mean) = (mean(left), mean(right));
    let (mut covariance, mut left_variance, mut right_variance) = (0.0, 0.0, 0.0);
    for (&l, &r) in left.iter().zip(right) {
        let (l, r) = (f64::from(l) - left_mean, f64::from(r) - right_mean);
        covariance += l * r;
        left_variance += l * l;
        right_variance += r * r;
    }
    let scale = (left_variance * right_variance).sqrt();
    if scale > 0.0 { covariance / scale } else { f64::from(u8::from(left == right)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_correlations() {
        let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12);
        let row = [1.0, 2.0, 4.0, -3.0];
        close(pearson(&row, &row), 1.0);
        close(pearson(&row, &row.map(|x| 5.0 * x + 7.0)), 1.0);
        close(pearson(&row, &row.map(|x| -x)), -1.0);
        // By hand: deviations (-1, 0, 1) and (-1/3, 2/3, -1/3) are orthogonal.
        close(pearson(&[1.0, 2.0, 3.0], &[0.0, 1.0, 0.0]), 0.0);
        // Deviations (-1.5, -0.5, 0.5, 1.5) and (-1.75, -0.75, 0.25, 2.25).
        close(pearson(&[1.0, 2.0, 3.0, 4.0], &[1.0, 2.0, 3.0, 5.0]), 6.5 / (5.0_f64 * 8.75).sqrt());
    }

    #[test]
    fn rows_that_do_not_vary() {
        assert_eq!(pearson(&[2.0; 3], &[2.0; 3]), 1.0);
        assert_eq!(pearson(&[2.0; 3], &[3.0; 3]), 0.0);
        assert_eq!(pearson(&[2.0; 3], &[1.0, 2.0, 3.0]), 0.0);
    }
}
