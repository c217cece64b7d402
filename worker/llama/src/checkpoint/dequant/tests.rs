
//! Tests of the decoders.
