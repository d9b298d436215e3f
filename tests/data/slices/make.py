#!/usr/bin/env python3
"""Cut the slices in this directory from a training checkpoint.

usage: make.py CHECKPOINT_DIRECTORY

The directory holds model.safetensors (bf16), model_fp32.safetensors and optimizer.pt (AdamW, fp32) of one PyTorch run.
Slices are raw little-endian numbers without any header; only Python's standard library is used.
"""

import json
import pathlib
import struct
import sys
import zipfile

SLICE_BYTES = 48 << 10


def tensors(path):
    """Yields name, dtype and bytes of each tensor of a safetensors file."""
    data = path.read_bytes()
    (header_len,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + header_len])
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            yield name, entry["dtype"], data[8 + header_len :][begin:end]


def largest(path, dtype):
    """The bytes of the largest tensor that is no embedding, for rows never touched are not typical."""
    found = [(len(data), name, data) for name, kind, data in tensors(path) if kind == dtype and "embed" not in name]
    return max(found)[2]


def moments(path, wanted_bytes):
    """Adam's m and v of one parameter: torch.save stores step, exp_avg, exp_avg_sq of each parameter in turn."""
    with zipfile.ZipFile(path) as archive:
        names = [info for info in archive.infolist() if "/data/" in info.filename]
        names.sort(key=lambda info: int(info.filename.rsplit("/", 1)[1]))
        pairs = [
            (a.filename, b.filename)
            for a, b in zip(names, names[1:])
            if a.file_size == b.file_size == wanted_bytes
        ]
        m, v = pairs[len(pairs) // 2]
        # Second moments are never negative; a parameter's numbers tell which of the two is which.
        m, v = archive.read(m), archive.read(v)
        negative = lambda data: sum(byte >> 7 for byte in data[3::4])
        return (m, v) if negative(m) > negative(v) else (v, m)


def middle(data, width):
    """The middle of `data`, cut at whole numbers."""
    start = max(0, len(data) - SLICE_BYTES) // 2 // width * width
    return data[start : start + SLICE_BYTES]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    source, here = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).parent
    fp32 = largest(source / "model_fp32.safetensors", "F32")
    m, v = moments(source / "optimizer.pt", len(fp32))
    slices = {
        "weights.bf16": middle(largest(source / "model.safetensors", "BF16"), 2),
        "weights.fp32": middle(fp32, 4),
        "adam_m.fp32": middle(m, 4),
        "adam_v.fp32": middle(v, 4),
        "tokenizer.json": (source / "tokenizer.json").read_bytes()[:SLICE_BYTES],
    }
    for name, data in slices.items():
        (here / name).write_bytes(data)
        print(f"{name}: {len(data)} bytes")


if __name__ == "__main__":
    main()
