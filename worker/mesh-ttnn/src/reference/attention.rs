//! Attention: softmax of scaled products, sums in f32, nothing beyond the last
//! visible position is read.

use super::commands::{Call, Commands};
use super::heads::{USERS, by_user};
use super::paging::{Cache, check_page_table, check_positions, position};
use super::refusal::Op;
use super::tensor::{Data, Tensor, TensorSpec, Values};
use crate::ops::{PagedAttention, Result};
use crate::spec::{DataType, Layout, MemoryConfig, SdpaConfig, SdpaProgram, TILE};

/// Heads of queries that share one of keys and values, and their width.
#[derive(Debug, Clone, Copy)]
struct Heads {
    queries_per_key: usize,
    head_dim: usize,
    scale: f32,
}

impl Heads {
    fn of(op: Op, q: &TensorSpec, axis: usize, keys: [usize; 2], scale: f32) -> Result<Self> {
        let (heads, [kv_heads, head_dim]) = (q.shape[axis], keys);
        op.needs(
            kv_heads > 0 && heads.is_multiple_of(kv_heads),
            format_args!("query heads that are a multiple of K heads ({kv_heads})"),
            heads,
        )?;
        op.needs(q.width() == head_dim, format_args!("queries of {head_dim} channels"), q.width())?;
        Ok(Self { queries_per_key: heads / kv_heads, head_dim, scale })
    }

    /// Attends with one query over the rows that begin at `starts` of keys and
    /// values.
    fn attend(self, q: &[f32], starts: &[usize], [k, v]: [&[f32]; 2], out: &mut Vec<f32>) {
        let row = |of: usize| of..of + self.head_dim;
        let scores: Vec<f32> = starts
            .iter()
            .map(|start| {
                let products = q.iter().zip(&k[row(*start)]).map(|(q, k)| q * k);
                products.sum::<f32>() * self.scale
            })
            .collect();
        let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = scores.iter().map(|score| (score - largest).exp()).collect();
        let total: f32 = weights.iter().sum();
        let first = out.len();
        out.resize(first + self.head_dim, 0.0);
        for (weight, start) in weights.iter().zip(starts) {
            let weight = weight / total;
            for (sum, v) in out[first..].iter_mut().zip(&v[row(*start)]) {
                *sum += weight * v;
            }
        }
    }
}

/// Of users who take no part (position −1), the result is NaN: the device leaves
/// there what was there before.
pub(super) fn paged_sdpa_decode(
    commands: &mut Commands,
    attention: &PagedAttention<'_, Tensor>,
    config: &SdpaConfig,
    memory: MemoryConfig,
) -> Result<Tensor> {
    let op = Op("paged_scaled_dot_product_attention_decode");
    let PagedAttention { q, page_table, positions, .. } = attention;
    let cache = check_caches(op, attention)?;
    check_page_table(op, page_table.spec(), USERS)?;
    check_positions(op, positions.spec(), USERS)?;
    check_decode_query(op, q.spec())?;
    op.needs_interleaved("the result", memory)?;
    check_decode_program(commands, op, config.program)?;
    let keys = [cache.kv_heads(), cache.head_dim()];
    let heads = Heads::of(op, q.spec(), 2, keys, config.scale)?;
    let spec = TensorSpec { memory, ..*q.spec() };
    let (num_heads, pages) = (spec.shape[2], page_table.spec().width());
    let inputs = [*q, attention.k_cache, attention.v_cache, *page_table, *positions];
    let call = Call { op, inputs: &inputs, config: &(config, memory) };
    let [y] = commands.on_each_chip(&call, [spec], move |inputs| {
        let caches = [inputs[1].reals(), inputs[2].reals()];
        let mut out = Vec::with_capacity(spec.num_elements());
        let users = inputs[0].reals().chunks_exact(num_heads * heads.head_dim);
        let tables = inputs[3].wholes().chunks_exact(pages);
        for ((q, pages), last) in users.zip(tables).zip(inputs[4].wholes()) {
            let Some(last) = position(op, *last)? else {
                out.resize(out.len() + q.len(), f32::NAN);
                continue;
            };
            let starts = starts(&cache, pages, last + 1)?;
            for (head, q) in q.chunks_exact(heads.head_dim).enumerate() {
                let offset = head / heads.queries_per_key * cache.head_stride();
                let starts: Vec<usize> = starts.iter().map(|start| start + offset).collect();
                heads.attend(q, &starts, caches, &mut out);
            }
        }
        Ok([Data::Real(out)])
    })?;
    Ok(y)
}

/// Where head 0 of each of the first positions lies.
fn starts(cache: &Cache, pages: &[i64], positions: usize) -> Result<Vec<usize>> {
    (0..positions).map(|position| cache.start(pages, position)).collect()
}

fn check_caches(op: Op, attention: &PagedAttention<'_, Tensor>) -> Result<Cache> {
    let cache = Cache::of(op, attention.k_cache)?;
    op.needs(
        attention.v_cache.spec() == attention.k_cache.spec(),
        format_args!("values as keys, {:?}", attention.k_cache),
        format_args!("{:?}", attention.v_cache),
    )?;
    Ok(cache)
}

fn check_decode_query(op: Op, q: &TensorSpec) -> Result<()> {
    op.needs_layout("q", q, Layout::Tile)?;
    op.needs_dtype("q", q, &[DataType::BFloat16])?;
    let [_, _, heads, head_dim] = q.shape;
    op.needs_shape("q", q, [1, USERS, heads, head_dim])?;
    op.needs(
        q.memory == MemoryConfig::DRAM || q.memory == by_user(heads, head_dim),
        "q in DRAM when not sharded by user",
        format_args!("{:?}", q.memory),
    )
}

fn check_decode_program(commands: &Commands, op: Op, program: SdpaProgram) -> Result<()> {
    commands.floor.check_grid(op, program.grid)?;
    let cores = program.grid.num_cores();
    op.needs(cores >= USERS, format_args!("cores for {USERS} users"), cores)?;
    for chunk in [program.q_chunk_size, program.k_chunk_size] {
        let chosen = chunk == 0 || (chunk.is_power_of_two() && chunk >= TILE);
        op.needs(chosen, "chunk sizes that are 0 or a power of 2 from 32", chunk)?;
    }
    Ok(())
}

pub(super) fn sdpa(
    commands: &mut Commands,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    config: &SdpaConfig,
) -> Result<Tensor> {
    let op = Op("scaled_dot_product_attention");
    check_prefill_query(commands, op, q.spec(), config.program)?;
    let [_, kv_heads, rows, head_dim] = k.spec().shape;
    for (what, operand) in [("k", k), ("v", v)] {
        check_prefill_operand(op, what, operand.spec())?;
        op.needs_shape(what, operand.spec(), [1, kv_heads, q.spec().shape[2], head_dim])?;
    }
    let heads = Heads::of(op, q.spec(), 1, [kv_heads, head_dim], config.scale)?;
    let call = Call { op, inputs: &[q, k, v], config };
    let [y] = commands.on_each_chip(&call, [*q.spec()], move |inputs| {
        let starts: Vec<usize> = (0..rows).map(|row| row * head_dim).collect();
        Ok([causal(heads, inputs, rows, &Visible { starts, before: 0, head: rows * head_dim })])
    })?;
    Ok(y)
}

pub(super) fn chunked_sdpa(
    commands: &mut Commands,
    attention: &PagedAttention<'_, Tensor>,
    config: &SdpaConfig,
) -> Result<Tensor> {
    let op = Op("chunked_scaled_dot_product_attention");
    let PagedAttention { q, page_table, positions, .. } = attention;
    let cache = check_caches(op, attention)?;
    check_page_table(op, page_table.spec(), 1)?;
    check_positions(op, positions.spec(), 1)?;
    check_prefill_query(commands, op, q.spec(), config.program)?;
    let keys = [cache.kv_heads(), cache.head_dim()];
    let heads = Heads::of(op, q.spec(), 1, keys, config.scale)?;
    let (rows, capacity) = (q.spec().shape[2], page_table.spec().width() * cache.spec.shape[2]);
    let chunks = [config.program.q_chunk_size, config.program.k_chunk_size];
    let inputs = [*q, attention.k_cache, attention.v_cache, *page_table, *positions];
    let call = Call { op, inputs: &inputs, config };
    let [y] = commands.on_each_chip(&call, [*q.spec()], move |inputs| {
        let start = inputs[4].wholes()[0];
        let before = position(op, start)?.unwrap_or(usize::MAX);
        for chunk in chunks {
            let begins = before.is_multiple_of(chunk);
            op.needs(
                begins,
                format_args!("a first position that is a multiple of {chunk}"),
                start,
            )?;
        }
        op.needs(
            before.saturating_add(rows) <= capacity,
            format_args!("positions below {capacity}"),
            format_args!("{rows} rows from {start}"),
        )?;
        let starts = starts(&cache, inputs[3].wholes(), before + rows)?;
        let visible = Visible { starts, before, head: cache.head_stride() };
        Ok([causal(heads, &inputs[..3], rows, &visible)])
    })?;
    Ok(y)
}

/// Where keys and values lie, and how many precede the first query.
struct Visible {
    /// Of head 0, by position.
    starts: Vec<usize>,
    before: usize,
    /// From one head to the next.
    head: usize,
}

/// Row r of each head sees the positions up to `before + r`.
fn causal(heads: Heads, qkv: &[&Values], rows: usize, visible: &Visible) -> Data {
    let (q, keys_values) = (qkv[0].reals(), [qkv[1].reals(), qkv[2].reals()]);
    let mut out = Vec::with_capacity(q.len());
    for (head, q) in q.chunks_exact(rows * heads.head_dim).enumerate() {
        let offset = head / heads.queries_per_key * visible.head;
        let starts: Vec<usize> = visible.starts.iter().map(|start| start + offset).collect();
        for (row, q) in q.chunks_exact(heads.head_dim).enumerate() {
            heads.attend(q, &starts[..=visible.before + row], keys_values, &mut out);
        }
    }
    Data::Real(out)
}

fn check_prefill_query(
    commands: &Commands,
    op: Op,
    q: &TensorSpec,
    program: SdpaProgram,
) -> Result<()> {
    check_prefill_operand(op, "q", q)?;
    op.needs_shape("q", q, [1, q.shape[1], q.shape[2], q.width()])?;
    commands.floor.check_grid(op, program.grid)?;
    for (what, chunk) in [("q", program.q_chunk_size), ("k", program.k_chunk_size)] {
        op.needs(
            chunk > 0 && chunk.is_multiple_of(TILE),
            format_args!("{what}_chunk_size a positive multiple of {TILE}"),
            chunk,
        )?;
    }
    Ok(())
}

fn check_prefill_operand(op: Op, what: &str, spec: &TensorSpec) -> Result<()> {
    op.needs_layout(what, spec, Layout::Tile)?;
    let floats = [DataType::BFloat16, DataType::BFloat8B, DataType::BFloat4B];
    op.needs_dtype(what, spec, &floats)?;
    op.needs(
        spec.memory == MemoryConfig::DRAM,
        format_args!("{what} interleaved in DRAM"),
        format_args!("{:?}", spec.memory),
    )
}
