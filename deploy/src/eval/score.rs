//! What one row of logits is worth against the reference, and the sums over
//! many.

use anyhow::{Context as _, ensure};
use worker::sampler::{check_finite, logprobs};

/// Ids of a reference row.
pub(super) const TOP: usize = 5;

/// One position, scored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scored {
    /// The position whose following token is predicted.
    pub(super) position: usize,
    /// The likeliest id here, the lowest on a tie.
    pub(super) predicted: u32,
    /// The likeliest id of the reference.
    pub(super) expected: u32,
    /// Whether the two are one.
    pub(super) in_top1: bool,
    /// Whether it is among the reference's five.
    pub(super) in_top5: bool,
    /// Log-probability of the text's own next token, where it has one.
    pub(super) next_logprob: Option<f64>,
}

/// Sums over positions.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Tally {
    pub(super) positions: usize,
    pub(super) top1: usize,
    pub(super) top5: usize,
    logprob_sum: f64,
    logprobs: usize,
}

/// The five likeliest ids of a row, most likely first, lowest id first on a tie,
/// and the log-probability of `next`.
///
/// # Errors
/// When a logit is not finite or there are fewer than five.
pub(super) fn top5(row: &[f32], next: Option<u32>) -> anyhow::Result<([u32; TOP], Option<f64>)> {
    check_finite(row)?;
    let found = logprobs(row, next.unwrap_or_default(), TOP as u32);
    let ids: Vec<u32> = found.top.iter().map(|(id, _)| *id).collect();
    let ids = ids.try_into().ok().context("the model has fewer than five tokens")?;
    Ok((ids, next.map(|_| f64::from(found.logprob))))
}

/// Scores the row after `position`.
///
/// # Errors
/// As [`top5`].
pub(super) fn score(
    position: usize,
    row: &[f32],
    expected: &[u32; TOP],
    next: Option<u32>,
) -> anyhow::Result<Scored> {
    let scored = top5(row, next).with_context(|| format!("position {position}"))?;
    let ([predicted, ..], next_logprob) = scored;
    ensure!(expected[0] < u32::try_from(row.len())?, "the reference has larger ids than the model");
    Ok(Scored {
        position,
        predicted,
        expected: expected[0],
        in_top1: predicted == expected[0],
        in_top5: expected.contains(&predicted),
        next_logprob,
    })
}

impl Tally {
    /// Adds up.
    pub(super) fn of<'a>(scored: impl IntoIterator<Item = &'a Scored>) -> Self {
        let mut tally = Self::default();
        for scored in scored {
            tally.positions += 1;
            tally.top1 += usize::from(scored.in_top1);
            tally.top5 += usize::from(scored.in_top5);
            tally.logprobs += usize::from(scored.next_logprob.is_some());
            tally.logprob_sum += scored.next_logprob.unwrap_or_default();
        }
        tally
    }

    /// Percentage of positions whose likeliest token is the reference's.
    pub(super) fn top1_percent(&self) -> f64 {
        percent(self.top1, self.positions)
    }

    /// Percentage of positions whose likeliest token is among the reference's
    /// five.
    pub(super) fn top5_percent(&self) -> f64 {
        percent(self.top5, self.positions)
    }

    /// exp of the mean negative log-likelihood of the text.
    pub(super) fn perplexity(&self) -> Option<f64> {
        perplexity(self.logprob_sum, self.logprobs)
    }
}

/// exp(−sum / count).
pub(super) fn perplexity(logprob_sum: f64, count: usize) -> Option<f64> {
    (count > 0).then(|| (-logprob_sum / count as f64).exp())
}

fn percent(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids by falling logit: 2, 0, 5, 1, 6, 3, 4.
    const ROW: [f32; 7] = [4.0, 1.0, 5.0, -1.0, -2.0, 3.0, 0.0];

    #[test]
    fn a_row_is_scored_by_its_likeliest_id() {
        let cases = [
            ([2, 9, 9, 9, 9], true, true),
            ([0, 2, 1, 5, 6], false, true),
            ([0, 1, 5, 6, 2], false, true),
            ([0, 1, 5, 6, 3], false, false),
        ];
        for (expected, in_top1, in_top5) in cases {
            let expected = expected.map(|id: u32| id.min(6));
            let scored = score(7, &ROW, &expected, None).unwrap();
            assert_eq!((scored.position, scored.predicted), (7, 2));
            assert_eq!((scored.in_top1, scored.in_top5), (in_top1, in_top5), "{expected:?}");
            assert_eq!(scored.next_logprob, None);
        }
    }

    #[test]
    fn the_five_are_in_order_and_ties_go_to_the_lowest() {
        assert_eq!(top5(&ROW, None).unwrap().0, [2, 0, 5, 1, 6]);
        assert_eq!(top5(&[1.0, 2.0, 2.0, 1.0, 1.0, 1.0], None).unwrap().0, [1, 2, 0, 3, 4]);
        assert!(top5(&[1.0; 4], None).is_err());
        assert!(top5(&[1.0, f32::NAN, 0.0, 0.0, 0.0], None).is_err());
    }

    #[test]
    fn perplexity_is_that_of_the_texts_own_tokens() {
        // Uniform over eight: perplexity 8, whatever comes next.
        let rows = [[0.5_f32; 8]; 3];
        let scored: Vec<Scored> = rows
            .iter()
            .enumerate()
            .map(|(n, row)| score(n, row, &[0, 1, 2, 3, 4], Some(n as u32)).unwrap())
            .collect();
        let tally = Tally::of(&scored);
        assert!((tally.perplexity().unwrap() - 8.0).abs() < 1e-5, "{tally:?}");
        // ln 3 and ln 1 above six zeros: 3 of 9, and 1 of 9.
        let row = [3.0_f32.ln(), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let scored = [0, 1].map(|next| score(0, &row, &[0, 1, 2, 3, 4], Some(next)).unwrap());
        assert!((Tally::of(&scored).perplexity().unwrap() - 27.0_f64.sqrt()).abs() < 1e-5);
        assert_eq!(Tally::default().perplexity(), None);
    }

    #[test]
    fn percentages_count_positions() {
        let mut scored = vec![score(0, &ROW, &[2, 0, 1, 3, 4], None).unwrap(); 3];
        scored.push(score(3, &ROW, &[0, 2, 1, 3, 4], None).unwrap());
        scored.push(score(4, &ROW, &[0, 6, 1, 3, 4], None).unwrap());
        let tally = Tally::of(&scored);
        assert_eq!((tally.positions, tally.top1, tally.top5), (5, 3, 4));
        assert_eq!((tally.top1_percent(), tally.top5_percent()), (60.0, 80.0));
    }
}
