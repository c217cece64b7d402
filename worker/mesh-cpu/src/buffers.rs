//! Activation memory, used again from one operation to the next.
//!
//! A decode step runs hundreds of operations of a few microseconds; fresh
//! memory for each would cost page faults in prefill and zeroing everywhere.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::tensor::Tensor;

/// Idle buffers kept. A layer has at most five activations alive at once; more
/// would only hold on to the memory of an old, larger step.
const MAX_IDLE: usize = 8;

/// A free list of activation buffers.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    idle: Mutex<Vec<Vec<f32>>>,
}

impl Buffers {
    /// An activation of `num_shards` times `[num_rows, num_cols]`. **Its values
    /// are arbitrary**: the operation that asked for it writes all of them.
    pub(crate) fn tensor(
        self: &Arc<Self>,
        num_rows: usize,
        num_cols: usize,
        num_shards: usize,
    ) -> Tensor {
        let values = self.take(num_rows * num_cols * num_shards);
        Tensor::new([num_rows, num_cols], num_shards, values, Arc::clone(self))
    }

    /// The smallest idle buffer that is large enough, else a new one.
    fn take(&self, size: usize) -> Vec<f32> {
        let mut idle = self.idle();
        let fitting = (0..idle.len())
            .filter(|&i| idle[i].capacity() >= size)
            .min_by_key(|&i| idle[i].capacity());
        let mut buffer = fitting.map_or_else(Vec::new, |i| idle.swap_remove(i));
        drop(idle);
        buffer.resize(size, 0.0);
        buffer
    }

    /// Takes a buffer back; the oldest idle one goes when there are too many.
    pub(crate) fn give_back(&self, buffer: Vec<f32>) {
        if buffer.capacity() == 0 {
            return;
        }
        let mut idle = self.idle();
        if idle.len() == MAX_IDLE {
            idle.swap_remove(0);
        }
        idle.push(buffer);
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Vec<f32>>> {
        // A panic elsewhere leaves the list whole: nothing panics under the lock.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_tensor_serves_the_next_one() {
        let buffers = Arc::new(Buffers::default());
        let first = buffers.tensor(4, 8, 2);
        let address = first.values().as_ptr();
        drop(first);
        let second = buffers.tensor(1, 8, 1);
        assert_eq!(second.values().as_ptr(), address);
        assert_eq!(second.values().len(), 8);
    }

    #[test]
    fn idle_memory_is_bounded() {
        let buffers = Arc::new(Buffers::default());
        let tensors: Vec<Tensor> = (0..3 * MAX_IDLE).map(|i| buffers.tensor(1, i + 1, 1)).collect();
        drop(tensors);
        assert_eq!(buffers.idle().len(), MAX_IDLE);
    }
}
