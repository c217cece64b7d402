//! A plan for machines.

use llama::{Device, bytes_text};
use serde_json::{Value, json};

use super::Report;

/// One object: bytes are numbers, shapes are lists.
pub(super) fn object(report: &Report) -> Value {
    let plan = &report.plan;
    let (device, workload) = (plan.device(), plan.workload());
    let weights: Vec<Value> = plan
        .weights()
        .iter()
        .map(|weight| {
            json!({
                "name": weight.name,
                "count": weight.count,
                "split": weight.split.to_string(),
                "shape": weight.shape,
                "shape_per_chip": weight.per_chip,
                "slices": weight.slices,
                "format": weight.dtype.to_string(),
                "layout": weight.layout.to_string(),
                "bytes_per_chip": weight.bytes,
                "bytes_per_chip_all": weight.bytes * weight.count as u64,
            })
        })
        .collect();
    let caches: Vec<Value> = plan
        .caches()
        .iter()
        .map(|cache| {
            json!({
                "name": cache.name,
                "count": cache.count,
                "split": "kv_heads",
                "shape": cache.shape,
                "shape_per_chip": cache.per_chip,
                "format": cache.dtype.to_string(),
                "bytes_per_chip": cache.bytes,
                "bytes_per_chip_all": cache.bytes * cache.count as u64,
            })
        })
        .collect();
    let collectives: Vec<Value> = plan
        .collectives()
        .iter()
        .map(
            |c| json!({ "operation": c.operation, "of": c.of, "width": c.width, "count": c.count }),
        )
        .collect();
    json!({
        "model": plan.config().llama3_size().map(|size| size.to_string()),
        "device": device.to_string(),
        "num_chips": device.num_chips(),
        "dispatch": report.dispatch.grid.map(|_| report.dispatch.dispatch.to_string()),
        "compute_grid": report.dispatch.grid,
        "optimizations": report.optimizations,
        "max_model_len": workload.max_model_len,
        "max_num_seqs": report.max_num_seqs,
        "prefill_chunk": workload.prefill_chunk.min(workload.max_model_len),
        "weights": weights,
        "caches": caches,
        "collectives": collectives,
        "totals": totals(report),
        "fits": report.result.is_ok(),
        "reason": report.result.as_ref().err().map(ToString::to_string),
        "longest_context": longest_context(report),
        "context_limit": plan.context_limit(),
        "modelled": modelled(report),
    })
}

fn totals(report: &Report) -> Value {
    let plan = &report.plan;
    let memory = plan.memory(report.host_memory);
    json!({
        "weight_bytes_per_chip": plan.weight_bytes(),
        "cache_bytes_per_chip": plan.cache_bytes(),
        "activation_bytes_per_chip": plan.activation_bytes(),
        "bytes_per_chip": plan.chip_bytes(),
        "bytes": plan.total_bytes(),
        "memory_bytes": memory,
        "memory_is_of": if plan.device().is_card() { "chip" } else { "host" },
        "trace_region_bytes": plan.device().is_card().then_some(Device::TRACE_REGION_BYTES),
    })
}

/// Nothing here was measured.
fn modelled(report: &Report) -> Value {
    let plan = &report.plan;
    let context = plan.workload().max_model_len;
    // Two digits after the point: the model is no better.
    let rounded = |bound: f64| (bound * 100.0).round() / 100.0;
    json!({
        "bandwidth_bytes_per_second": plan.device().is_card().then_some(Device::DRAM_BANDWIDTH),
        "bytes_per_decode_step": plan.step_bytes(),
        "decode_bound_tokens_per_second": plan.decode_bound(0).map(rounded),
        "decode_bound_at_max_model_len": plan.decode_bound(context).map(rounded),
        "collective_bytes_per_decode_step": plan.received_bytes(),
    })
}

/// `None` where the memory is not known.
pub(super) fn longest_context(report: &Report) -> Option<usize> {
    report.plan.memory(report.host_memory)?;
    Some(report.plan.longest_context(report.max_num_seqs, report.host_memory))
}

/// "7.59 GB of 12.47 GB".
pub(super) fn share(bytes: u64, memory: Option<u64>) -> String {
    match memory {
        Some(memory) => format!("{} of {}", bytes_text(bytes), bytes_text(memory)),
        None => bytes_text(bytes),
    }
}
