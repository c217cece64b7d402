//! Paged keys and values of one (chip, layer).

use crate::Format;
use crate::aligned::{AlignedBuffer, size_of_shape};
use crate::block::{self, Exponents, ROWS, block_bytes};
use crate::lanes::LANES;

/// K and V of `num_blocks` pages of `block_size` tokens, for every KV head.
///
/// In bfp8, 16 consecutive head-dim channels of one token share an exponent
/// (fewer in the last group of a head dim that 16 does not divide). Inside a
/// page, K lies as `[token / 16][channel][token % 16]` and V as
/// `[channel / 16][token][channel % 16]`, in blocks of 16×16: the layouts in
/// which attention multiplies them.
#[derive(Debug)]
pub struct KvCacheStore {
    format: Format,
    num_blocks: usize,
    block_size: usize,
    num_kv_heads: usize,
    head_dim: usize,
    data: AlignedBuffer,
}

impl KvCacheStore {
    /// An all-zero cache.
    ///
    /// # Panics
    /// If a size is 0, or `format` is [`Format::Bfp4`].
    #[must_use]
    pub fn new(
        format: Format,
        num_blocks: usize,
        block_size: usize,
        num_kv_heads: usize,
        head_dim: usize,
    ) -> Self {
        assert!(format != Format::Bfp4, "a KV cache is F32, Bf16 or Bfp8");
        assert!(
            num_blocks > 0 && block_size > 0 && num_kv_heads > 0 && head_dim > 0,
            "a KV cache of {num_blocks} blocks of {block_size} tokens, {num_kv_heads} heads of \
             {head_dim}, holds nothing"
        );
        let mut store = Self {
            format,
            num_blocks,
            block_size,
            num_kv_heads,
            head_dim,
            data: AlignedBuffer::zeroed(0),
        };
        store.data =
            AlignedBuffer::zeroed(size_of_shape([num_blocks, num_kv_heads, store.page_bytes()]));
        store
    }

    /// Stores the K and V of one token at `offset` in page `block`; both are
    /// `[num_kv_heads * head_dim]`.
    ///
    /// # Panics
    /// If `block`, `offset` or a length is out of range.
    pub fn write(&mut self, block: usize, offset: usize, k: &[f32], v: &[f32]) {
        assert!(block < self.num_blocks, "block {block} of a cache of {}", self.num_blocks);
        assert!(offset < self.block_size, "offset {offset} in a block of {}", self.block_size);
        let len = self.num_kv_heads * self.head_dim;
        assert_eq!(k.len(), len, "k is [num_kv_heads * head_dim]");
        assert_eq!(v.len(), len, "v is [num_kv_heads * head_dim]");
        let (format, groups, token_blocks) = (self.format, self.groups(), self.token_blocks());
        let page_bytes = self.page_bytes();
        let bytes = block_bytes(format);
        let (token_block, idx) = (offset / LANES, offset % LANES);
        let heads = k.chunks_exact(self.head_dim).zip(v.chunks_exact(self.head_dim));
        for (head, (k, v)) in heads.enumerate() {
            let page = (block * self.num_kv_heads + head) * page_bytes;
            let page = &mut self.data.as_mut_slice()[page..page + page_bytes];
            let (k_page, v_page) = page.split_at_mut(page_bytes / 2);
            for (group, (k, v)) in k.chunks(ROWS).zip(v.chunks(LANES)).enumerate() {
                let at = (token_block * groups + group) * bytes;
                let to = &mut k_page[at..at + bytes];
                block::encode_group(format, Exponents::OfLanes, idx, &padded(k), to);
                let at = (group * token_blocks + token_block) * bytes;
                let to = &mut v_page[at..at + bytes];
                block::encode_group(format, Exponents::OfRows, idx, &padded(v), to);
            }
        }
    }

    /// Bytes of memory it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.data.num_bytes()
    }

    /// The storage format.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Pages.
    #[must_use]
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Tokens of a page.
    #[must_use]
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// KV heads of this chip.
    #[must_use]
    pub fn num_kv_heads(&self) -> usize {
        self.num_kv_heads
    }

    /// Channels of a head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Groups of 16 channels of a head.
    pub(crate) fn groups(&self) -> usize {
        self.head_dim.div_ceil(LANES)
    }

    /// Groups of 16 tokens of a page.
    pub(crate) fn token_blocks(&self) -> usize {
        self.block_size.div_ceil(LANES)
    }

    /// Bytes of one KV head's page: K, then V.
    fn page_bytes(&self) -> usize {
        size_of_shape([2, self.groups(), self.token_blocks(), block_bytes(self.format)])
    }

    /// The first K block and the first V block of a head's page.
    pub(crate) fn page(&self, block: usize, head: usize) -> (*const u8, *const u8) {
        debug_assert!(block < self.num_blocks && head < self.num_kv_heads, "{block}, {head}");
        let page = (block * self.num_kv_heads + head) * self.page_bytes();
        // In bounds: the buffer holds every page.
        let k = self.data.as_ptr().wrapping_add(page);
        (k, k.wrapping_add(self.page_bytes() / 2))
    }
}

fn padded(values: &[f32]) -> [f32; 16] {
    let mut group = [0.0; 16];
    group[..values.len()].copy_from_slice(values);
    group
}
