//! CPU kernels: the only `unsafe` in the tree.
//!
//! Knows numbers, matrices and threads; must never know models, layers or
//! requests. Start with [`isa`], then [`matmul`].
