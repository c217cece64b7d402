//! CPU kernels: the only `unsafe` in the tree.
//!
//! Knows numbers, matrices and threads; must never know models or requests.
//! Start with [`Isa`], then [`matmul`](matmul()).
//!
//! | function | computes | shapes |
//! |---|---|---|
//! | [`PackedMatrix::pack`] | weights in a [`Format`], ready for the kernels | `[n, k]` |
//! | [`PackedMatrix::from_mapped`] | the same, packed before, from a file | `[n, k]` |
//! | [`matmul`](matmul()) | y = x · Wᵀ for several matrices at once | x `[m, k]`, W `[n, k]`, y `[m, n]` |
//! | [`KvCacheStore::write`] | one token's K and V into a page | `[num_kv_heads * head_dim]` each |
//! | [`attention`](attention()) | causal attention over paged K and V | q `[rows, q_stride]`, out `[rows, num_heads * head_dim]` |
//! | [`elementwise`] | norm, rope, SiLU, exp, add | one row |
//! | [`bfp`] | ttnn's block floats, bit for bit | groups of 16; 32×32 tiles |
//! | [`convert`] | f32 ↔ bf16 | one value |
//!
//! Activations are f32. Weights of every format are decoded to f32, exactly,
//! and every sum is a chain of f32 fused multiply-adds in a fixed order. So a
//! row's result has the same bits on every [`Isa`], with any number of
//! threads, and whatever else is computed in the same call.

mod aligned;
mod attention;
pub mod bfp;
mod block;
pub mod convert;
pub mod elementwise;
mod gemm;
mod isa;
mod kv_store;
mod lanes;
mod mapped;
mod matmul;
mod packed;
mod pool;
#[cfg(test)]
mod testing;

pub use attention::{Attention, AttentionSequence, attention};
pub use isa::Isa;
pub use kv_store::KvCacheStore;
pub use mapped::MappedFile;
pub use matmul::{Matmul, matmul};
pub use packed::{Format, LAYOUT_VERSION, PackedMatrix, ReadRows};
pub use pool::Pool;
