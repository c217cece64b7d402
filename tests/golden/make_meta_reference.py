#!/usr/bin/env python3
"""Makes meta/: what Meta's own PyTorch code answers on models of seeded weights.

    apt-get install python3-torch            # 1.13 or newer, for CPU
    python3 -m pip download --no-deps llama-models==0.3.0
    python3 make_meta_reference.py WHEEL meta              # the miniatures
    python3 make_meta_reference.py WHEEL meta --full-size  # Llama 3.2-1B's shape, 15 minutes
    python3 make_meta_reference.py WHEEL meta --checkpoints DIR

The models' code comes from the wheel as it is, with two changes:

- fairscale's parallel layers are plain ones: this is its world of size 1.
- `apply_scaling` has the rotary factor 8 written into it. The published 1B and
  3B models have 32, so the constant is replaced in the function's code for them.

The miniatures have the real structure of the five models: ratios of heads, 8 KV
heads, tied or separate output, rotary factor, names, and 8 files for 70B. The
text tower of 11B runs as Meta's `CrossAttentionTransformerText` without images,
which skips its cross-attention layers; their weights are in the checkpoint.
torch 1.13 has no `scaled_dot_product_attention`: there it is its definition.

Weights are too large to commit. They are a function of (seed, tensor name,
element), computed here in numpy and in `worker/llama/src/tiny/seeded.rs`, with
the same bits: SHA-256 of every tensor is part of the golden file. They have the
scale of trained weights: projections keep the variance of their input, those
into the residual stream divide it by twice the number of layers, scores of
attention have a standard deviation of about 2, logits of about 3.

Of every miniature there are Meta's logits in f32 on the weights as they are
(NAME.f32), and at every 8th position on the weights as the `performance`
preset stores them (NAME.performance.f32), rounded here by ttnn's rule.
"""

import argparse
import hashlib
import importlib
import json
import math
import sys
import types
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

SEED = 20240723
PROMPT, DECODE = 96, 32
FULL_PROMPT, FULL_DECODE = 16, 8
# Vocabulary ids whose logits are kept of the full-size model: every 31st.
FULL_STRIDE = 31

COMMON = {
    "norm_eps": 1e-5, "rope_theta": 500000.0, "use_scaled_rope": True, "n_layers": 2, "n_kv_heads": 8,
}
LLAMA_3_2 = {"tied": True, "rope_factor": 32}
LLAMA_3_1 = {"tied": False, "rope_factor": 8}


def params(dim, n_heads, vocab_size, ffn_dim_multiplier, multiple_of, **more):
    sizes = {"dim": dim, "n_heads": n_heads, "vocab_size": vocab_size}
    ffn = {"ffn_dim_multiplier": ffn_dim_multiplier, "multiple_of": multiple_of}
    return {"params": COMMON | sizes | ffn | more}


VISION_PARAMS = {
    "vision_chunk_size": 560, "vision_max_num_chunks": 4, "vision_num_cross_attention_layers": 1,
}
# The vocabulary of 3B is no multiple of 16 on 8 chips, that of the others is.
MINIATURES = {
    "1b": LLAMA_3_2 | params(2048, 32, 256, 0.09, 128),
    "3b": LLAMA_3_2 | params(768, 24, 264, 0.25, 128),
    "8b": LLAMA_3_1 | params(1024, 32, 256, 0.3, 128),
    "11b": LLAMA_3_1 | params(512, 32, 256, 0.5, 256, **VISION_PARAMS),
    "70b": LLAMA_3_1 | params(1024, 64, 256, 0.3, 256) | {"files": 8},
}
# Small enough to be committed as torch.save writes them.
MICRO = {
    "micro-1b": LLAMA_3_2 | params(64, 16, 128, 0.5, 32),
    "micro-70b": LLAMA_3_1 | params(64, 16, 128, 0.5, 32) | {"files": 8},
}
FULL_SIZE = LLAMA_3_2 | params(2048, 32, 128256, 1.5, 256, n_layers=16)
# Vision tensors of 11B, which a text model leaves alone: some of their names,
# in shapes of our own.
VISION = {
    "vision_model.vision_encoder.class_embedding": (80,),
    "vision_model.vision_encoder.conv1._linear.weight": (80, 588),
    "vision_model.vision_encoder.gated_positional_embedding": (4, 4, 5, 80),
    "vision_model.vision_encoder.transformer.resblocks.0.attn.wq.weight": (80, 80),
    "vision_model.vision_projection.weight": (512, 480),
    "vision_model.vision_projection.bias": (512,),
}

# ------------------------------------------------------------------ weights

GOLDEN_RATIO = np.uint64(0x9E3779B97F4A7C15)
# Variance of the sum of four uniform 16-bit numbers: (65536² − 1) / 3.
SUM_VARIANCE = 1431655765.0


def mix(state):
    """SplitMix64's output for a state (its counter makes it random access)."""
    with np.errstate(over="ignore"):
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def random_bits(name, first, count):
    """64 bits for each of the elements first..first + count of a tensor."""
    key = 0xCBF29CE484222325
    for byte in name.encode():
        key = (key ^ byte) * 0x100000001B3 % 2**64
    element = np.arange(first + 1, first + count + 1, dtype=np.uint64)
    return mix(mix(np.array(key ^ SEED, dtype=np.uint64)) + element * GOLDEN_RATIO)


def variance(name, shape, model):
    """Of a tensor's values; gains vary about 1, all others about 0."""
    if is_gain(name, shape):
        return 0.01
    if name.endswith("output.weight") or (model["tied"] and name.endswith("tok_embeddings.weight")):
        return 9.0 / shape[-1]
    if name.endswith("tok_embeddings.weight"):
        return 0.25
    if name.endswith(("attention.wq.weight", "attention.wk.weight")):
        return 2.0 / shape[-1]
    if name.endswith(("attention.wo.weight", "feed_forward.w2.weight")):
        return 1.0 / (shape[-1] * 2 * model["params"]["n_layers"])
    return 1.0 / shape[-1]


def is_gain(name, shape):
    return len(shape) == 1 and name.endswith("norm.weight")


def fill(name, shape, model):
    """The tensor's bfloat16 bits, near to normally distributed."""
    scale = np.float32(math.sqrt(variance(name, shape, model) / SUM_VARIANCE))
    total = math.prod(shape)
    out = np.empty(total, dtype=np.uint16)
    for first in range(0, total, 1 << 22):
        count = min(1 << 22, total - first)
        bits = random_bits(name, first, count)
        parts = bits.view(np.uint16).reshape(count, 4).sum(axis=1, dtype=np.int32) - 2 * 65535
        values = parts.astype(np.float32) * scale
        if is_gain(name, shape):
            values = np.float32(1.0) + values
        word = values.view(np.uint32)
        out[first : first + count] = (word + 0x7FFF + ((word >> 16) & 1)) >> 16
    return out.reshape(shape)


def round_block_float(bits, mantissa_bits):
    """What ttnn's bfloat8_b (7) or bfloat4_b (3) keeps of [out, in] weights.

    16 consecutive outputs share the largest of their exponents for one input;
    magnitudes are cut to 24 bits on alignment, rounded to nearest, ties to even,
    and clamped. Returns f32.
    """
    rows, cols = bits.shape
    padded = np.zeros((-(-rows // 16) * 16, cols), dtype=np.uint32)
    padded[:rows] = bits
    words = (padded << 16).reshape(-1, 16, cols)
    exponent = (words >> 23 & 0xFF).astype(np.int64)
    shared = exponent.max(axis=1, keepdims=True)
    significand = np.where(exponent > 0, words & 0x7FFFFF | 0x800000, 0).astype(np.int64)
    aligned = significand >> np.minimum(shared - exponent, 31)
    shift = 24 - mantissa_bits
    kept, rest, half = aligned >> shift, aligned & ((1 << shift) - 1), 1 << (shift - 1)
    kept += (rest > half) | ((rest == half) & (kept & 1 == 1))
    kept = np.minimum(kept, (1 << mantissa_bits) - 1)
    magnitude = np.ldexp(kept.astype(np.float64), shared - 127 - (mantissa_bits - 1))
    values = np.where(words >> 31 == 1, -magnitude, magnitude).astype(np.float32)
    return values.reshape(-1, cols)[:rows]


def as_performance(weights):
    """The weights as the preset stores them: gains and embedding are left alone."""
    rounded = {}
    for name, bits in weights.items():
        if name.endswith(("feed_forward.w1.weight", "feed_forward.w3.weight")):
            rounded[name] = torch.from_numpy(round_block_float(bits, 3))
        elif bits.ndim == 2 and "embedding" not in name:
            rounded[name] = torch.from_numpy(round_block_float(bits, 7))
        else:
            rounded[name] = to_torch(bits)
    return rounded


def to_torch(bits):
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)


def tokens(count, vocab_size):
    return (random_bits("tokens", 0, count) % np.uint64(vocab_size)).astype(np.int64)


# ---------------------------------------------------------- Meta's reference


class PlainLinear(nn.Module):
    """fairscale's ColumnParallelLinear and RowParallelLinear at world size 1."""

    def __init__(self, in_features, out_features, bias=True, **_):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class PlainEmbedding(nn.Module):
    """fairscale's VocabParallelEmbedding at world size 1."""

    def __init__(self, num_embeddings, embedding_dim, **_):
        super().__init__()
        self.num_embeddings = num_embeddings
        self.weight = nn.Parameter(torch.empty(num_embeddings, embedding_dim), requires_grad=False)

    def forward(self, x):
        return F.embedding(x, self.weight)


def scaled_dot_product_attention(q, k, v, attn_mask, dropout_p):
    """As torch 2 documents it, for a mask of booleans."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    return torch.softmax(scores.masked_fill(~attn_mask, -math.inf), dim=-1) @ v


def stub(name, **attributes):
    module = types.ModuleType(name)
    vars(module).update(attributes)
    sys.modules[name] = module
    return module


def import_reference(wheel):
    """Meta's modules from the wheel: the text models' and the multimodal one's."""
    stub("fairscale")
    stub("fairscale.nn")
    stub("fairscale.nn.model_parallel")
    initialize = stub(
        "fairscale.nn.model_parallel.initialize", get_model_parallel_world_size=lambda: 1,
        get_model_parallel_rank=lambda: 0, get_model_parallel_group=lambda: None)
    sys.modules["fairscale.nn.model_parallel"].initialize = initialize
    stub("fairscale.nn.model_parallel.layers", ColumnParallelLinear=PlainLinear,
         RowParallelLinear=PlainLinear, VocabParallelEmbedding=PlainEmbedding)
    # Image files are not read here.
    stub("PIL", Image=types.SimpleNamespace(Image=object))
    stub("models.llama3.multimodal.image_transform", VariableSizeImageTransform=None)
    torch.distributed._functional_collectives = stub(
        "torch.distributed._functional_collectives", all_reduce=lambda x, *_, **__: x,
        all_gather_tensor=lambda x, **_: x, wait_tensor=lambda x: x)
    if not hasattr(F, "scaled_dot_product_attention"):
        F.scaled_dot_product_attention = scaled_dot_product_attention
    sys.path.insert(0, str(wheel))
    text = importlib.import_module("models.llama3.model")
    vision = importlib.import_module("models.llama3.multimodal.model")
    return text, vision


def set_rope_factor(text, factor):
    """Replaces the constant 8 of `scale_factor = 8` in Meta's `apply_scaling`."""
    code = text.apply_scaling.__code__
    constants = list(code.co_consts)
    in_force = getattr(text, "_factor", 8)
    assert constants.count(in_force) == 1, constants
    constants[constants.index(in_force)] = factor
    text.apply_scaling.__code__ = code.replace(co_consts=tuple(constants))
    text._factor = factor


def build(reference, model, max_seq_len, dtype):
    """The reference model without weights, and its function (tokens, position) → logits."""
    text, vision = reference
    set_rope_factor(text, model["rope_factor"])
    torch.set_default_dtype(dtype)
    args = text.ModelArgs(max_batch_size=1, max_seq_len=max_seq_len, **model["params"])
    if args.vision_chunk_size < 0:
        transformer = text.Transformer(args)
        return transformer, lambda ids, position: transformer(ids, position)
    tower = vision.CrossAttentionTransformerText(args)
    tower.setup_cache(1, device=torch.device("cpu"), dtype=dtype)

    def forward(ids, position):
        # As CrossAttentionTransformer.forward does it.
        h = tower.get_partially_trainable_embedding(ids)
        positions = torch.arange(position, position + ids.shape[1])
        return tower(positions, h, None, None, None, text_only_inference=True)

    return tower, forward


def run(reference, model, weights, prompt, decode, dtype):
    """Logits of every position: the prompt at once, then one token at a time."""
    module, forward = build(reference, model, prompt + decode, dtype)
    module.load_state_dict(weights, strict=True)
    ids = torch.from_numpy(tokens(prompt + decode, model["params"]["vocab_size"]))[None]
    with torch.inference_mode():
        rows = [forward(ids[:, :prompt], 0)[0]]
        for position in range(prompt, prompt + decode):
            rows.append(forward(ids[:, position : position + 1], position)[0])
    torch.set_default_dtype(torch.float32)
    return torch.cat(rows).float().numpy()


# --------------------------------------------------------------- checkpoints


def make_weights(reference, model):
    """Every tensor of the reference model, by its own name in Meta's files."""
    module, _ = build(reference, model, 8, torch.bfloat16)
    prefix = "text_model." if "vision_chunk_size" in model["params"] else ""
    weights = {}
    for name, parameter in module.state_dict().items():
        # A tied output is the embedding, under both names.
        source = "tok_embeddings.weight" if model["tied"] and name == "output.weight" else name
        weights[name] = weights.get(source)
        if weights[name] is None:
            weights[name] = fill(prefix + name, tuple(parameter.shape), model)
    return weights, prefix


def split_axis(name):
    """Along which axis Meta's eight files cut a tensor."""
    if "norm" in name:
        return None
    return 1 if name.endswith(("attention.wo.weight", "feed_forward.w2.weight")) else 0


def save_checkpoint(directory, model, weights, prefix):
    directory.mkdir(parents=True, exist_ok=True)
    params = json.dumps(model["params"], indent=2) + "\n"
    (directory / "params.json").write_text(params)
    files = model.get("files", 1)
    tensors = {prefix + name: to_torch(bits) for name, bits in weights.items()}
    if model["tied"]:
        tensors["output.weight"] = tensors["tok_embeddings.weight"]
    if prefix:
        tensors |= {name: to_torch(fill(name, shape, model)) for name, shape in VISION.items()}
    for rank in range(files):
        state = {}
        for name, tensor in tensors.items():
            axis = split_axis(name) if files > 1 else None
            if axis is not None:
                # A copy: a view would be saved with all of its storage.
                part = tensor.chunk(files, axis)[rank]
                tensor = part.clone(memory_format=torch.contiguous_format)
            state[name] = tensor
        torch.save(state, directory / f"consolidated.{rank:02}.pth")


def make(reference, name, model, out, checkpoints):
    weights, prefix = make_weights(reference, model)
    directory = out / name if name.startswith("micro") else checkpoints and checkpoints / name
    if directory:
        save_checkpoint(directory, model, weights, prefix)
    prompt, decode = (24, 8) if name.startswith("micro") else (PROMPT, DECODE)
    exact = {tensor: to_torch(bits) for tensor, bits in weights.items()}
    logits = run(reference, model, exact, prompt, decode, torch.float32)
    logits.astype("<f4").tofile(out / f"{name}.f32")
    in_bf16 = run(reference, model, exact, prompt, decode, torch.bfloat16)
    performance = run(reference, model, as_performance(weights), prompt, decode, torch.float32)
    if not name.startswith("micro"):
        performance[::8].astype("<f4").tofile(out / f"{name}.performance.f32")
    print(f"{name}: logits sd {logits.std():.2f}; PCC of Meta's code to itself in f32: "
          f"in bf16 {pcc(in_bf16, logits)}, on performance's weights {pcc(performance, logits)}", flush=True)
    named = {prefix + tensor: bits for tensor, bits in weights.items()}
    if prefix:
        named |= {tensor: fill(tensor, shape, model) for tensor, shape in VISION.items()}
    write_golden(out / f"{name}.json", model, prompt, decode, named)


def write_golden(path, model, prompt, decode, named, more=None):
    golden = {
        "seed": SEED,
        "params": model["params"],
        "tied": model["tied"],
        "rope_factor": model["rope_factor"],
        "files": model.get("files", 1),
        "prompt": prompt,
        "decode": decode,
        "tokens": tokens(prompt + decode, model["params"]["vocab_size"]).tolist(),
        "tensors": {
            name: {"shape": list(bits.shape), "sha256": hashlib.sha256(bits.tobytes()).hexdigest()}
            for name, bits in sorted(named.items())
        },
    }
    path.write_text(to_lines(golden | (more or {})))


def to_lines(golden):
    """JSON with one line a key, and one a tensor."""
    lines = []
    for key, value in golden.items():
        if key == "tensors":
            rows = [f"  {json.dumps(name)}: {json.dumps(tensor)}" for name, tensor in value.items()]
            lines.append(f' "{key}": {{\n' + ",\n".join(rows) + "\n }")
        else:
            lines.append(f' "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def pcc(a, b):
    """Pearson's correlation over everything, and at the worst position."""
    worst = min(np.corrcoef(x, y)[0, 1] for x, y in zip(a, b))
    return f"{np.corrcoef(a.ravel(), b.ravel())[0, 1]:.6f} (worst {worst:.6f})"


def make_full_size(reference, out):
    model = FULL_SIZE
    weights, _ = make_weights(reference, model)
    exact = {tensor: to_torch(bits) for tensor, bits in weights.items()}
    logits = run(reference, model, exact, FULL_PROMPT, FULL_DECODE, torch.bfloat16)
    vocab_size = logits.shape[1]
    sample = logits[:, ::FULL_STRIDE]
    # The reference's logits are bfloat16 numbers: nothing is lost.
    words = np.ascontiguousarray(sample).view(np.uint32)
    assert not (words & 0xFFFF).any()
    (words >> 16).astype("<u2").tofile(out / "full-1b.bf16")
    # In a stable order: of equal logits the lowest id first.
    top = [np.lexsort((np.arange(vocab_size), -row))[:8] for row in logits]
    top = [[[int(i), float(row[i])] for i in ids] for ids, row in zip(top, logits)]
    write_golden(out / "full-1b.json", model, FULL_PROMPT, FULL_DECODE, weights, {"stride": FULL_STRIDE, "top": top})
    print(f"full-1b: logits sd {logits.std():.2f}", flush=True)
    in_f32 = run(reference, model, exact, FULL_PROMPT, FULL_DECODE, torch.float32)
    print(f"full-1b: PCC of Meta's code in bf16 to itself in f32: {pcc(logits, in_f32)}", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--full-size", action="store_true")
    parser.add_argument("--only", help="one miniature")
    parser.add_argument("--checkpoints", type=Path, help="also save the miniatures' checkpoints here")
    arguments = parser.parse_args()
    reference = import_reference(arguments.wheel)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.full_size:
        make_full_size(reference, arguments.out)
        return
    for name, model in (MINIATURES | MICRO).items():
        if arguments.only in (None, name):
            make(reference, name, model, arguments.out, arguments.checkpoints)


if __name__ == "__main__":
    main()
