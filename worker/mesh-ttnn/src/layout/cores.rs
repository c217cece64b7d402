//! Whole numbers that divide.

use crate::spec::Grid;

/// The largest divisor of `n` that is at most `max`; 1 for 0.
pub(super) fn largest_divisor(n: usize, max: usize) -> usize {
    (1..=max.min(n)).rev().find(|divisor| n.is_multiple_of(*divisor)).unwrap_or(1)
}

/// The rectangle within `grid` with the most cores, at most `max`, that divide
/// `tiles`.
pub(super) fn largest_grid(tiles: usize, grid: Grid, max: usize) -> Grid {
    let rectangle = |cores: usize| {
        (1..=grid.x)
            .rev()
            .find(|&x| cores.is_multiple_of(x) && cores / x <= grid.y)
            .map(|x| Grid { x, y: cores / x })
    };
    (1..=max.min(tiles))
        .rev()
        .filter(|&cores| tiles.is_multiple_of(cores))
        .find_map(rectangle)
        .unwrap_or(Grid { x: 1, y: 1 })
}
