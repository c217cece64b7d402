
//! Tests of Hugging Face directories.
