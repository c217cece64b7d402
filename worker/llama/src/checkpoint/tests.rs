
//! Tests of whole checkpoints.
