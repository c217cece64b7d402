//! The mesh of Tenstorrent chips, through `ttnn`.
//!
//! Must never know: models by name, checkpoints, requests.
#![deny(unsafe_code)]

pub mod board;
pub mod ops;
#[cfg(feature = "ttnn")]
pub mod python;
#[cfg(any(test, feature = "reference"))]
pub mod reference;
pub mod spec;
