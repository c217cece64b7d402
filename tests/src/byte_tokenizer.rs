//! The smallest `tokenizer.model` that can be: one token a byte.

use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

/// Writes `tokenizer.model` to a directory: every byte in base64, and its rank.
/// Control tokens have the 256 ids after those.
///
/// # Errors
/// When the file cannot be written.
pub fn write(directory: &Path) -> io::Result<()> {
    let line = |byte: u8| format!("{} {byte}\n", BASE64_STANDARD.encode([byte]));
    let lines: String = (0..=u8::MAX).map(line).collect();
    std::fs::write(directory.join("tokenizer.model"), lines)
}
