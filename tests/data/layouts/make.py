#!/usr/bin/env python3
"""Cut the safetensors files in this directory from a training checkpoint.

usage: make.py CHECKPOINT_DIRECTORY

The directory holds model.safetensors (bf16) and model_fp32.safetensors of one PyTorch run. Each is cut down to the tensors that
fit, in the order and with the metadata of the file; the header is written anew. Only Python's standard library is used.
"""

import json
import pathlib
import struct
import sys

FILE_BYTES_MAX = 60_000


def cut(path):
    """A valid file of the first tensors of `path` that leave room for one another."""
    data = path.read_bytes()
    (header_len,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + header_len])
    kept, content = {"__metadata__": header.pop("__metadata__", {})}, b""
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        # Room for as many entries as there can be, at 150 bytes each.
        if len(content) + (end - begin) + 150 * (len(kept) + 2) > FILE_BYTES_MAX:
            continue
        kept[name] = {**entry, "data_offsets": [len(content), len(content) + (end - begin)]}
        content += data[8 + header_len :][begin:end]
    text = json.dumps(kept, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    source, here = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).parent
    for name in ("model.safetensors", "model_fp32.safetensors"):
        data = cut(source / name)
        (here / name).write_bytes(data)
        print(f"{name}: {len(data)} bytes")


if __name__ == "__main__":
    main()
