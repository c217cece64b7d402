"""Makes bfp.bin, the golden vectors of the block-float tests.

    python3 make_bfp.py bfp_golden.npz

The npz was made with the `ttnn` wheel: every case was packed on the host by
`ttnn.Tensor(array, dtype)` for bfloat8_b and bfloat4_b, the packed bytes were
read back, and `Tensor.to_numpy()` gave the dequantized values. It holds, for
each case, `in.CASE` (f32, row-major), `bfp8.bytes.CASE`, `bfp4.bytes.CASE`
(u8, tiles) and `bfp8.deq.CASE`, `bfp4.deq.CASE` (f32, row-major).

bfp.bin is little-endian: u32 number of cases, then per case u32 length of the
name, the name, u32 rows, u32 cols, the input (f32), and for bfp8 and then
bfp4: u32 number of packed bytes, those bytes, and the upper halves (u16) of
the dequantized values, whose lower halves are 0 except in a NaN.

Needs the standard library only.
"""

import ast
import pathlib
import struct
import sys
import zipfile


def arrays(path):
    """The (shape, bytes) of every array of an npz."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            data = archive.read(name)
            assert data[:6] == b"\x93NUMPY", name
            length = struct.unpack_from("<H" if data[6] == 1 else "<I", data, 8)[0]
            start = 10 if data[6] == 1 else 12
            header = ast.literal_eval(data[start : start + length].decode())
            assert not header["fortran_order"], name
            found[name.removesuffix(".npy")] = (header["shape"], data[start + length :])
    return found


def upper_halves(data):
    for (bits,) in struct.iter_unpack("<I", data):
        nan = bits & 0x7FFFFFFF > 0x7F800000
        assert nan or bits & 0xFFFF == 0, hex(bits)
        yield struct.pack("<H", 0x7FC0 if nan else bits >> 16)


def main():
    golden = arrays(sys.argv[1])
    cases = sorted(name.removeprefix("in.") for name in golden if name.startswith("in."))
    out = [struct.pack("<I", len(cases))]
    for case in cases:
        (rows, cols), values = golden[f"in.{case}"]
        out += [struct.pack("<I", len(case)), case.encode(), struct.pack("<II", rows, cols), values]
        for fmt in ("bfp8", "bfp4"):
            packed = golden[f"{fmt}.bytes.{case}"][1]
            out += [struct.pack("<I", len(packed)), packed]
            out += upper_halves(golden[f"{fmt}.deq.{case}"][1])
    pathlib.Path(__file__).with_name("bfp.bin").write_bytes(b"".join(out))
    print(f"{len(cases)} cases")


main()
