//! The engine as the rest of the worker sees it.
