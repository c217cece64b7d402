//! A plan for people.

use std::fmt::Write as _;

use llama::{DevicePlan, Split, bytes_text};

use super::Report;
use super::json::{longest_context, share};

const HEAD: [&str; 8] =
    ["weight", "count", "split", "whole", "per chip", "format", "layout", "bytes per chip"];

/// The whole report, lines of up to some 130 characters.
pub(super) fn text(report: &Report) -> String {
    let plan = &report.plan;
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{}\n", title(report));
    out.push_str(&aligned(&rows(plan)));
    let _ = writeln!(
        out,
        "\nShapes are [in, out], as ttnn stores weights (transposed), but [vocab, hidden] of the \
         embedding and\n[blocks, KV heads, block size, head_dim] of caches. split: output = \
         column-parallel, input = row-parallel\n(products are summed), channels = cut along the \
         embedding's rows. Bytes are of one weight, padding included,\nthen of all of that kind."
    );
    out.push_str(&collectives(plan));
    out.push_str(&totals(report));
    out
}

fn title(report: &Report) -> String {
    let plan = &report.plan;
    let (device, workload) = (plan.device(), plan.workload());
    let model = plan
        .config()
        .llama3_size()
        .map_or_else(|| "a dense Llama".to_owned(), |size| size.to_string());
    let chips = match device.num_chips() {
        1 => "1 chip".to_owned(),
        several => format!("{several} chips"),
    };
    let grid = report.dispatch.grid.map_or_else(String::new, |[columns, rows]| {
        format!(", grid {columns}x{rows} (dispatch on {})", report.dispatch.dispatch)
    });
    format!(
        "{model} ({}) on {device}: {chips}{grid}, optimizations {}, KV cache {}\n\
         {} tokens of context, {} sequence(s), prefill in chunks of {}",
        report.model.display(),
        report.optimizations,
        plan.policy().kv_cache,
        workload.max_model_len,
        report.max_num_seqs,
        workload.prefill_chunk.min(workload.max_model_len)
    )
}

fn rows(plan: &DevicePlan) -> Vec<[String; 8]> {
    let mut rows = vec![HEAD.map(str::to_owned)];
    for weight in plan.weights() {
        let split = match weight.split {
            Split::Input if weight.name == "tok_embeddings" => "channels".to_owned(),
            split => split.to_string(),
        };
        let slices = match weight.slices {
            1 => String::new(),
            several => format!(" in {several} slices"),
        };
        rows.push([
            weight.name.to_owned(),
            format!("x{}", weight.count),
            split,
            shape(&weight.shape),
            format!("{}{slices}", shape(&weight.per_chip)),
            weight.dtype.to_string(),
            weight.layout.to_string(),
            bytes(weight.bytes, weight.count),
        ]);
    }
    for cache in plan.caches() {
        rows.push([
            cache.name.to_owned(),
            format!("x{}", cache.count),
            "KV heads".to_owned(),
            shape(&cache.shape),
            shape(&cache.per_chip),
            cache.dtype.to_string(),
            "paged".to_owned(),
            bytes(cache.bytes, cache.count),
        ]);
    }
    rows
}

fn shape(sizes: &[usize]) -> String {
    let sizes: Vec<String> = sizes.iter().map(usize::to_string).collect();
    format!("[{}]", sizes.join(", "))
}

fn bytes(one: u64, count: usize) -> String {
    match count {
        1 => bytes_text(one),
        _ => format!("{} ({})", bytes_text(one), bytes_text(one * count as u64)),
    }
}

/// Columns as wide as their widest cell.
fn aligned(rows: &[[String; 8]]) -> String {
    let mut widths = [0; 8];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

fn collectives(plan: &DevicePlan) -> String {
    let collectives = plan.collectives();
    if collectives.is_empty() {
        return String::new();
    }
    let mut out = "\nCollectives of a step:\n".to_owned();
    for collective in collectives {
        let _ = writeln!(
            out,
            "  {} of {}, [tokens, {}], x{}",
            collective.operation, collective.of, collective.width, collective.count
        );
    }
    let _ = writeln!(
        out,
        "The residual stream is cut over the chips along its channels. In the layers of a decode \
         step (32 rows of bf16) a chip\nreceives {}.",
        bytes_text(plan.received_bytes())
    );
    out
}

fn totals(report: &Report) -> String {
    let plan = &report.plan;
    let is_card = plan.device().is_card();
    let memory = plan.memory(report.host_memory);
    let mut out = format!(
        "\nPer chip: weights {}, KV cache {}, activations {} (an estimate), in all {}\n",
        bytes_text(plan.weight_bytes()),
        bytes_text(plan.cache_bytes()),
        bytes_text(plan.activation_bytes()),
        bytes_text(plan.chip_bytes()),
    );
    let whose = if is_card { "a chip's DRAM, without the trace region" } else { "this machine" };
    let _ = writeln!(out, "Memory: {} ({whose})", share(plan.needed(), memory));
    let verdict = match &report.result {
        Ok(()) => "fits".to_owned(),
        Err(reason) => format!("DOES NOT FIT: {reason}"),
    };
    let _ = writeln!(out, "Result: {verdict}");
    if let Some(longest) = longest_context(report) {
        let _ = writeln!(
            out,
            "Longest context that fits {} sequence(s): {longest} tokens (limit {})",
            report.max_num_seqs,
            plan.context_limit()
        );
    }
    let bounds = (plan.decode_bound(0), plan.decode_bound(plan.workload().max_model_len));
    if let (Some(short), Some(full)) = bounds {
        let _ = writeln!(
            out,
            "Bound, modelled and not measured: {short:.1} tokens/s/user = 288 GB/s over {} a step; \
             {full:.1} at {} tokens of context",
            bytes_text(plan.step_bytes()),
            plan.workload().max_model_len
        );
    }
    out
}
