#!/usr/bin/env python3
"""Makes refpt/: small reference files in the forms that the original saved.

    apt-get install python3-torch    (1.13 made the committed files)
    tests/golden/make_refpt.py
"""

import pathlib

import torch

OUT = pathlib.Path(__file__).resolve().parent / "refpt"


def main() -> None:
    OUT.mkdir(exist_ok=True)
    tokens = torch.tensor([[128_000 + t * t for t in range(6)]])
    top5 = torch.tensor([[1000 * t + 7 * k for k in range(5)] for t in range(6)])
    negative = top5.clone()
    negative[2, 3] = -1
    files = {
        "tensor": top5[:5],
        "full": top5,
        "chunks": [top5[:4], top5[4:]],
        "negative": negative,
        "ragged": top5[:, :4].contiguous(),
        "floats": top5.float(),
    }
    small = torch.tensor([[20_000 + 7 * t for t in range(6)]])
    torch.save({"top5_tokens": top5[:5], "reference_tokens": small}, OUT / "small.refpt")
    for name, rows in files.items():
        torch.save({"top5_tokens": rows, "reference_tokens": tokens}, OUT / f"{name}.refpt")
    torch.save({"reference_tokens": tokens}, OUT / "missing.refpt")


if __name__ == "__main__":
    main()
