//! A model whose logits are a pure function of what is visible through the block table.
