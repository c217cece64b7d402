//! Merging the bytes of one piece of text into tokens.
//!
//! Byte-pair encoding: of all adjacent tokens that may merge, the pair of the
//! lowest rank is merged first, the leftmost of equals, until none is left. A
//! pair's rank is its place in the model's list of merges, or for a vocabulary
//! without such a list (Meta's) the rank of the token that it becomes.
//!
//! Most pieces of real text are a token as they stand and take one look-up.
//! Short ones are merged by looking for the lowest rank again after each merge,
//! long ones with a heap, so that a run of a million characters takes no more
//! time per character than a shorter one, but for the heap's logarithm.
//!
//! No piece is remembered: what users write leaves nothing behind here.

use super::vocabulary::Vocabulary;
use super::{Merges, Token, TokenKind, TokenizerError, byte_level};
use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::BuildHasher;

/// No token, no rank, no neighbour.
const NONE: u32 = u32::MAX;

/// Pieces of more bytes than this are merged with a heap.
const MAX_SHORT_BYTES: usize = 96;

/// The vocabulary, as merging asks for it. It knows no control tokens.
#[derive(Debug)]
pub(super) struct Merger {
    /// The token of each byte; bytes without one are left out of the text.
    bytes: Box<[u32; 256]>,
    pairs: HashMap<u64, Merge>,
    /// The same for pairs of bytes, by both of them: every piece starts there.
    byte_pairs: Box<[Merge]>,
    /// The tokens that a piece of their bytes becomes.
    pieces: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// Bytes of the longest of `pieces`.
    max_piece_bytes: usize,
}

/// What a pair of tokens becomes, and when.
#[derive(Debug, Clone, Copy)]
struct Merge {
    rank: u32,
    id: u32,
}

/// Space that merging works in, kept from piece to piece.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    parts: Vec<Part>,
    links: Vec<Links>,
    heap: BinaryHeap<Reverse<u64>>,
}

/// A token of a piece that is being merged.
#[derive(Debug, Clone, Copy)]
struct Part {
    id: u32,
    /// What it becomes together with the next one; `rank` is [`NONE`] if nothing.
    with_next: Merge,
}

/// The neighbours of a part, by index.
#[derive(Debug, Clone, Copy)]
struct Links {
    previous: u32,
    next: u32,
}

const NO_MERGE: Merge = Merge { rank: NONE, id: NONE };

impl Merger {
    /// `vocabulary` is that of `tokens`, whose ids are their places.
    ///
    /// # Errors
    /// Two tokens with the same text, or a merge of or into what is no token.
    pub(super) fn new(
        tokens: &[Token],
        vocabulary: &Vocabulary,
        merges: &Merges,
        ignore_merges: bool,
    ) -> Result<Self, TokenizerError> {
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in (0u32..).zip(tokens) {
            if token.kind != TokenKind::Normal {
                continue;
            }
            if let Some(other) = ids.insert(token.text.as_str(), id) {
                return Err(TokenizerError::Inconsistent(format!(
                    "tokens {other} and {id} have the same text"
                )));
            }
        }
        let mut bytes = Box::new([NONE; 256]);
        for byte in 0..=u8::MAX {
            let mut text = String::new();
            byte_level::push_encoded(&[byte], &mut text);
            bytes[usize::from(byte)] = ids.get(text.as_str()).copied().unwrap_or(NONE);
        }
        let pairs = match merges {
            Merges::Listed(merges) => listed(merges, &ids)?,
            Merges::ByRank => by_rank(&ids),
        };
        let pair = |bytes_of_pair: usize| {
            let (left, right) = (bytes[bytes_of_pair >> 8], bytes[bytes_of_pair & 0xff]);
            pairs.get(&key(left, right)).copied().unwrap_or(NO_MERGE)
        };
        let byte_pairs = (0..1 << 16).map(pair).collect();
        let mut merger = Self {
            bytes,
            pairs,
            byte_pairs,
            pieces: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            max_piece_bytes: 0,
        };
        merger.find_pieces(ids.into_values(), tokens, vocabulary, ignore_merges);
        Ok(merger)
    }

    /// Finds the tokens that a piece of their bytes becomes: all of them if
    /// merges are ignored for such a piece, else those that merging arrives at.
    fn find_pieces(
        &mut self,
        ids: impl Iterator<Item = u32>,
        tokens: &[Token],
        vocabulary: &Vocabulary,
        ignore_merges: bool,
    ) {
        let (mut scratch, mut merged) = (Scratch::default(), Vec::new());
        let mut pieces = HashTable::new();
        for id in ids {
            // Text in another alphabet is no piece: pieces are bytes.
            if !byte_level::is_encoded(&tokens[id as usize].text) {
                continue;
            }
            let bytes = vocabulary.bytes(id);
            if !ignore_merges {
                merged.clear();
                self.merge(bytes, &mut scratch, &mut merged);
            }
            if ignore_merges || merged == [id] {
                let hash = |&id: &u32| self.hasher.hash_one(vocabulary.bytes(id));
                pieces.insert_unique(hash(&id), id, hash);
                self.max_piece_bytes = self.max_piece_bytes.max(bytes.len());
            }
        }
        self.pieces = pieces;
    }

    /// Appends the ids of one piece.
    #[inline]
    pub(super) fn encode(
        &self,
        piece: &[u8],
        vocabulary: &Vocabulary,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) {
        if piece.len() <= self.max_piece_bytes {
            let is_piece = |&id: &u32| vocabulary.bytes(id) == piece;
            if let Some(&id) = self.pieces.find(self.hasher.hash_one(piece), is_piece) {
                ids.push(id);
                return;
            }
        }
        self.merge(piece, scratch, ids);
    }

    fn merge(&self, piece: &[u8], scratch: &mut Scratch, ids: &mut Vec<u32>) {
        scratch.parts.clear();
        let mut before = None;
        for &byte in piece {
            let id = self.bytes[usize::from(byte)];
            if id == NONE {
                continue;
            }
            let pair = before.map(|before| usize::from(before) << 8 | usize::from(byte));
            if let (Some(pair), Some(left)) = (pair, scratch.parts.last_mut()) {
                left.with_next = self.byte_pairs[pair];
            }
            scratch.parts.push(Part { id, with_next: NO_MERGE });
            before = Some(byte);
        }
        if scratch.parts.len() <= MAX_SHORT_BYTES {
            self.merge_short(&mut scratch.parts);
            ids.extend(scratch.parts.iter().map(|part| part.id));
        } else {
            self.merge_long(scratch, ids);
        }
    }

    fn pair(&self, parts: &[Part], left: usize, right: usize) -> Merge {
        let key = key(parts[left].id, parts[right].id);
        self.pairs.get(&key).copied().unwrap_or(NO_MERGE)
    }

    fn merge_short(&self, parts: &mut Vec<Part>) {
        loop {
            let ranks = parts.iter().map(|part| part.with_next.rank);
            // The first of equals.
            let (mut at, mut lowest) = (0, NONE);
            for (here, rank) in ranks.enumerate() {
                if rank < lowest {
                    (at, lowest) = (here, rank);
                }
            }
            if lowest == NONE {
                return;
            }
            parts[at].id = parts[at].with_next.id;
            parts.remove(at + 1);
            let has_next = at + 1 < parts.len();
            parts[at].with_next = if has_next { self.pair(parts, at, at + 1) } else { NO_MERGE };
            if at > 0 {
                parts[at - 1].with_next = self.pair(parts, at - 1, at);
            }
        }
    }

    /// As [`Merger::merge_short`], with the possible merges in a heap. An entry
    /// is out of date, and passed over, if its part has been merged into the one
    /// before it or has another merge with the next one by now.
    fn merge_long(&self, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let Scratch { parts, links, heap } = scratch;
        links.clear();
        links.extend((0..parts.len() as u32).map(|at| Links {
            previous: at.checked_sub(1).unwrap_or(NONE),
            next: if at as usize + 1 < parts.len() { at + 1 } else { NONE },
        }));
        let entry = |(at, part): (usize, &Part)| Reverse(entry(part.with_next.rank, at as u32));
        let mut entries = std::mem::take(heap).into_vec();
        entries.clear();
        entries.extend(
            parts.iter().enumerate().filter(|(_, part)| part.with_next.rank != NONE).map(entry),
        );
        *heap = BinaryHeap::from(entries);
        while let Some(Reverse(entry)) = heap.pop() {
            let (rank, at) = ((entry >> 32) as u32, entry as u32);
            if parts[at as usize].with_next.rank != rank {
                continue;
            }
            let taken = links[at as usize].next as usize;
            let Links { previous, .. } = links[at as usize];
            let Links { next, .. } = links[taken];
            parts[at as usize].id = parts[at as usize].with_next.id;
            parts[taken] = Part { id: NONE, with_next: NO_MERGE };
            links[at as usize].next = next;
            if next != NONE {
                links[next as usize].previous = at;
            }
            for (left, right) in [(previous, at), (at, next)] {
                if left == NONE {
                    continue;
                }
                let merge = match right {
                    NONE => NO_MERGE,
                    _ => self.pair(parts, left as usize, right as usize),
                };
                parts[left as usize].with_next = merge;
                if merge.rank != NONE {
                    heap.push(Reverse(self::entry(merge.rank, left)));
                }
            }
        }
        ids.extend(parts.iter().map(|part| part.id).filter(|&id| id != NONE));
    }
}

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// Lower rank first, then further left.
fn entry(rank: u32, at: u32) -> u64 {
    u64::from(rank) << 32 | u64::from(at)
}

/// The merges of a list, ranked by their places in it.
fn listed(
    merges: &[(String, String)],
    ids: &HashMap<&str, u32>,
) -> Result<HashMap<u64, Merge>, TokenizerError> {
    let id = |text: &str| {
        ids.get(text).copied().ok_or_else(|| {
            TokenizerError::Inconsistent(format!("a merge needs token {text:?}, there is none"))
        })
    };
    let mut pairs = HashMap::with_capacity(merges.len());
    for (rank, (left, right)) in (0u32..).zip(merges) {
        let merge = Merge { rank, id: id(&format!("{left}{right}"))? };
        pairs.insert(key(id(left)?, id(right)?), merge);
    }
    Ok(pairs)
}

/// Every two tokens that together are a third merge, at the third one's rank.
fn by_rank(ids: &HashMap<&str, u32>) -> HashMap<u64, Merge> {
    let mut pairs = HashMap::with_capacity(2 * ids.len());
    for (text, &id) in ids {
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if let (Some(&left), Some(&right)) = (ids.get(left), ids.get(right)) {
                pairs.insert(key(left, right), Merge { rank: id, id });
            }
        }
    }
    pairs
}

#[cfg(test)]
mod tests;
