//! Lengths to which prompts are padded, so that few programs serve all.

/// Chunks of a prompt begin at multiples of this: attention works in as many
/// queries and keys at a time.
pub const PREFILL_MULTIPLE: usize = 64;
/// The shortest length that is computed.
const SHORTEST: usize = 128;
/// Beyond this, lengths are multiples of it.
const STEP: usize = 2048;

/// Rows that are computed for a chunk of `num_tokens`.
pub fn padded_prompt(num_tokens: usize) -> usize {
    if num_tokens > STEP {
        num_tokens.next_multiple_of(STEP)
    } else {
        num_tokens.next_power_of_two().max(SHORTEST)
    }
}

/// Every length that chunks of at most `max_tokens` are padded to, ascending.
pub fn prefill_lengths(max_tokens: usize) -> Vec<usize> {
    let longest = padded_prompt(max_tokens);
    let doubled = std::iter::successors(Some(SHORTEST), |length| Some(length * 2));
    let stepped = (2..).map(|n| n * STEP);
    doubled.take_while(|&n| n <= STEP).chain(stepped).take_while(|&n| n <= longest).collect()
}
