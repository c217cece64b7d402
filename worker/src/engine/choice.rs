//! Which tokens the mesh may choose itself.
//!
//! All rows of a step are chosen in one place: on the mesh, which spares the
//! host a row of logits for each, or here. Whatever needs the distribution
//! itself is done here: log-probabilities, penalties, biases, bans. So is every
//! draw that must be the same on any worker, because the mesh draws by a
//! generator of its own.

use mesh::{Choice, MAX_CANDIDATES};

use super::batch::StepPlan;
use super::sequence::Sequence;
use super::state::EngineState;
use crate::generation::{Generation, Sampling};

impl EngineState {
    /// How the mesh is to choose the tokens of `plan`; `None` when it cannot,
    /// or when there are none.
    pub(super) fn choices(&self, plan: &StepPlan) -> Option<Vec<Choice>> {
        if !self.config.rules.chooses || plan.batch.logit_rows.is_empty() {
            return None;
        }
        let with_logits = plan.work.iter().filter(|work| work.num_logits() > 0);
        with_logits
            .map(|work| {
                let for_prompt = work.num_prompt_logits > 0;
                (!for_prompt).then(|| choice(&self.sequences[&work.id])).flatten()
            })
            .collect()
    }
}

/// How the mesh is to choose the sequence's next token, if it can.
fn choice(sequence: &Sequence) -> Option<Choice> {
    let Generation { sampling, logprobs, min_new_tokens, stop_token_ids, .. } =
        &sequence.generation;
    let bans = sequence.num_generated() < *min_new_tokens && !stop_token_ids.is_empty();
    if logprobs.is_some() || bans || changes_logits(sampling) {
        return None;
    }
    if sampling.temperature == 0.0 || sampling.top_k == Some(1) {
        return Some(Choice::Greedy);
    }
    let top_k = sampling.top_k.filter(|top_k| *top_k <= MAX_CANDIDATES)?;
    if !sampling.any_draw || sampling.min_p > 0.0 {
        return None;
    }
    Some(Choice::Sampled {
        temperature: sampling.temperature,
        top_k,
        top_p: sampling.top_p,
        seed: draw_seed(sampling.seed, sequence.num_generated()),
    })
}

fn changes_logits(sampling: &Sampling) -> bool {
    sampling.presence_penalty != 0.0
        || sampling.frequency_penalty != 0.0
        || sampling.repetition_penalty != 1.0
        || !sampling.logit_bias.is_empty()
}

/// One seed for each token of an answer, far from those of its neighbours
/// (SplitMix64).
fn draw_seed(seed: u64, index: u32) -> u64 {
    let mut z = seed.wrapping_add((u64::from(index) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
