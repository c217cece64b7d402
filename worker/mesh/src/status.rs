//! What a mesh tells about itself while it runs.

use std::time::Duration;

/// Sizes of compiled code, and where the last step's time went. Zero where a
/// mesh compiles nothing, or does all of a step in one go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MeshStatus {
    /// Programs that have been made for the chips: a step of a new kind adds
    /// some.
    pub programs: usize,
    /// Compiled kernels on disk, of this and of earlier starts.
    pub kernels: usize,
    /// Of the last step: ids, positions and block tables to the chips.
    pub inputs: Duration,
    /// Of the last step: queueing its operations, or its record.
    pub dispatch: Duration,
    /// Of the last step: waiting for the chips, and reading what they made.
    pub read: Duration,
}
