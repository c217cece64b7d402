//! Laws every mesh must pass.
