//! A worker on the mock devices of Tenstorrent's own package: the host's side of
//! a card is real, and no answer means anything.
//!
//! `deploy/mock/setup.sh` prints the environment that these tests need.
#![forbid(unsafe_code)]

#[path = "ttnn/hang.rs"]
mod hang;
#[path = "ttnn/place.rs"]
mod place;
#[path = "ttnn/refusals.rs"]
mod refusals;
#[path = "ttnn/serving.rs"]
mod serving;
