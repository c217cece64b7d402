//! Sharing, eviction and collisions.

use super::*;

const BLOCK_SIZE: usize = 2;

struct Rig {
    pool: BlockPool,
    hasher: BlockHasher,
}

impl Rig {
    fn new(num_blocks: usize, hasher: BlockHasher) -> Self {
        Self { pool: BlockPool::new(num_blocks), hasher }
    }

    fn hashes(&self, salt: &[u8], tokens: &[u32]) -> Vec<BlockHash> {
        let mut last = self.hasher.root(salt);
        let mut next = |tokens: &[u32]| {
            last = self.hasher.block(last, tokens);
            last
        };
        tokens.chunks_exact(BLOCK_SIZE).map(&mut next).collect()
    }

    fn find(&mut self, salt: &[u8], tokens: &[u32]) -> BlockTable {
        let hashes = self.hashes(salt, tokens);
        self.pool.acquire(salt, &hashes, tokens.chunks_exact(BLOCK_SIZE))
    }

    /// As a sequence does: find, allocate the rest, compute, publish.
    fn compute(&mut self, salt: &[u8], tokens: &[u32]) -> BlockTable {
        let mut table = self.find(salt, tokens);
        let hashes = self.hashes(salt, tokens);
        let owner = self.hasher.root(salt);
        for idx in table.num_known()..hashes.len() {
            assert!(self.pool.grow(&mut table, owner), "no block left");
            let tokens = &tokens[idx * BLOCK_SIZE..(idx + 1) * BLOCK_SIZE];
            let block = PublishedBlock { hash: hashes[idx], tokens, salt, owner };
            self.pool.publish(&mut table, block);
        }
        table
    }

    fn pass_through(&mut self, salt: &[u8], tokens: &[u32]) {
        let table = self.compute(salt, tokens);
        self.pool.check([&table].into_iter());
        self.pool.release(table);
        self.pool.check([].into_iter());
    }

    fn num_found(&mut self, salt: &[u8], tokens: &[u32]) -> usize {
        let table = self.find(salt, tokens);
        let found = table.blocks().len();
        self.pool.release(table);
        found
    }
}

fn rig(num_blocks: usize) -> Rig {
    Rig::new(num_blocks, BlockHasher::new([7; 32]))
}

#[test]
fn a_prefix_is_shared_within_one_salt_only() {
    let mut rig = rig(8);
    rig.pass_through(b"", &[1, 2, 3, 4, 5, 6]);
    assert_eq!(rig.num_found(b"", &[1, 2, 3, 4, 9, 9]), 2);
    assert_eq!(rig.num_found(b"", &[3, 4]), 0, "the same tokens at another place");
    assert_eq!(rig.num_found(b"x", &[1, 2, 3, 4]), 0);
    let first = rig.find(b"", &[1, 2]);
    let second = rig.find(b"", &[1, 2, 3, 4]);
    assert_eq!(first.blocks()[0], second.blocks()[0]);
    assert_eq!((rig.pool.num_exclusive(&first), rig.pool.num_exclusive(&second)), (0, 1));
    rig.pool.check([&first, &second].into_iter());
}

#[test]
fn the_least_recently_released_goes_first_and_ends_before_beginnings() {
    let mut rig = rig(4);
    rig.pass_through(b"", &[1, 1, 2, 2]);
    rig.pass_through(b"", &[3, 3, 4, 4]);
    rig.pass_through(b"", &[5, 5]);
    assert_eq!(rig.num_found(b"", &[1, 1, 2, 2]), 1);
    assert_eq!(rig.num_found(b"", &[3, 3, 4, 4]), 2);
    assert_eq!(rig.num_found(b"", &[5, 5]), 1);
}

#[test]
fn held_blocks_are_never_given_away() {
    let mut rig = rig(2);
    let mut table = rig.compute(b"", &[1, 1, 2, 2]);
    let owner = rig.hasher.root(b"");
    assert!(!rig.pool.grow(&mut table, owner));
    assert_eq!(rig.pool.num_available(), 0);
    rig.pool.release(table);
    assert_eq!(rig.pool.num_available(), 2);
}

#[test]
fn a_flood_under_one_salt_leaves_the_others_prefixes() {
    let mut rig = rig(16);
    let prefix = [1, 1, 2, 2, 3, 3, 4, 4];
    rig.pass_through(b"quiet", &prefix);
    for i in 0..1000 {
        rig.pass_through(b"flood", &[i, i, i, i]);
    }
    assert_eq!(rig.num_found(b"quiet", &prefix), 4);
}

#[test]
fn a_collision_is_a_miss() {
    let mut rig = Rig::new(8, BlockHasher::weakened(0));
    rig.pass_through(b"", &[1, 1]);
    assert_eq!(rig.num_found(b"", &[2, 2]), 0);
    assert_eq!(rig.num_found(b"x", &[1, 1]), 0);
    assert_eq!(rig.num_found(b"", &[1, 1, 1, 1]), 1, "a block is not its own child");
    rig.pass_through(b"", &[2, 2]);
    assert_eq!(rig.num_found(b"", &[2, 2]), 1);
}

#[test]
fn the_same_block_under_a_colliding_chain_is_a_miss() {
    let mut rig = Rig::new(64, BlockHasher::weakened(1));
    let last_two = |rig: &Rig, first: u32| {
        let hashes = rig.hashes(b"", &[first, first, 9, 9]);
        (hashes[0], hashes[1])
    };
    let (parent, child) = last_two(&rig, 0);
    let twin = (1..10_000).find(|first| {
        let (other_parent, other_child) = last_two(&rig, *first);
        other_child == child && other_parent != parent && other_parent != child
    });
    let twin = twin.expect("hashes are one byte wide");
    rig.pass_through(b"", &[0, 0, 9, 9]);
    rig.pass_through(b"", &[twin, twin]);
    assert_eq!(rig.num_found(b"", &[twin, twin, 9, 9]), 1);
}

#[test]
fn what_is_distrusted_is_not_found() {
    let mut rig = rig(4);
    let table = rig.compute(b"", &[1, 1, 2, 2]);
    rig.pool.distrust(&table);
    rig.pool.check([&table].into_iter());
    rig.pool.release(table);
    assert_eq!(rig.num_found(b"", &[1, 1]), 0);
}

#[test]
fn computed_twice_is_found_once() {
    let mut rig = rig(8);
    let hashes = rig.hashes(b"", &[1, 1]);
    let owner = rig.hasher.root(b"");
    let mut twin = BlockTable::default();
    assert!(rig.pool.grow(&mut twin, owner));
    let original = rig.compute(b"", &[1, 1]);
    let block = PublishedBlock { hash: hashes[0], tokens: &[1, 1], salt: b"", owner };
    rig.pool.publish(&mut twin, block);
    rig.pool.check([&twin, &original].into_iter());
    rig.pool.release(twin);
    let found = rig.find(b"", &[1, 1]);
    assert_eq!(found.blocks(), original.blocks());
}

#[test]
fn events_name_what_came_and_what_went() {
    let mut rig = rig(2);
    rig.pass_through(b"", &[1, 1, 2, 2]);
    let hashes = rig.hashes(b"", &[1, 1, 2, 2]);
    assert_eq!(rig.pool.take_events(), CacheEvents { stored: hashes.clone(), evicted: vec![] });
    rig.pass_through(b"", &[3, 3]);
    let stored = rig.hashes(b"", &[3, 3]);
    assert_eq!(rig.pool.take_events(), CacheEvents { stored, evicted: vec![hashes[1]] });
}

#[test]
fn the_key_decides_the_hashes() {
    let one = BlockHasher::new([1; 32]);
    let two = BlockHasher::new([2; 32]);
    assert_ne!(one.root(b""), two.root(b""));
    assert_ne!(one.root(b""), one.root(b"\0"));
}
