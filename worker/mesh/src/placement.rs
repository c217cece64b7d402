//! Where a value lives on the mesh, in its type.
//!
//! A missing collective is a type error: a row-parallel product is [`Partial`],
//! and only `all_reduce` makes a [`Replicated`] of it; a column-parallel one is
//! [`Sharded`], and only `all_gather` does.

/// Every chip holds the whole value.
#[derive(Debug, Clone)]
pub struct Replicated<T>(pub T);

/// Chip `c` of `D` holds the `c`-th of `D` equal slices of the last axis: of an
/// activation, or of an embedding table `[vocab, hidden]`.
#[derive(Debug, Clone)]
pub struct Sharded<T>(pub T);

/// Every chip holds one addend; the value is their sum.
#[derive(Debug, Clone)]
pub struct Partial<T>(pub T);

/// A weight `[out, in]` cut along `out`: takes [`Replicated`], gives [`Sharded`].
#[derive(Debug, Clone)]
pub struct ColumnParallel<W>(pub W);

/// A weight `[out, in]` cut along `in`: takes [`Sharded`], gives [`Partial`].
#[derive(Debug, Clone)]
pub struct RowParallel<W>(pub W);
