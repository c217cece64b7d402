//! Exceptions of `ttnn`, as errors of the mesh.

use mesh::MeshError;
use pyo3::prelude::*;

use super::error::OpenError;

/// Lines of an exception that say where and what; a backtrace may follow.
const MAX_LINES: usize = 6;
/// Characters of a message: signatures are listed in full.
const MAX_CHARS: usize = 600;

/// What an exception says, on one line.
pub(super) fn message(py: Python<'_>, error: &PyErr) -> String {
    let text = error.value(py).to_string();
    let text = text.split("backtrace:").next().unwrap_or_default();
    let lines = text.lines().map(str::trim);
    let lines: Vec<_> =
        lines.filter(|line| !line.is_empty() && *line != "info:").take(MAX_LINES).collect();
    let kind = error.get_type(py).to_string();
    let message: String = lines.join(" | ").chars().take(MAX_CHARS).collect();
    // A failed import needs its kind to be understood, `ttnn`'s own do not.
    if kind.contains("RuntimeError") || message.is_empty() {
        return if message.is_empty() { kind } else { message };
    }
    format!("{}: {message}", kind_name(&kind))
}

/// `TypeError` of `<class 'TypeError'>`.
fn kind_name(kind: &str) -> &str {
    kind.split('\'').nth(1).unwrap_or(kind)
}

/// An operation failed.
pub(super) fn of_operation(py: Python<'_>, operation: &str, error: &PyErr) -> MeshError {
    let message = message(py, error);
    if message.contains("Out of Memory") || message.contains("beyond max L1 size") {
        return MeshError::DoesNotFit(format!("ttnn.{operation}: {message}"));
    }
    MeshError::Device(format!("ttnn.{operation}: {message}"))
}

/// The devices could not be found or opened.
pub(super) fn of_opening(py: Python<'_>, error: &PyErr) -> OpenError {
    let message = message(py, error);
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if says(&["num_chips > 0", "No chips detected"]) {
        OpenError::NoCard
    } else if says(&["CHIP_IN_USE", "currently held by", "Device or resource busy"]) {
        OpenError::Busy { message }
    } else {
        OpenError::Device(message)
    }
}
