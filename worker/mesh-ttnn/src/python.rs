//! The operations through the real `ttnn` package.
