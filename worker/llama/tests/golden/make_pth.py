#!/usr/bin/env python3
"""Makes pth/: small files by `torch.save`, and what `torch.load` reads back.

    python3 make_pth.py pth

Made with torch 1.13 (Debian's python3-torch). `expected.json` holds, for every
file that must be read: name of the tensor -> type, shape, values in row-major
order. Files under "refused" are of formats that are not read. Every value is
exact in single precision. `meta/` has a tiny model as Meta's directories are,
once in one file and once in two shards, and `weights.json` its values.
"""

import collections
import json
import os
import sys

import torch


def ramp(*shape, dtype=torch.float32):
    """0, 0.25, 0.5 ... alternating in sign: exact in every floating type."""
    count = 1
    for size in shape:
        count *= size
    values = torch.arange(count, dtype=torch.float32)
    values = values * 0.25 * (1 - 2 * (values % 2))
    return values.reshape(shape).to(dtype)


def fused():
    """q, k and v as rows of one matrix, as some trainers keep them."""
    qkv = ramp(8, 4, dtype=torch.bfloat16)
    q, k, v = qkv.split([4, 2, 2])
    return {"wq": q, "wk": k, "wv": v}


def tied():
    table = ramp(6, 4)
    return {"output.weight": table, "tok_embeddings.weight": table}


def aliased():
    table = ramp(6, 4)
    return {"output.weight": table.view(6, 4), "tok_embeddings.weight": table.view(6, 4)}


def module():
    """A state dict: an OrderedDict with an attribute, set by BUILD."""
    torch.manual_seed(0)
    parts = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    for parameter in parts.parameters():
        parameter.data = ramp(*parameter.shape)
    return parts.state_dict()


base = ramp(6, 8)
cube = ramp(2, 3, 4)
READ = {
    "f32.pth": {"a": ramp(3, 4)},
    "f16.pth": {"a": ramp(3, 4, dtype=torch.float16)},
    "bf16.pth": {"a": ramp(3, 4, dtype=torch.bfloat16)},
    "f64.pth": {"a": ramp(3, 4, dtype=torch.float64)},
    "integers.pth": {
        "i64": torch.tensor([-1, 0, 2**40, -(2**40)]),
        "i32": torch.tensor([[-5, 7]], dtype=torch.int32),
        "i16": torch.tensor([-300, 300], dtype=torch.int16),
        "i8": torch.tensor([-128, 127], dtype=torch.int8),
        "u8": torch.tensor([0, 255], dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
    },
    "mixed.pth": {"a": ramp(2, 2), "b": ramp(5, dtype=torch.bfloat16), "c": torch.arange(3)},
    "ordered.pth": collections.OrderedDict(a=ramp(2, 2), b=ramp(3)),
    "module.pth": module(),
    "parameter.pth": {"a": torch.nn.Parameter(ramp(2, 3))},
    "requires_grad.pth": {"a": ramp(2, 3).requires_grad_()},
    "tied.pth": tied(),
    "aliased.pth": aliased(),
    "transposed.pth": {"a": base.t(), "b": cube.permute(2, 0, 1)},
    "sliced.pth": {"rows": base[2:5], "cols": base[:, 3:6], "steps": base[::2, 1::3]},
    "integer_views.pth": {"a": torch.arange(12).reshape(3, 4).t(), "b": torch.arange(9)[1::3]},
    "fused.pth": fused(),
    "scalar.pth": {"a": torch.tensor(2.5), "b": torch.ones(1)},
    "empty.pth": {"a": torch.zeros(0, 4), "b": torch.zeros(3, 0)},
    "four_dimensions.pth": {"a": ramp(2, 2, 3, 2)},
    "many.pth": {f"layers.{n}.weight": ramp(2, 2) + n for n in range(40)},
    "overlapping.pth": {"a": ramp(9).as_strided((4, 2), (1, 1))},
    "unicode.pth": {"größe.重み": ramp(2)},
    "tensor.refpt": {
        "reference_tokens": torch.arange(128000, 128008).reshape(1, 8),
        "top5_tokens": torch.arange(20).reshape(4, 5),
    },
    "list.refpt": {
        "reference_tokens": torch.arange(128000, 128008),
        "top5_tokens": [torch.arange(n, n + 5) for n in range(4)],
    },
}
PLAIN = {"name": "x", "n": -3, "big": 2**40, "f": 1.5, "t": (1, True, None), "l": [], "d": {}}


def describe(tensor):
    values = tensor.detach().to(torch.float64).flatten().tolist()
    return {"dtype": str(tensor.dtype), "shape": list(tensor.shape), "values": values}


def meta(directory):
    """One layer of width 8: two heads, an MLP of 24, a vocabulary of 8."""
    params = {"dim": 8, "n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "vocab_size": 8,
              "multiple_of": 24, "norm_eps": 1e-5, "rope_theta": 500000.0, "use_scaled_rope": True}
    # Name -> shape, and the dimension that Meta's model parallelism splits.
    shapes = {
        "tok_embeddings.weight": ([8, 8], 0),
        "layers.0.attention.wq.weight": ([8, 8], 0),
        "layers.0.attention.wk.weight": ([8, 8], 0),
        "layers.0.attention.wv.weight": ([8, 8], 0),
        "layers.0.attention.wo.weight": ([8, 8], 1),
        "layers.0.feed_forward.w1.weight": ([24, 8], 0),
        "layers.0.feed_forward.w3.weight": ([24, 8], 0),
        "layers.0.feed_forward.w2.weight": ([8, 24], 1),
        "layers.0.attention_norm.weight": ([8], None),
        "layers.0.ffn_norm.weight": ([8], None),
        "norm.weight": ([8], None),
        "output.weight": ([8, 8], 0),
    }
    torch.manual_seed(0)
    whole = {name: torch.randn(shape).to(torch.bfloat16) for name, (shape, _) in shapes.items()}

    def part(name, shard):
        split = shapes[name][1]
        return whole[name] if split is None else whole[name].chunk(2, split)[shard].clone()

    shards = [{name: part(name, shard) for name in shapes} for shard in range(2)]
    for kind, files in [("single", [whole]), ("shards", shards)]:
        path = os.path.join(directory, kind)
        os.makedirs(path, exist_ok=True)
        with open(os.path.join(path, "params.json"), "w") as file:
            json.dump(params, file)
            file.write("\n")
        for n, tensors in enumerate(files):
            torch.save(tensors, os.path.join(path, f"consolidated.{n:02}.pth"))
    with open(os.path.join(directory, "weights.json"), "w") as file:
        values = {name: tensor.float().flatten().tolist() for name, tensor in whole.items()}
        json.dump(values, file, separators=(",", ":"), sort_keys=True)
        file.write("\n")


def main(directory):
    os.makedirs(directory, exist_ok=True)
    expected = {}
    for name, value in READ.items():
        path = os.path.join(directory, name)
        torch.save(value, path)
        tensors = {}
        for key, loaded in torch.load(path).items():
            parts = {f"{key}.{n}": t for n, t in enumerate(loaded)} if isinstance(loaded, list) else {key: loaded}
            tensors |= {part: describe(tensor) for part, tensor in parts.items()}
        expected[name] = tensors
    torch.save(PLAIN, os.path.join(directory, "plain.pth"))
    refused = {
        "legacy.pth": dict(_use_new_zipfile_serialization=False),
        "protocol4.pth": dict(pickle_protocol=4),
    }
    for name, options in refused.items():
        torch.save({"a": ramp(2, 2)}, os.path.join(directory, name), **options)
    torch.save({"a": ramp(2, 2).to_sparse()}, os.path.join(directory, "sparse.pth"))
    torch.save(torch.nn.Linear(2, 2), os.path.join(directory, "object.pth"))
    meta(os.path.join(directory, "meta"))
    with open(os.path.join(directory, "expected.json"), "w") as file:
        json.dump(expected, file, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        file.write("\n")


main(sys.argv[1])
