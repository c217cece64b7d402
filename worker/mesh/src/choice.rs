//! Choosing a token on the chips.

/// Candidates that a mesh can weigh against each other: the most likely ones.
pub const MAX_CANDIDATES: u32 = 32;

/// How the token of one row of logits is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Choice {
    /// The largest logit; the lowest id wins a tie.
    Greedy,
    /// A random one of the most likely. The mesh draws by its own generator, so
    /// that the draw is not the one that the host would make.
    Sampled {
        /// Divides the logits; above 0.
        temperature: f32,
        /// This many of the largest, 1 to [`MAX_CANDIDATES`].
        top_k: u32,
        /// Of those, the fewest that have this probability together; 1 is all.
        top_p: f32,
        /// What the draw is a function of, beside the row's place in the step.
        seed: u64,
    },
}
