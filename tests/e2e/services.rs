//! The real binaries, used as their users use them.
#![forbid(unsafe_code)]

#[path = "services/bad_files.rs"]
mod bad_files;
#[path = "services/bad_input.rs"]
mod bad_input;
#[path = "services/demo.rs"]
mod demo;
#[path = "services/devices.rs"]
mod devices;
#[path = "services/eval.rs"]
mod eval;
#[path = "services/hugging_face.rs"]
mod hugging_face;
#[path = "services/launcher.rs"]
mod launcher;
#[path = "services/load.rs"]
mod load;
#[path = "services/meta.rs"]
mod meta;
#[path = "services/openai_client.rs"]
mod openai_client;
#[path = "services/repack.rs"]
mod repack;
#[path = "services/shutdown.rs"]
mod shutdown;
#[path = "services/trace.rs"]
mod trace;
