//! Every model on every device: what must divide, and the documented grids.

use super::linear::{PrefillLinear, tile_bytes};
use super::*;
use crate::spec::MatmulProgram;

/// Width, heads, KV heads, head_dim, FFN of 1B, 3B, 8B and 11B, 70B.
const MODELS: [(&str, [usize; 5]); 4] = [
    ("1B", [2048, 32, 8, 64, 8192]),
    ("3B", [3072, 24, 8, 128, 8192]),
    ("8B", [4096, 32, 8, 128, 14_336]),
    ("70B", [8192, 64, 8, 128, 28_672]),
];
const VOCAB: usize = 128_256;

fn chips() -> [Chip; 2] {
    [7, 8].map(|y| Chip { grid: Grid { x: 8, y }, dram_banks: 12 })
}

/// `[k, n]` of every product on one of `num_chips` chips.
fn products([d, heads, kv, hd, ffn]: [usize; 5], num_chips: usize) -> Vec<[usize; 2]> {
    vec![
        [d, (heads + 2 * kv) * hd / num_chips],
        [heads * hd / num_chips, d],
        [heads * hd, d / num_chips],
        [d, ffn / num_chips],
        [ffn / num_chips, d],
        [d, (VOCAB / num_chips).min(32_064)],
    ]
}

/// Calls `check` for every chip, model, number of chips.
fn everywhere(check: impl Fn(Chip, &str, [usize; 5], usize)) {
    for chip in chips() {
        for (name, dims) in MODELS {
            for num_chips in [1, 2, 8] {
                check(chip, name, dims, num_chips);
            }
        }
    }
}

#[test]
fn a_decode_product_divides_over_its_cores() {
    everywhere(|chip, name, dims, num_chips| {
        for [k, n] in products(dims, num_chips) {
            let shape = LinearShape {
                k,
                n,
                weight: DataType::BFloat8B,
                result: DataType::BFloat16,
                lies: WeightLayout::Banks,
            };
            let MemoryConfig::WidthSharded { grid, shard: [rows, width] } = chip.row(k) else {
                panic!("a row is width-sharded")
            };
            let cores = grid.num_cores();
            assert_eq!((rows, width * cores), (TILE, k), "{name} on {num_chips}");
            assert!(width.is_multiple_of(TILE) && grid.x <= chip.grid.x && grid.y <= chip.grid.y);
            let MatmulProgram::DramSharded { in0_block_w, per_core_n } =
                chip.decode_linear(shape).program
            else {
                panic!("a decode reads the weight bank by bank")
            };
            assert!((width / TILE).is_multiple_of(in0_block_w), "{name} {k}x{n} on {num_chips}");
            assert_eq!(per_core_n, n.div_ceil(TILE).div_ceil(cores));
            // Gate and up meet value by value, where they are.
            if n == dims[4] / num_chips {
                assert!((n / TILE).is_multiple_of(per_core_n), "{name} {k}x{n} on {num_chips}");
            }
        }
    });
}

#[test]
fn an_interleaved_weight_is_cut_over_the_cores_of_its_input() {
    everywhere(|chip, name, [d, heads, _, hd, _], num_chips| {
        let shape = LinearShape {
            k: heads * hd,
            n: d / num_chips,
            weight: DataType::BFloat8B,
            result: DataType::BFloat16,
            lies: WeightLayout::Interleaved,
        };
        let config = chip.decode_linear(shape);
        let MatmulProgram::Multicast1d { grid, in0_block_w, out_subblock_w, per_core_n } =
            config.program
        else {
            panic!("an interleaved weight is read tile by tile")
        };
        let cores = grid.num_cores();
        assert_eq!(per_core_n, shape.n.div_ceil(TILE).div_ceil(cores), "{name} on {num_chips}");
        assert!((shape.k / TILE / cores).is_multiple_of(in0_block_w) && out_subblock_w <= 8);
        assert!(per_core_n.is_multiple_of(out_subblock_w));
        assert_eq!(chip.weight(shape), MemoryConfig::DRAM);
    });
}

#[test]
fn norms_and_residuals_divide_and_use_the_documented_cores() {
    everywhere(|chip, name, [d, ..], num_chips| {
        let width = d / num_chips;
        let norm = chip.norm(d);
        assert_eq!(norm.block_w * norm.grid.num_cores() * TILE, d, "{name}");
        assert!(norm.block_w.is_multiple_of(norm.subblock_w) && norm.subblock_w <= 4);
        let MemoryConfig::WidthSharded { grid, .. } = chip.row(width) else { panic!() };
        let documented = match (name, num_chips) {
            ("1B", 8) => 8,
            ("3B", 2) => 24,
            ("3B", 8) => 12,
            ("8B", 8) => 16,
            _ => 32,
        };
        assert_eq!(grid.num_cores(), documented, "{name} on {num_chips} chips");
    });
}

#[test]
fn banks_hold_whole_tiles_of_every_weight() {
    // Columns with padding: 8B's w1 on 1, 2 and 8 chips; 3B's qkv; 70B's w1.
    let cases = [(14_336, 14_592), (7168, 7296), (1792, 1920), (5120, 5376), (3584, 3840)];
    for (n, padded) in cases {
        let MemoryConfig::DramWidthSharded { banks, shard: [k, columns] } = chips()[0].banks(64, n)
        else {
            panic!("weights lie over the banks")
        };
        assert_eq!((banks, k, columns * banks), (12, 64, padded));
    }
}

#[test]
fn a_prompts_product_covers_rows_and_columns_and_fits() {
    everywhere(|chip, name, dims, num_chips| {
        for [k, n] in products(dims, num_chips) {
            for weight in [DataType::BFloat4B, DataType::BFloat8B, DataType::BFloat16] {
                for rows in [64, 128, 256, 512, 1024, 2048, 4096, 6144] {
                    let lies = WeightLayout::Banks;
                    let shape = LinearShape { k, n, weight, result: DataType::BFloat8B, lies };
                    let PrefillLinear { rows: at_once, config } = chip.prefill_linear(shape, rows);
                    let what = format!("{name} {k}x{n} {weight:?} {rows} on {num_chips}");
                    assert!(rows.is_multiple_of(at_once) && at_once <= 2048, "{what}");
                    let MatmulProgram::Multicast2d {
                        grid,
                        in0_block_w,
                        out_subblock_w,
                        per_core_m,
                        per_core_n,
                        fuse_batch,
                    } = config.program
                    else {
                        panic!("a prompt is multiplied in two dimensions")
                    };
                    assert_eq!(fuse_batch, rows == at_once, "{what}");
                    assert!(grid.x <= chip.grid.x && grid.y <= chip.grid.y, "{what}");
                    assert!(grid.y * per_core_m * TILE >= at_once, "{what}");
                    assert!(grid.x * per_core_n * TILE >= n, "{what}");
                    assert!((k / TILE).is_multiple_of(in0_block_w), "{what}");
                    assert!(per_core_n.is_multiple_of(out_subblock_w), "{what}");
                    let most = if config.compute.fp32_accumulate { 4 } else { 8 };
                    assert!(out_subblock_w <= most, "{what}");
                    let result = per_core_m * per_core_n * tile_bytes(shape.result);
                    assert!(result < 1_400_000, "{what}: {result} bytes of L1");
                }
            }
        }
    });
}

#[test]
fn prompts_are_padded_to_few_lengths() {
    let cases =
        [(1, 128), (128, 128), (129, 256), (1000, 1024), (2048, 2048), (2049, 4096), (5000, 6144)];
    for (tokens, padded) in cases {
        assert_eq!(padded_prompt(tokens), padded);
    }
    assert_eq!(prefill_lengths(100), [128]);
    assert_eq!(prefill_lengths(2048), [128, 256, 512, 1024, 2048]);
    assert_eq!(prefill_lengths(5000), [128, 256, 512, 1024, 2048, 4096, 6144]);
    for tokens in 1..9000 {
        assert!(prefill_lengths(9000).contains(&padded_prompt(tokens)), "{tokens}");
    }
}

#[test]
fn chunks_of_attention_divide_where_a_chunk_begins() {
    for first in (0..8192).step_by(PREFILL_MULTIPLE) {
        for rows in [128, 2048, 4096] {
            let program = chips()[1].prefill_sdpa(rows, first);
            assert!(first.is_multiple_of(program.q_chunk_size), "{first} {rows}");
            assert!(first.is_multiple_of(program.k_chunk_size) && rows % program.q_chunk_size == 0);
        }
    }
}
