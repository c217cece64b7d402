//! Small files that say what a checkpoint is.

use std::io::Read as _;
use std::path::Path;

use super::CheckpointError;

/// Most bytes of `config.json` and `params.json`.
pub(super) const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Reads a file that must be small.
pub(super) fn read_small(path: &Path, max_bytes: u64) -> Result<Vec<u8>, CheckpointError> {
    let io = |source| CheckpointError::Io { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(io)?;
    let mut bytes = Vec::new();
    file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > max_bytes {
        let message = format!("longer than {max_bytes} bytes");
        return Err(CheckpointError::malformed(path, message));
    }
    Ok(bytes)
}
