//! Causal attention over paged keys and values.
//!
//! Softmax runs online over the pages of a sequence in position order; inside
//! a page scores and weighted values are block products. A row's
//! result depends only on its q and on the stored K and V: whether it comes
//! alone or in a chunk, and who else is in the call, changes no bit.

use std::marker::PhantomData;

use crate::aligned::{size_of_shape, with_scratch};
use crate::block::{self, Exponents, VALUES, block_bytes};
use crate::elementwise::{exp_lanes, store_partial};
use crate::gemm::Gemm;
use crate::kv_store::KvCacheStore;
use crate::lanes::{LANES, Lanes, simd_entry};
use crate::{Format, Isa, Pool};

/// Query rows (tokens × heads of a group) of one task: enough that decoding a
/// page costs little beside using it.
const QUERIES_PER_TASK: usize = 96;

/// Rows of q that belong to one sequence, the last tokens of its context.
#[derive(Debug, Clone, Copy)]
pub struct AttentionSequence<'a> {
    /// The sequence's first row in q and out.
    pub first_row: usize,
    /// Its rows: consecutive positions.
    pub num_tokens: usize,
    /// Position of the first row.
    pub first_position: usize,
    /// The page of every `block_size` positions.
    pub block_table: &'a [u32],
}

/// One attention of an [`attention`] call: one simulated chip's share.
#[derive(Debug)]
pub struct Attention<'a> {
    /// `[rows, q_stride]`, each row starting with its query heads, `[num_heads, head_dim]`.
    pub q: &'a [f32],
    /// Values from one row of q to the next.
    pub q_stride: usize,
    /// K and V, which already hold the rows' own.
    pub cache: &'a KvCacheStore,
    /// `[rows, num_heads * head_dim]`
    pub out: &'a mut [f32],
    /// Query heads; head h reads KV head h / (num_heads / num_kv_heads).
    pub num_heads: usize,
}

/// Computes softmax(scale · q · Kᵀ) · V for every row of every sequence in
/// every job; the row at position p sees positions 0 to p. Rows of out that
/// belong to no sequence are left alone.
///
/// # Panics
/// If a slice has not the length its shape says, two sequences share a row, a
/// block table is too short or names a page that the cache lacks, the heads do
/// not divide, or the machine lacks `isa`.
pub fn attention(
    pool: &Pool,
    isa: Isa,
    scale: f32,
    sequences: &[AttentionSequence<'_>],
    jobs: &mut [Attention<'_>],
) {
    assert!(isa.is_available(), "this machine lacks {isa:?}");
    for job in &*jobs {
        check(sequences, job);
    }
    let mut tasks = Vec::new();
    for job in jobs.iter_mut() {
        let group = job.num_heads / job.cache.num_kv_heads();
        let rows_per_task = (QUERIES_PER_TASK / group).max(1);
        let out = job.out.as_mut_ptr();
        let job = &*job;
        for sequence in sequences {
            for first in (0..sequence.num_tokens).step_by(rows_per_task) {
                let num_tokens = rows_per_task.min(sequence.num_tokens - first);
                tasks.extend((0..job.cache.num_kv_heads()).map(|kv_head| Task {
                    job,
                    out,
                    kv_head,
                    group,
                    scale,
                    rows: AttentionSequence {
                        first_row: sequence.first_row + first,
                        num_tokens,
                        first_position: sequence.first_position + first,
                        block_table: sequence.block_table,
                    },
                }));
            }
        }
    }
    // The longest contexts first, so that the threads finish together.
    tasks.sort_by_key(|task| std::cmp::Reverse(task.rows.first_position));
    let tasks = Tasks(tasks);
    let tasks = &tasks;
    pool.run(tasks.0.len(), &|idx| run_task(isa, &tasks.0[idx]));
}

fn check(sequences: &[AttentionSequence<'_>], job: &Attention<'_>) {
    let cache = job.cache;
    let (heads, kv_heads) = (job.num_heads, cache.num_kv_heads());
    assert!(heads > 0 && heads % kv_heads == 0, "{heads} heads over {kv_heads} KV heads");
    let row_len = size_of_shape([heads, cache.head_dim()]);
    assert!(job.q_stride >= row_len, "q rows are {} apart, heads need {row_len}", job.q_stride);
    assert_eq!(job.out.len() % row_len, 0, "out is [rows, {row_len}]");
    let rows = job.out.len() / row_len;
    assert_eq!(job.q.len(), size_of_shape([rows, job.q_stride]), "q is [{rows}, {}]", job.q_stride);
    let mut taken = vec![false; rows];
    for sequence in sequences {
        let end = sequence.first_row + sequence.num_tokens;
        assert!(end <= rows, "a sequence ends at row {end} of {rows}");
        for row in &mut taken[sequence.first_row..end] {
            assert!(!std::mem::replace(row, true), "two sequences share a row");
        }
        let num_positions = sequence.first_position.checked_add(sequence.num_tokens);
        let num_positions = num_positions.expect("positions are far below 2^64");
        let pages = num_positions.div_ceil(cache.block_size());
        let table = sequence.block_table;
        assert!(pages <= table.len(), "a block table of {} pages, needs {pages}", table.len());
        for &page in &table[..pages] {
            let num_blocks = cache.num_blocks();
            assert!((page as usize) < num_blocks, "page {page} of a cache of {num_blocks}");
        }
    }
}

/// Consecutive rows of one sequence, the query heads of one KV head.
struct Task<'a> {
    job: &'a Attention<'a>,
    out: *mut f32,
    kv_head: usize,
    group: usize,
    scale: f32,
    rows: AttentionSequence<'a>,
}

struct Tasks<'a>(Vec<Task<'a>>);

// SAFETY: `out` is only written, each element by one task (rows are disjoint,
// as `check` asserts), while the caller of `attention` holds it mutably borrowed.
unsafe impl Sync for Tasks<'_> {}

/// Where a task keeps its running state: one scratch, cut up.
struct Scratch<'a> {
    /// `[queries, head_dim]`, scaled
    q: *mut f32,
    /// `[queries, padded_tokens]`: scores, then weights
    scores: *mut f32,
    /// `[queries, padded_dim]`
    sums: *mut f32,
    /// `[queries]`: the largest score so far
    largest: *mut f32,
    /// `[queries]`: the sum of weights so far
    total: *mut f32,
    /// One page of K and of V, decoded.
    k: *mut f32,
    v: *mut f32,
    memory: PhantomData<&'a mut [f32]>,
}

/// Sizes of a task.
#[derive(Clone, Copy)]
struct Shape {
    queries: usize,
    group: usize,
    head_dim: usize,
    padded_dim: usize,
    padded_tokens: usize,
    block_size: usize,
}

impl Shape {
    fn of(task: &Task<'_>) -> Self {
        let cache = task.job.cache;
        Self {
            queries: task.rows.num_tokens * task.group,
            group: task.group,
            head_dim: cache.head_dim(),
            padded_dim: cache.groups() * LANES,
            padded_tokens: cache.token_blocks() * LANES,
            block_size: cache.block_size(),
        }
    }

    /// The scratch's parts, each a multiple of 16 values so that each is aligned.
    fn parts(self) -> [usize; 7] {
        let page = self.padded_dim * self.padded_tokens;
        [
            self.queries * self.head_dim,
            self.queries * self.padded_tokens,
            self.queries * self.padded_dim,
            self.queries,
            self.queries,
            page,
            page,
        ]
        .map(|len| len.next_multiple_of(LANES))
    }
}

impl<'a> Scratch<'a> {
    fn new(shape: Shape, mut memory: &'a mut [f32]) -> Self {
        let [q, scores, sums, largest, total, k, v] = shape.parts().map(|len| {
            let (part, rest) = std::mem::take(&mut memory).split_at_mut(len);
            memory = rest;
            part.as_mut_ptr()
        });
        Self { q, scores, sums, largest, total, k, v, memory: PhantomData }
    }
}

/// Computes a task in this thread's scratch.
fn run_task(isa: Isa, task: &Task<'_>) {
    let shape = Shape::of(task);
    // The closure calls the entry, not the other way round: a closure inside
    // would be compiled without the instruction set.
    with_scratch(shape.parts().iter().sum(), |memory| {
        let scratch = Scratch::new(shape, memory);
        compute_task(isa, task, shape, &scratch);
    });
}

simd_entry! {
    fn compute_task(task: &Task<'_>, shape: Shape, scratch: &Scratch<'_>) = compute_task_kernel
}

#[inline(always)]
fn compute_task_kernel<V: Lanes>(task: &Task<'_>, shape: Shape, scratch: &Scratch<'_>) {
    // SAFETY: `scratch` has the parts of `shape`; `check` has vouched for the
    // rows of q and out and for the pages of the block table.
    unsafe {
        gather_queries(task, shape, scratch);
        let end = task.rows.first_position + task.rows.num_tokens;
        let mut first_token = 0;
        while first_token < end {
            attend_page::<V>(task, shape, scratch, first_token);
            first_token += shape.block_size;
        }
        write_out::<V>(task, shape, scratch);
    }
}

/// Copies and scales the task's queries, and clears its running state.
///
/// # Safety
/// `scratch` has the parts of `shape`, which is the task's.
#[inline(always)]
unsafe fn gather_queries(task: &Task<'_>, shape: Shape, scratch: &Scratch<'_>) {
    let dim = shape.head_dim;
    for query in 0..shape.queries {
        let row = task.rows.first_row + query / shape.group;
        let head = task.kv_head * shape.group + query % shape.group;
        let start = row * task.job.q_stride + head * dim;
        let q = &task.job.q[start..start + dim];
        // SAFETY: query < queries.
        unsafe {
            for (i, value) in q.iter().enumerate() {
                *scratch.q.add(query * dim + i) = value * task.scale;
            }
            *scratch.largest.add(query) = f32::NEG_INFINITY;
            *scratch.total.add(query) = 0.0;
            scratch.sums.add(query * shape.padded_dim).write_bytes(0, shape.padded_dim);
        }
    }
}

/// Adds the page whose first token is at position `first_token` to every query that sees it.
///
/// # Safety
/// As for [`gather_queries`]; the page exists.
#[inline(always)]
unsafe fn attend_page<V: Lanes>(
    task: &Task<'_>,
    shape: Shape,
    scratch: &Scratch<'_>,
    first_token: usize,
) {
    let cache = task.job.cache;
    let page = task.rows.block_table[first_token / shape.block_size] as usize;
    let (mut k, mut v) = cache.page(page, task.kv_head);
    if cache.format() != Format::F32 {
        let blocks = cache.groups() * cache.token_blocks();
        // SAFETY: a page has `blocks` blocks of K and of V, as have the scratch's.
        unsafe {
            decode_page::<V>(cache.format(), Exponents::OfLanes, blocks, k, scratch.k);
            decode_page::<V>(cache.format(), Exponents::OfRows, blocks, v, scratch.v);
        }
        (k, v) = (scratch.k.cast(), scratch.v.cast());
    }
    // Queries that see the whole page go together; the others, whose position
    // is inside it, by themselves, each with as many tokens as it sees.
    let mut query = 0;
    while query < shape.queries {
        let position = task.rows.first_position + query / shape.group;
        let visible = (position + 1).saturating_sub(first_token).min(shape.block_size);
        let whole = visible == shape.block_size;
        let queries = if whole { shape.queries - query } else { shape.group };
        if visible > 0 {
            // SAFETY: the queries exist, and the page has `visible` tokens.
            unsafe {
                attend(
                    shape,
                    scratch,
                    Visible { query, queries, tokens: visible, k, v },
                    V::splat(0.0),
                );
            }
        }
        query += queries;
    }
}

/// # Safety
/// `from` holds `blocks` blocks, `to` as many decoded ones.
#[inline(always)]
unsafe fn decode_page<V: Lanes>(
    format: Format,
    exponents: Exponents,
    blocks: usize,
    from: *const u8,
    to: *mut f32,
) {
    let mut i = 0;
    while i < blocks {
        // SAFETY: by this function's contract.
        unsafe {
            let from = from.add(i * block_bytes(format));
            block::decode::<V>(format, exponents, from, to.add(i * VALUES));
        }
        i += 1;
    }
}

/// The first `tokens` of a page, for `queries` queries that all see just these.
struct Visible {
    query: usize,
    queries: usize,
    tokens: usize,
    /// `[padded_tokens / 16, padded_dim, 16]`
    k: *const u8,
    /// `[padded_dim / 16, padded_tokens, 16]`
    v: *const u8,
}

/// # Safety
/// As for [`attend_page`].
#[inline(always)]
unsafe fn attend<V: Lanes>(shape: Shape, scratch: &Scratch<'_>, visible: Visible, zero: V) {
    let Visible { query, queries, tokens, k, v } = visible;
    let Shape { head_dim, padded_dim, padded_tokens, .. } = shape;
    // SAFETY: by this function's contract.
    unsafe {
        let scores = scratch.scores.add(query * padded_tokens);
        let sums = scratch.sums.add(query * padded_dim);
        V::gemm(&Gemm {
            rows: queries,
            panels: tokens.div_ceil(LANES),
            k: head_dim,
            x: scratch.q.add(query * head_dim),
            x_stride: head_dim,
            w: k.cast(),
            w_stride: padded_dim * LANES,
            y: scores,
            y_stride: padded_tokens,
            accumulate: false,
        });
        let mut i = 0;
        while i < queries {
            let row = scores.add(i * padded_tokens);
            let largest = &mut *scratch.largest.add(query + i);
            let total = &mut *scratch.total.add(query + i);
            let decay = soften(row, tokens, (largest, total), zero);
            let mut d = 0;
            while d < padded_dim {
                let at = sums.add(i * padded_dim + d);
                V::load(at).mul(V::splat(decay)).store(at);
                d += LANES;
            }
            i += 1;
        }
        V::gemm(&Gemm {
            rows: queries,
            panels: padded_dim / LANES,
            k: tokens,
            x: scores,
            x_stride: padded_tokens,
            w: v.cast(),
            w_stride: padded_tokens * LANES,
            y: sums,
            y_stride: padded_dim,
            accumulate: true,
        });
    }
}

/// Turns one query's scores into weights relative to the new largest score,
/// brings `total` up to date, and returns the factor for what was summed before.
///
/// # Safety
/// `scores` is valid for `tokens`, rounded up to 16.
#[inline(always)]
unsafe fn soften<V: Lanes>(
    scores: *mut f32,
    tokens: usize,
    (largest, total): (&mut f32, &mut f32),
    zero: V,
) -> f32 {
    let padded = tokens.next_multiple_of(LANES);
    // SAFETY: by this function's contract.
    unsafe {
        let mut i = tokens;
        while i < padded {
            *scores.add(i) = f32::NEG_INFINITY;
            i += 1;
        }
        let mut peak = V::splat(*largest);
        let mut i = 0;
        while i < padded {
            peak = V::load(scores.add(i)).max(peak);
            i += LANES;
        }
        let peak = peak.largest();
        let mut sum = zero;
        let mut i = 0;
        while i < padded {
            let weights = exp_lanes(V::load(scores.add(i)).sub(V::splat(peak)));
            weights.store(scores.add(i));
            sum = sum.add(weights);
            i += LANES;
        }
        let decay = exp_lanes(V::splat(*largest - peak)).to_array()[0];
        *total = total.mul_add(decay, sum.sum());
        *largest = peak;
        decay
    }
}

/// # Safety
/// As for [`gather_queries`].
#[inline(always)]
unsafe fn write_out<V: Lanes>(task: &Task<'_>, shape: Shape, scratch: &Scratch<'_>) {
    let dim = shape.head_dim;
    let row_len = task.job.num_heads * dim;
    for query in 0..shape.queries {
        let row = task.rows.first_row + query / shape.group;
        let head = task.kv_head * shape.group + query % shape.group;
        let mut d = 0;
        while d < dim {
            let count = LANES.min(dim - d);
            // SAFETY: `check` has vouched for the row; the head exists; query < queries.
            unsafe {
                let sums = V::load(scratch.sums.add(query * shape.padded_dim + d));
                let total = V::splat(*scratch.total.add(query));
                store_partial(sums.div(total), task.out.add(row * row_len + head * dim + d), count);
            }
            d += LANES;
        }
    }
}

#[cfg(test)]
mod tests;
