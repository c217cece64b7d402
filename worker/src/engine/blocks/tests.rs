//! Sharing, eviction and collisions.
