//! Log-probabilities of the model's own distribution.

use super::exp::for_exps;
use crate::generation::Logprobs;

/// Terms summed side by side, in a fixed order.
const LANES: usize = 8;

/// What is to be reported about a row of logits, but for the chosen token.
#[derive(Debug)]
pub(super) struct Report {
    log_sum: f64,
    top: Vec<(u32, f32)>,
}

impl Report {
    pub(super) fn new(logits: &[f32], num_top: u32) -> Self {
        let log_sum = log_sum_exp(logits);
        let top = top(logits, num_top as usize)
            .into_iter()
            .map(|(id, logit)| (id, logprob(logit, log_sum)))
            .collect();
        Self { log_sum, top }
    }

    pub(super) fn of(self, logits: &[f32], token_id: u32) -> Logprobs {
        let logprob = logprob(logits[token_id as usize], self.log_sum);
        Logprobs { logprob, top: self.top }
    }
}

/// The log-probability of `token_id`, and of the `num_top` likeliest.
///
/// # Panics
/// When the id is not below the vocabulary size.
pub fn logprobs(logits: &[f32], token_id: u32, num_top: u32) -> Logprobs {
    Report::new(logits, num_top).of(logits, token_id)
}

fn logprob(logit: f32, log_sum: f64) -> f32 {
    (f64::from(logit) - log_sum) as f32
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0.0f64; LANES];
    for_exps(logits, max, |_, exps| {
        let (chunks, rest) = exps.as_chunks::<LANES>();
        for exps in chunks.iter().map(<[f32; LANES]>::as_slice).chain([rest]) {
            for (sum, exp) in sums.iter_mut().zip(exps) {
                *sum += f64::from(*exp);
            }
        }
    });
    f64::from(max) + sums.iter().sum::<f64>().ln()
}

/// The greatest logits, greatest first, lowest id first on a tie.
fn top(logits: &[f32], num_top: usize) -> Vec<(u32, f32)> {
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(num_top.min(logits.len()) + 1);
    if num_top == 0 {
        return top;
    }
    for (id, &logit) in (0..).zip(logits) {
        if top.len() == num_top && top[num_top - 1].1 >= logit {
            continue;
        }
        let place = top.partition_point(|(_, other)| *other >= logit);
        top.insert(place, (id, logit));
        top.truncate(num_top);
    }
    top
}
