//! Splitting row-wise work over the pool, in safe code.

use std::sync::{Mutex, PoisonError};

use kernels::Pool;

/// Values below which a row-wise operation stays on the calling thread: waking
/// the pool costs a few microseconds, and a core does this many in that time.
const MIN_PARALLEL_VALUES: usize = 16 * 1024;

/// Rows in one task when `num_rows` rows of `row_size` values are split over
/// the pool; all of them when splitting does not pay.
pub(crate) fn rows_per_task(pool: &Pool, num_rows: usize, row_size: usize) -> usize {
    if pool.num_threads() == 1 || num_rows * row_size < MIN_PARALLEL_VALUES {
        return num_rows.max(1);
    }
    // Two tasks a thread even out a core that is busy elsewhere.
    num_rows.div_ceil(2 * pool.num_threads())
}

/// Calls `work` once for every item, on the pool when there are several.
pub(crate) fn for_each<T: Send>(pool: &Pool, items: Vec<T>, work: impl Fn(T) + Sync) {
    if items.len() <= 1 || pool.num_threads() == 1 {
        items.into_iter().for_each(work);
        return;
    }
    // Each cell is emptied by the one task that has its index, so no lock waits.
    let cells: Vec<Mutex<Option<T>>> =
        items.into_iter().map(|item| Mutex::new(Some(item))).collect();
    pool.run(cells.len(), &|idx| {
        let item = cells[idx].lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(item) = item {
            work(item);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_worked_on_once() {
        for num_threads in [1, 2, 3] {
            let pool = Pool::new(num_threads);
            let mut values = vec![0u32; 1000];
            for_each(&pool, values.chunks_mut(7).collect(), |chunk| {
                chunk.iter_mut().for_each(|value| *value += 1);
            });
            assert!(values.iter().all(|&value| value == 1), "{num_threads} threads");
        }
    }

    #[test]
    fn small_work_is_not_split() {
        let pool = Pool::new(2);
        assert_eq!(rows_per_task(&pool, 3, 64), 3);
        assert_eq!(rows_per_task(&pool, 0, 64), 1);
        assert_eq!(rows_per_task(&pool, 1000, 576), 250);
    }
}
