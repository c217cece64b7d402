//! What a mesh says about weights that it keeps prepared between starts.

use std::fmt;

/// What became of a mesh's cache of prepared weights in one load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightCacheUse {
    /// There is none, or it can be neither read nor written: the weights were
    /// prepared, and will be again.
    Unused,
    /// The weights were prepared, and are kept for the next start.
    Written,
    /// The weights came from the cache; the checkpoint's were not read.
    Hit,
}

impl fmt::Display for WeightCacheUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unused => "unused",
            Self::Written => "written",
            Self::Hit => "hit",
        })
    }
}
