//! Block tables in a shuffled order: a paged cache that no one can read past.

use anyhow::ensure;
use worker::sampler::philox;

use super::Sequence;

/// All blocks of a KV cache, to be dealt out anew for every batch of users.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockTables {
    /// Positions in a block.
    pub(crate) block_size: usize,
    /// Blocks of the cache.
    pub(crate) num_blocks: usize,
}

impl BlockTables {
    /// Deals `count` empty sequences blocks for `max_len` positions each. Another
    /// `seed` deals other blocks, in another order: what earlier sequences left
    /// in them is never read, since a sequence reads only what it has written.
    ///
    /// # Errors
    /// When the cache has too few blocks.
    pub(crate) fn deal(
        &self,
        count: usize,
        max_len: usize,
        seed: u64,
    ) -> anyhow::Result<Vec<Sequence>> {
        let each = max_len.div_ceil(self.block_size).max(1);
        ensure!(
            count.saturating_mul(each) <= self.num_blocks,
            "{count} sequences of {max_len} tokens need {} KV blocks of {} tokens, there are {}",
            count.saturating_mul(each),
            self.block_size,
            self.num_blocks,
        );
        let blocks = self.shuffled(seed);
        Ok(blocks
            .chunks(each)
            .take(count)
            .map(|table| Sequence { block_table: table.to_vec(), len: 0 })
            .collect())
    }

    /// Every block once (Fisher and Yates).
    fn shuffled(&self, seed: u64) -> Vec<u32> {
        let num_blocks = u32::try_from(self.num_blocks).unwrap_or(u32::MAX);
        let mut blocks: Vec<u32> = (0..num_blocks).collect();
        for place in (1..num_blocks).rev() {
            let other = philox::draw(seed, place) % u64::from(place + 1);
            blocks.swap(place as usize, other as usize);
        }
        blocks
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const TABLES: BlockTables = BlockTables { block_size: 4, num_blocks: 24 };

    #[test]
    fn every_block_is_dealt_once_and_out_of_order() {
        let sequences = TABLES.deal(8, 12, 7).unwrap();
        assert!(sequences.iter().all(|sequence| sequence.block_table.len() == 3));
        let dealt: Vec<u32> = sequences.iter().flat_map(|s| s.block_table.clone()).collect();
        assert_eq!(dealt.iter().copied().collect::<BTreeSet<_>>(), (0..24).collect());
        assert!(!dealt.is_sorted(), "{dealt:?}");
        assert_eq!(TABLES.deal(8, 12, 7).unwrap(), sequences);
        assert_ne!(TABLES.deal(8, 12, 8).unwrap(), sequences);
    }

    #[test]
    fn too_few_blocks_are_refused_with_both_numbers() {
        let error = TABLES.deal(8, 13, 7).unwrap_err().to_string();
        assert!(error.contains("32 KV blocks") && error.contains("there are 24"), "{error}");
        assert!(TABLES.deal(usize::MAX, usize::MAX, 7).is_err());
    }
}
