#!/usr/bin/env python3
"""Makes ttnn_ops.json: what ttnn's golden functions say of the operations that we use.

The package names a golden function in torch for most of its operations. They
ignore tiles, places and programs, and round nothing but in `typecast`, which
packs block floats with the package's own code. Inputs are made from seeds by
the rule of `numbers`, which the test repeats: only results are stored, as f32
with 7 digits, integers as they are.

    python3.10 -m venv golden
    golden/bin/pip install --no-deps ttnn==0.81.1 torch==1.12.1 'numpy<2' \
        loguru graphviz typing_extensions \
        networkx pandas python-dateutil pytz tzdata six ml_dtypes
    TT_METAL_MOCK_CLUSTER_DESC_PATH=<a cluster descriptor> \
        golden/bin/python tests/golden/make_ttnn_golden.py

(CPython 3.10 and torch 1.12.1, whose wheel needs no others; made with ttnn
0.81.1, numpy 1.26.4. Packing wants a card or a mock cluster's descriptor.)
"""

import json
import pathlib

import torch

# What the package expects of a newer torch than this one, whose wheel is the last
# that brings its CUDA libraries along: names of types that none of ours is, and
# the last step of its attention goldens, by torch's definition of it.
for name in ("uint16", "uint32", "uint64"):
    if not hasattr(torch, name):
        setattr(torch, name, object())


def scaled_dot_product_attention(query, key, value, attn_mask, scale, is_causal):
    assert not is_causal and attn_mask.dtype == torch.bool
    scores = query @ key.transpose(-2, -1) * scale
    return torch.softmax(scores.masked_fill(~attn_mask, float("-inf")), dim=-1) @ value


if not hasattr(torch.nn.functional, "scaled_dot_product_attention"):
    torch.nn.functional.scaled_dot_product_attention = scaled_dot_product_attention

import ttnn  # noqa: E402

OUT = pathlib.Path(__file__).resolve().parent / "ttnn_ops.json"
MASK = (1 << 64) - 1
CHIPS = 2
MESH = {
    "_ttnn_golden_mesh_shape": (1, CHIPS),
    "_ttnn_golden_mesh_shard_dims": (None, 3),
    "_ttnn_global_golden_mesh_shards": True,
}
EPS = 1e-5
SCALE = 0.25


def numbers(seed, *shape):
    """Numbers from -2 to 2 in steps of 1/64, so that bf16 has them."""
    state = (2 * seed + 1) & MASK
    values = []
    for _ in range(torch.Size(shape).numel()):
        state = (state * 6364136223846793005 + 1442695040888963407) & MASK
        values.append(((state >> 56) - 128) / 64)
    return torch.tensor(values, dtype=torch.float32).reshape(shape)


def mixed(seed, *shape):
    """Numbers of magnitudes that differ within a group of block floats."""
    values = numbers(seed, *shape)
    powers = torch.tensor([2.0 ** (i * 7 % 23 - 11) for i in range(values.numel())])
    return values * powers.reshape(shape)


def golden(operation, *args, **kwargs):
    return ttnn.get_golden_function(operation)(*args, **kwargs)


def arithmetic():
    ids = torch.tensor([[63, 0, 7, 7, 31, 32, 1, 62]])
    x, gain = numbers(2, 1, 1, 8, 64), numbers(3, 64)
    halves = [part.contiguous() for part in x.chunk(CHIPS, dim=3)]
    statistics = [golden(ttnn.rms_norm_pre_all_gather, half) for half in halves]
    gathered = torch.cat([part.float() for part in statistics], dim=3)
    return {
        "embedding": golden(ttnn.embedding, ids, numbers(1, 64, 64)),
        "rms_norm": golden(ttnn.rms_norm, x, epsilon=EPS, weight=gain),
        "rms_norm_pre_all_gather": torch.stack([part[0, 0, :, 0] for part in statistics]),
        "rms_norm_post_all_gather": torch.stack(
            [
                golden(ttnn.rms_norm_post_all_gather, half, gathered, epsilon=EPS, weight=part)
                for half, part in zip(halves, gain.chunk(CHIPS))
            ]
        ),
        "linear": golden(ttnn.linear, x, numbers(4, 64, 96)),
        "add": golden(ttnn.add, x, numbers(5, 1, 1, 8, 64)),
        "silu_mul": golden(
            ttnn.mul,
            x,
            numbers(5, 1, 1, 8, 64),
            input_tensor_a_activations=[ttnn.UnaryOpType.SILU],
        ),
        "typecast_bfp8": golden(ttnn.typecast, mixed(6, 1, 1, 32, 64), ttnn.bfloat8_b),
        "typecast_bfp4": golden(ttnn.typecast, mixed(6, 1, 1, 32, 64), ttnn.bfloat4_b),
    }


def movement():
    x = numbers(7, 1, 4, 2, 32)
    parts = [numbers(8, 1, 1, 4, 32), numbers(9, 1, 1, 4, 64)]
    chips = [numbers(10 + chip, 1, 1, 4, 64) for chip in range(CHIPS)]
    return {
        "transpose": golden(ttnn.transpose, x, 1, 2),
        "concat": golden(ttnn.concat, parts, dim=-1),
        "slice": golden(ttnn.slice, numbers(9, 1, 1, 4, 64), [0, 0, 1, 0], [1, 1, 3, 32]),
        "all_gather": golden(ttnn.all_gather, chips, 3, **MESH),
        "reduce_scatter": golden(ttnn.reduce_scatter, chips, 3, **MESH),
    }


def attention():
    kv = [numbers(seed, 1, 2, 32, 32) for seed in (21, 22)]
    caches = [numbers(seed, 12, 2, 32, 32) for seed in (23, 24)]
    users = torch.arange(32)
    table = torch.stack([users * 5 % 12, (users * 5 + 7) % 12], dim=1).to(torch.int32)
    positions = (users * 2 + 1).to(torch.int32)
    pages = torch.tensor([[3, 11, 0, 6]], dtype=torch.int32)
    sdpa = ttnn.transformer
    return {
        "sdpa": golden(
            sdpa.scaled_dot_product_attention,
            numbers(20, 1, 4, 32, 32),
            *kv,
            is_causal=True,
            scale=SCALE,
        ),
        "paged_sdpa_decode": golden(
            sdpa.paged_scaled_dot_product_attention_decode,
            numbers(25, 1, 32, 4, 32),
            *caches,
            table,
            cur_pos_tensor=positions,
            scale=SCALE,
        ),
        "chunked_sdpa": golden(
            sdpa.chunked_scaled_dot_product_attention,
            numbers(26, 1, 2, 32, 32),
            *caches,
            pages,
            64,
            scale=SCALE,
        ),
    }


def choice():
    # The rows hold ties: 256 different numbers, more columns than that.
    x = numbers(30, 1, 1, 4, 320)
    values, indices = golden(ttnn.topk, x, k=32, dim=-1, stable=True)
    return {
        "argmax": golden(ttnn.argmax, x, dim=3, keepdim=True),
        "topk_values": values,
        "topk_indices": indices,
    }


def compact(tensor):
    flat = tensor.flatten().tolist()
    if not tensor.is_floating_point():
        return flat
    return [float(f"{value:.7g}") for value in flat]


def main():
    cases = {**arithmetic(), **movement(), **attention(), **choice()}
    lines = [f"{json.dumps(name)}: {json.dumps(compact(cases[name]))}" for name in cases]
    OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
