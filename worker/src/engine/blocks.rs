//! KV blocks: who holds them, which can be found again by their content, and
//! which go first when room is needed.
//!
//! Every block is in exactly one of three states: *free*; *held* by one or more
//! sequences; or *cached*: held by nobody, content still findable. Only blocks
//! whose every position has been computed can be found, and those are never
//! written again, so sharing needs no copy on write. What lies in a block is
//! the mesh's matter: this file only counts.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest, Sha256};

/// Index of a KV block on the mesh.
pub type BlockId = u32;

/// Keyed hash of a whole block and everything before it, within one salt. Keyed
/// with a secret of this process, so that nobody can look for collisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash(pub [u8; 16]);

/// Makes [`BlockHash`]es.
#[derive(Debug, Clone)]
pub struct BlockHasher {
    key: [u8; 32],
    /// Bytes of the hash that count; fewer than 16 only in tests, to provoke
    /// collisions.
    significant_bytes: usize,
}

impl BlockHasher {
    /// A hasher under a secret key.
    pub fn new(key: [u8; 32]) -> Self {
        Self { key, significant_bytes: 16 }
    }

    #[cfg(test)]
    pub(crate) fn weakened(significant_bytes: usize) -> Self {
        Self { key: [0; 32], significant_bytes }
    }

    /// Start of every chain within one salt.
    pub fn root(&self, salt: &[u8]) -> BlockHash {
        // The tag keeps roots and blocks apart whatever salt is chosen.
        self.finish(Sha256::new().chain_update(self.key).chain_update([0]).chain_update(salt))
    }

    /// Hash of the block that holds `tokens` and follows `parent`.
    pub fn block(&self, parent: BlockHash, tokens: &[u32]) -> BlockHash {
        let mut digest = Sha256::new().chain_update(self.key).chain_update([1]);
        digest.update(parent.0);
        for token in tokens {
            digest.update(token.to_le_bytes());
        }
        self.finish(digest)
    }

    fn finish(&self, digest: Sha256) -> BlockHash {
        let digest = digest.finalize();
        let mut hash = [0; 16];
        hash[..self.significant_bytes].copy_from_slice(&digest[..self.significant_bytes]);
        BlockHash(hash)
    }
}

/// Hashes that entered and left the prefix cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheEvents {
    /// Blocks that can now be found.
    pub stored: Vec<BlockHash>,
    /// Blocks that no longer can.
    pub evicted: Vec<BlockHash>,
}

/// One findable content, never reused; its hash may collide, this can't.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct EntryId(u64);

/// What a findable block follows.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Parent {
    Salt(Box<[u8]>),
    Entry(EntryId),
}

#[derive(Debug)]
struct Entry {
    id: EntryId,
    hash: BlockHash,
    parent: Parent,
    tokens: Box<[u32]>,
    /// Root hash of the salt: whose block it is.
    owner: BlockHash,
}

#[derive(Debug, Default)]
struct Block {
    holders: u32,
    entry: Option<Entry>,
    /// Key in the eviction order while cached.
    released_at: u64,
}

/// The blocks of one sequence in position order, and how far they are known to
/// the prefix cache. Belongs to exactly one sequence; goes back through
/// [`BlockPool::release`].
#[derive(Debug, Default)]
pub struct BlockTable {
    blocks: Vec<BlockId>,
    /// Leading blocks that were found in or offered to the cache.
    num_known: usize,
    /// Entry of the last known block.
    last_entry: Option<EntryId>,
}

impl BlockTable {
    /// In position order.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Leading blocks that were found in or offered to the cache.
    pub fn num_known(&self) -> usize {
        self.num_known
    }
}

/// At most this many hashes wait to be reported; later ones are dropped, and a
/// listener merely misses some.
const MAX_PENDING_EVENTS: usize = 8192;

/// All blocks of the mesh's KV cache.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    free: Vec<BlockId>,
    by_hash: HashMap<BlockHash, BlockId>,
    /// Cached blocks, least recently released first.
    cached: BTreeMap<u64, BlockId>,
    /// The same by owner.
    cached_by_owner: HashMap<BlockHash, BTreeMap<u64, BlockId>>,
    releases: u64,
    entries: u64,
    events: CacheEvents,
}

impl BlockPool {
    /// All free.
    pub fn new(num_blocks: usize) -> Self {
        let num_ids = BlockId::try_from(num_blocks).expect("block ids are 32 bits wide");
        Self {
            blocks: (0..num_blocks).map(|_| Block::default()).collect(),
            free: (0..num_ids).rev().collect(),
            by_hash: HashMap::new(),
            cached: BTreeMap::new(),
            cached_by_owner: HashMap::new(),
            releases: 0,
            entries: 0,
            events: CacheEvents::default(),
        }
    }

    /// All blocks.
    pub fn num_total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that [`BlockPool::grow`] could hand out: free or cached.
    pub fn num_available(&self) -> usize {
        self.free.len() + self.cached.len()
    }

    /// Blocks of `table` that nobody else holds: what releasing it would free.
    pub fn num_exclusive(&self, table: &BlockTable) -> usize {
        table.blocks.iter().filter(|&&id| self.blocks[id as usize].holders == 1).count()
    }

    /// The longest chain of findable blocks that spells `chunks`, at most
    /// `hashes.len()` of them, now also held by the returned table.
    ///
    /// A hash only proposes: tokens and parent are compared.
    pub fn acquire<'a>(
        &mut self,
        salt: &[u8],
        hashes: &[BlockHash],
        chunks: impl Iterator<Item = &'a [u32]>,
    ) -> BlockTable {
        let mut table = BlockTable::default();
        for (hash, tokens) in hashes.iter().zip(chunks) {
            let Some(&id) = self.by_hash.get(hash) else { break };
            let block = &mut self.blocks[id as usize];
            let entry = block.entry.as_ref().expect("by_hash names blocks with an entry only");
            let follows = match (&entry.parent, table.last_entry) {
                (Parent::Salt(of), None) => **of == *salt,
                (Parent::Entry(of), Some(last)) => *of == last,
                _ => false,
            };
            if !follows || *entry.tokens != *tokens {
                break;
            }
            table.last_entry = Some(entry.id);
            table.blocks.push(id);
            table.num_known += 1;
            block.holders += 1;
            if block.holders == 1 {
                self.remove_from_cached(id);
            }
        }
        table
    }

    /// Adds one block, whose content is undefined, to `table`. False when every
    /// block is held.
    ///
    /// `owner` is the root hash of the sequence's salt. Free blocks go first,
    /// then the least recently released cached one; but an owner of more than
    /// half of what is cached gives up its own, so that nobody can flush the
    /// others' prefixes by flooding.
    #[must_use]
    pub fn grow(&mut self, table: &mut BlockTable, owner: BlockHash) -> bool {
        let Some(id) = self.free.pop().or_else(|| self.evict(owner)) else { return false };
        self.blocks[id as usize].holders = 1;
        table.blocks.push(id);
        true
    }

    fn evict(&mut self, owner: BlockHash) -> Option<BlockId> {
        let own = self.cached_by_owner.get(&owner).filter(|own| own.len() * 2 > self.cached.len());
        let (_, &id) = own.unwrap_or(&self.cached).first_key_value()?;
        self.remove_from_cached(id);
        self.forget(id);
        Some(id)
    }

    /// Makes the next unknown block of `table`, now wholly computed, findable.
    pub fn publish(&mut self, table: &mut BlockTable, block: PublishedBlock<'_>) {
        let id = table.blocks[table.num_known];
        let parent = match table.last_entry {
            Some(entry) => Parent::Entry(entry),
            None => Parent::Salt(block.salt.into()),
        };
        table.num_known += 1;
        if let Some(&other) = self.by_hash.get(&block.hash) {
            let entry = self.blocks[other as usize].entry.as_ref();
            let entry = entry.expect("by_hash names blocks with an entry only");
            if entry.parent == parent && *entry.tokens == *block.tokens {
                // Computed twice at the same time: the first stays the one to
                // find, this copy dies with its sequence.
                table.last_entry = Some(entry.id);
                return;
            }
            // A collision, or a chain whose beginning was evicted: newer wins.
            self.forget_entry(other);
        }
        self.entries += 1;
        let entry = Entry {
            id: EntryId(self.entries),
            hash: block.hash,
            parent,
            tokens: block.tokens.into(),
            owner: block.owner,
        };
        table.last_entry = Some(entry.id);
        self.blocks[id as usize].entry = Some(entry);
        self.by_hash.insert(block.hash, id);
        push_bounded(&mut self.events.stored, block.hash);
    }

    /// Gives up all of a table's blocks; those findable stay so until their
    /// room is needed.
    pub fn release(&mut self, table: BlockTable) {
        // Last block first: a chain without its beginning can't be found, so
        // ends are evicted before beginnings.
        for id in table.blocks.into_iter().rev() {
            let block = &mut self.blocks[id as usize];
            block.holders = block.holders.checked_sub(1).expect("a table holds its blocks");
            if block.holders > 0 {
                continue;
            }
            let Some(entry) = &block.entry else {
                self.free.push(id);
                continue;
            };
            self.releases += 1;
            block.released_at = self.releases;
            self.cached.insert(self.releases, id);
            self.cached_by_owner.entry(entry.owner).or_default().insert(self.releases, id);
        }
    }

    /// Takes the content of a table's blocks out of the prefix cache: it is not
    /// to be trusted. Present holders keep their blocks.
    pub fn distrust(&mut self, table: &BlockTable) {
        for &id in &table.blocks {
            self.forget(id);
        }
    }

    /// Reports since the last call.
    pub fn take_events(&mut self) -> CacheEvents {
        std::mem::take(&mut self.events)
    }

    fn remove_from_cached(&mut self, id: BlockId) {
        let block = &self.blocks[id as usize];
        let owner = block.entry.as_ref().expect("cached blocks have an entry").owner;
        self.cached.remove(&block.released_at);
        if let Some(own) = self.cached_by_owner.get_mut(&owner) {
            own.remove(&block.released_at);
            if own.is_empty() {
                self.cached_by_owner.remove(&owner);
            }
        }
    }

    /// Makes a block's content unfindable; a cached block becomes free.
    fn forget_entry(&mut self, id: BlockId) {
        if self.blocks[id as usize].holders == 0 {
            self.remove_from_cached(id);
            self.free.push(id);
        }
        self.forget(id);
    }

    /// The same for a block that is held or about to be.
    fn forget(&mut self, id: BlockId) {
        if let Some(entry) = self.blocks[id as usize].entry.take() {
            self.by_hash.remove(&entry.hash);
            push_bounded(&mut self.events.evicted, entry.hash);
        }
    }

    /// Blocks of undefined content.
    #[cfg(test)]
    pub(crate) fn free_blocks(&self) -> &[BlockId] {
        &self.free
    }

    /// Verifies that each block is free, held or cached, and held by as many as
    /// `tables` say.
    ///
    /// # Panics
    /// When it is not.
    #[cfg(test)]
    pub(crate) fn check<'a>(&self, tables: impl Iterator<Item = &'a BlockTable>) {
        let mut holders = vec![0u32; self.blocks.len()];
        for id in tables.flat_map(|table| &table.blocks) {
            holders[*id as usize] += 1;
        }
        let mut free = vec![0u32; self.blocks.len()];
        for id in self.free.iter().chain(self.cached.values()) {
            free[*id as usize] += 1;
        }
        for (id, block) in self.blocks.iter().enumerate() {
            assert_eq!(block.holders, holders[id], "block {id}: holders");
            assert_eq!(u32::from(block.holders == 0), free[id], "block {id}: free, held or cached");
            if let Some(entry) = &block.entry {
                assert_eq!(self.by_hash[&entry.hash] as usize, id, "block {id}: findable");
            }
        }
        let entries = self.blocks.iter().filter(|block| block.entry.is_some()).count();
        assert_eq!(entries, self.by_hash.len());
        let by_owner: usize = self.cached_by_owner.values().map(BTreeMap::len).sum();
        assert_eq!(by_owner, self.cached.len());
        for id in &self.free {
            assert!(self.blocks[*id as usize].entry.is_none(), "block {id}: free but findable");
        }
    }
}

/// A computed block, as [`BlockPool::publish`] is told of it.
#[derive(Debug, Clone, Copy)]
pub struct PublishedBlock<'a> {
    /// Of this block and all before it.
    pub hash: BlockHash,
    /// Its content.
    pub tokens: &'a [u32],
    /// Of the sequence.
    pub salt: &'a [u8],
    /// Root hash of the salt.
    pub owner: BlockHash,
}

fn push_bounded(events: &mut Vec<BlockHash>, hash: BlockHash) {
    if events.len() < MAX_PENDING_EVENTS {
        events.push(hash);
    }
}

#[cfg(test)]
mod tests;
