//! What both services need and neither owns: ids, configuration, telemetry,
//! shutdown, and finding a model's files.
//!
//! The list is closed. A file may come in only if **both** binaries use it
//! today, and it may know no wire type and no domain noun beyond ids: no HTTP,
//! no gRPC message, no tensor, no token. What fails that test belongs to the
//! service that needs it.
//!
//! Read [`shutdown`] first: it is the only place that starts a task.
#![forbid(unsafe_code)]

pub mod config;
pub mod ids;
pub mod model;
pub mod shutdown;
pub mod telemetry;
