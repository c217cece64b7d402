"""Write small state dicts with torch.save; `pth::writer` must reach the same bytes.

Run with torch 1.13: newer versions add records of their own.
    python3 worker/llama/tests/golden/make_pth_writer.py worker/llama/tests/golden/pth_writer
Prints the SHA-256 of files that are too large to keep.
"""

import hashlib
import os
import sys

import torch

DTYPES = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f32": torch.float32,
    "f64": torch.float64,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}


def counted(shape, dtype):
    """0, 1, 2 … in every type: no rounding is involved."""
    count = 1
    for size in shape:
        count *= size
    values = torch.arange(count)
    return (values % 2 if dtype == torch.bool else values % 100).reshape(shape).to(dtype)


def tied():
    embeddings = counted((5, 4), torch.bfloat16)
    return {
        "tok_embeddings.weight": embeddings,
        "norm.weight": counted((4,), torch.bfloat16),
        "output.weight": embeddings,
    }


def shapes():
    return {
        "scalar": counted((), torch.float32),
        "none": torch.zeros(0, 3),
        "three": counted((2, 3, 2), torch.float32),
        "four": counted((2, 1, 3, 2), torch.float32),
        "long": counted((300,), torch.float32),
    }


def dtypes():
    return {name: counted((3,), dtype) for name, dtype in DTYPES.items()}


def numbered(count):
    return {f"layers.{i}.weight": counted((2, 2), torch.bfloat16) for i in range(count)}


def zip64(directory):
    """Around a storage that needs 64 bits: the first 576 bytes and the last 1024."""
    path = os.path.join(directory, "zip64.pth")
    big = torch.zeros(4_295_000_000, dtype=torch.uint8)
    torch.save({"a": torch.ones(3), "big": big, "c": torch.ones(5)}, path)
    with open(path, "rb") as file:
        head = file.read(576)
        file.seek(-1024, os.SEEK_END)
        tail = file.read()
    os.remove(path)
    with open(os.path.join(directory, "zip64.bin"), "wb") as file:
        file.write(head + tail)


def main(directory):
    files = {"tied": tied(), "shapes": shapes(), "dtypes": dtypes(), "one": numbered(1), "empty": {}}
    for name, state in files.items():
        torch.save(state, os.path.join(directory, f"{name}.pth"))
    # The memo's long references, and Python's batches of 1000 pairs.
    for count in (60, 1000, 1001, 1002):
        path = os.path.join(directory, "large.pth")
        torch.save(numbered(count), path)
        with open(path, "rb") as file:
            print(count, os.path.getsize(path), hashlib.sha256(file.read()).hexdigest())
        os.remove(path)
    zip64(directory)


if __name__ == "__main__":
    main(sys.argv[1])
