//! The packaged model in process: against llama.cpp, and against itself.
#![forbid(unsafe_code)]

#[path = "model/engine.rs"]
mod engine;
#[path = "model/meta_tokenizer.rs"]
mod meta_tokenizer;
#[path = "model/oracle.rs"]
mod oracle;
#[path = "model/run.rs"]
mod run;
#[path = "model/sameness.rs"]
mod sameness;
#[path = "tokenizer.rs"]
mod tokenizer;
