//! Sampling against naive oracles.
