//! What a mesh asks of the steps that it is given.

/// What a step may hold; the engine plans within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepRules {
    /// Prefill chunks and decodes may share a step. If not, a step is all of
    /// one kind.
    pub mixes_prefill_with_decode: bool,
    /// Most sequences that a step prefills; `None` is as many as fit.
    pub max_prefill_seqs: Option<usize>,
    /// Most sequences that a step decodes; smaller steps are padded to it.
    /// `None` where a step is as large as its batch.
    pub decode_rows: Option<usize>,
    /// Chunks of a prompt begin at multiples of this, in tokens.
    pub prefill_multiple: usize,
    /// Most tokens of a prefill chunk; `None` leaves it to the token budget.
    pub max_prefill_chunk: Option<usize>,
    /// Tokens can be chosen on the chips, see [`crate::Choice`].
    pub chooses: bool,
    /// Kinds of steps are compiled when they are first run, which can take
    /// minutes: run each before there is traffic.
    pub compiles: bool,
}

impl StepRules {
    /// Any mixture of any size, logits to the host.
    pub const FREE: Self = Self {
        mixes_prefill_with_decode: true,
        max_prefill_seqs: None,
        decode_rows: None,
        prefill_multiple: 1,
        max_prefill_chunk: None,
        chooses: false,
        compiles: false,
    };
}
