//! Model files that were made to do harm, or were damaged on the way.
//!
//! Nothing that a file says may run code, take memory beyond the file's own
//! size, or stop the process: it loads, or there is an error that says why.
//! The faults by number, and where each is tested by a name that begins so:
//!
//! | row | fault | tests |
//! |---|---|---|
//! | 43 | a pickle that calls something | `worker/llama/src/pth` |
//! | 44 | zip tricks: bombs, overlaps, names that leave the directory | `worker/llama/src/pth` |
//! | 45 | a tensor's view outside its storage | `worker/llama/src/pth` |
//! | 46 | GGUF lengths that overflow or leave the file | `common/gguf`, here |
//! | 47 | small files that announce large contents | `common/gguf`, here |
//! | 48 | GGUF values of another type than they are read as | `common/gguf`, here |
//! | 49 | safetensors headers | `worker/llama/src/checkpoint/safetensors`, here |
//! | 50 | a file that changes while it is read | `worker/llama/src/checkpoint`, here |
//! | 51 | code and foreign paths in a model's directory | `worker/llama/src/checkpoint`, here |
//!
//! `LLAMA_MESH_FUZZ_RUNS` sets how many damaged files of each format are tried;
//! the default suits a test run.
#![forbid(unsafe_code)]

#[path = "loaders/faults.rs"]
mod faults;
#[path = "loaders/fuzz.rs"]
mod fuzz;
#[path = "loaders/memory.rs"]
mod memory;
#[path = "loaders/specimen.rs"]
mod specimen;
