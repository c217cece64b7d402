//! The operations in plain Rust: the numbers behind the same calls.
