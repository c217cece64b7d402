//! Laws every mesh must pass: each compares a mesh with obvious loops in f64, or
//! with itself computing the same thing another way.
//!
//! A mesh's tests call [`run`] with a constructor; while a mesh is being
//! written, the laws can be called one by one. They panic with what was
//! expected. All sizes are multiples of the 32 × 32 tile of Tenstorrent chips.

mod attention;
mod attention_rig;
mod linear;
mod network;
pub mod probe;
mod reference;
mod refusals;
mod rows;

use crate::Mesh;

pub use attention::{
    attention_matches_the_reference, chunked_prefill_equals_whole, layers_do_not_touch_each_other,
    sequences_do_not_see_each_other, shared_prefix_blocks_are_read,
};
pub use attention_rig::{AttentionRig, Piece};
pub use linear::{
    a_gathered_product_is_the_uncut_one, column_linear_is_a_matmul,
    fused_parts_lie_in_order_on_each_chip, row_linear_sums_over_the_chips,
    stored_weights_keep_their_precision,
};
pub use network::{chip_counts_agree, rows_do_not_depend_on_their_batch};
pub use reference::Sequence;
pub use refusals::{failing_sources_are_reported, what_does_not_divide_is_refused};
pub use rows::{
    add_is_elementwise, all_gather_undoes_the_cut, embed_looks_rows_up,
    rms_norm_matches_its_formula, select_rows_keeps_the_order_asked_for,
    silu_mul_matches_its_formula,
};

/// How closely a mesh must keep the laws.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Strength {
    /// Largest error with F32 storage, relative to the largest value of the
    /// result.
    pub tolerance: f64,
    /// Whether a row is the same alone, batched and chunked.
    pub batch_invariance: BatchInvariance,
}

/// How exactly a row's values are independent of the rest of its step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchInvariance {
    /// The same bits.
    BitExact,
    /// Within [`Strength::tolerance`].
    WithinTolerance,
}

impl Strength {
    /// For a mesh that computes in f32 with a fixed order of additions.
    pub const EXACT: Self = Self { tolerance: 1e-4, batch_invariance: BatchInvariance::BitExact };

    /// For a mesh that computes in bf16 or by blocks that depend on the batch.
    pub const BF16: Self =
        Self { tolerance: 3e-2, batch_invariance: BatchInvariance::WithinTolerance };
}

/// Every law on every number of chips.
///
/// # Panics
/// When a law is broken.
pub fn run<M: Mesh>(strength: Strength, chip_counts: &[usize], make: impl Fn(usize) -> M) {
    type Law<M> = fn(&mut M, Strength);
    let laws: &[Law<M>] = &[
        column_linear_is_a_matmul,
        fused_parts_lie_in_order_on_each_chip,
        row_linear_sums_over_the_chips,
        a_gathered_product_is_the_uncut_one,
        stored_weights_keep_their_precision,
        embed_looks_rows_up,
        all_gather_undoes_the_cut,
        rms_norm_matches_its_formula,
        silu_mul_matches_its_formula,
        add_is_elementwise,
        select_rows_keeps_the_order_asked_for,
        attention_matches_the_reference,
        chunked_prefill_equals_whole,
        sequences_do_not_see_each_other,
        shared_prefix_blocks_are_read,
        layers_do_not_touch_each_other,
        rows_do_not_depend_on_their_batch,
    ];
    for &num_chips in chip_counts {
        for law in laws {
            law(&mut make(num_chips), strength);
        }
        what_does_not_divide_is_refused(&mut make(num_chips));
        failing_sources_are_reported(&mut make(num_chips));
    }
    chip_counts_agree(strength, chip_counts, make);
}
