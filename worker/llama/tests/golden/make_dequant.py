#!/usr/bin/env python3
"""Makes dequant.bin: random blocks of each ggml format and the f32 values that
the `gguf` package decodes them to.

    python3 -m pip install gguf==0.19.0 numpy
    python3 make_dequant.py dequant.bin

Layout, little endian, repeated until the end of the file: name length (u32),
name, number of block bytes (u32), block bytes, number of values (u32), values
(f32). Scales are random finite halves, subnormals and negatives among them;
everything else is random bytes.
"""

import struct
import sys

import gguf
import numpy as np

NUM_BLOCKS = 6
# Name, and where in a block the halves are.
FORMATS = [
    ("F32", []),
    ("F16", []),
    ("BF16", []),
    ("Q4_0", [0]),
    ("Q4_1", [0, 2]),
    ("Q8_0", [0]),
    ("Q4_K", [0, 2]),
    ("Q5_K", [0, 2]),
    ("Q6_K", [208]),
]
# The plain formats have blocks of one value: take as many as a block's worth.
PLAIN_VALUES = 64


def random_half(rng):
    """Any finite half: sign, exponent below 31, mantissa."""
    bits = int(rng.integers(0, 2)) << 15 | int(rng.integers(0, 31)) << 10 | int(rng.integers(0, 1024))
    return struct.pack("<H", bits)


def main():
    rng = np.random.default_rng(20240704)
    with open(sys.argv[1], "wb") as file:
        for name, halves in FORMATS:
            kind = gguf.GGMLQuantizationType[name]
            _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            if name == "F32":
                blocks = rng.standard_normal(PLAIN_VALUES).astype(np.float32).tobytes()
            elif name == "F16":
                blocks = b"".join(random_half(rng) for _ in range(PLAIN_VALUES))
            elif name == "BF16":
                bits = rng.standard_normal(PLAIN_VALUES).astype(np.float32).view(np.uint32) >> 16
                blocks = bits.astype(np.uint16).tobytes()
            else:
                blocks = bytearray(rng.integers(0, 256, NUM_BLOCKS * block_bytes, np.uint8).tobytes())
                for block in range(NUM_BLOCKS):
                    for at in halves:
                        start = block * block_bytes + at
                        blocks[start : start + 2] = random_half(rng)
                blocks = bytes(blocks)
            stored = {"F32": np.float32, "F16": np.float16}.get(name, np.uint8)
            values = gguf.quants.dequantize(np.frombuffer(blocks, stored), kind)
            values = np.ascontiguousarray(values, np.float32).tobytes()
            file.write(struct.pack("<I", len(name)) + name.encode())
            file.write(struct.pack("<I", len(blocks)) + blocks)
            file.write(struct.pack("<I", len(values) // 4) + values)


if __name__ == "__main__":
    main()
