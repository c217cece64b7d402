//! The tree itself: style that needs no reviewer, and the wire contract.
#![forbid(unsafe_code)]

#[path = "tidy/layout.rs"]
mod layout;
#[path = "tidy/wire.rs"]
mod wire;
