#!/usr/bin/env python3
"""Loads containers with the libraries that people load them with, and compares what they find with what is expected.

    load_back.py ROOT EXPECTED                 every file of EXPECTED (a JSON file) beneath the directory ROOT
    load_back.py --tensors EXPECTED FILE NAME=TENSORFILE...
                                               tensors of FILE, which is named in EXPECTED, each written to a file of
                                               its own: .npy, .safetensors, or else the bare bytes

The last lines of the output say how many files were loaded and, one line each, which containers were not, because
their library is missing. Exit code 1 names the first tensor that differs.

Needs numpy, safetensors, gguf and pyarrow; files of PyTorch are loaded if torch is there. What the functions here return is
also how tests/data/containers/make.py writes EXPECTED: one record for each tensor.
"""

import hashlib
import importlib.util
import io
import json
import pathlib
import sys

TORCH_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint64": "U64",
    "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL", "complex64": "C64", "complex128": "C128",
}


class Tensor:
    """What a library found: bytes are its elements row by row, little-endian; `is_plain` if the file has them so, too."""

    def __init__(self, name, dtype, shape, data, is_plain=True, is_big_endian=False):
        self.name, self.dtype, self.shape = name, dtype, [int(n) for n in shape]
        self.data, self.is_plain, self.is_big_endian = bytes(data), is_plain, is_big_endian

    def sha256(self):
        return hashlib.sha256(self.data).hexdigest()


def of_numpy(name, array):
    import numpy

    array = numpy.asarray(array)
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    is_big_endian = array.dtype.str[0] == ">"
    is_plain = bool(array.flags.c_contiguous) and not is_big_endian
    return Tensor(name, TORCH_NAMES[little.dtype.name], array.shape, little.tobytes("C"), is_plain, is_big_endian)


def of_torch(name, tensor):
    import torch

    tensor = tensor.detach()
    flat = tensor.contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    dtype = TORCH_NAMES[str(tensor.dtype).removeprefix("torch.")]
    return Tensor(name, dtype, tensor.shape, data, tensor.is_contiguous())


def within(value, path=()):
    """The tensors in nested dictionaries, lists and tuples, named by their keys; of modules, those of their state."""
    import torch

    if isinstance(value, torch.Tensor):
        yield of_torch(".".join(path), value)
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from within(child, (*path, str(key)))
    elif isinstance(value, (list, tuple)):
        for at, child in enumerate(value):
            yield from within(child, (*path, str(at)))
    elif isinstance(value, torch.nn.Module):
        yield from within(value.state_dict(), path)


def read_safetensors(path):
    from safetensors import deserialize, safe_open

    with safe_open(path, framework="np") as file:
        file.metadata(), list(file.keys())
    return [Tensor(name, spec["dtype"], spec["shape"], spec["data"]) for name, spec in deserialize(path.read_bytes())]


def read_torch(path):
    import torch

    return list(within(torch.load(path, map_location="cpu", weights_only=False)))


def read_dcp(path):
    """The pieces of tensors that lie in one file, as the `.metadata` beside it says."""
    import torch
    from torch.distributed.checkpoint import FileSystemReader

    metadata = FileSystemReader(path.parent).read_metadata()
    content, found = path.read_bytes(), []
    for index, place in metadata.storage_data.items():
        if place.relative_path != path.name:
            continue
        loaded = io.BytesIO(content[place.offset:place.offset + place.length])
        kind = type(metadata.state_dict_metadata[index.fqn]).__name__
        if kind == "TensorStorageMetadata":
            found.append((place.offset, of_torch(index.fqn, torch.load(loaded, weights_only=True))))
    return [tensor for _, tensor in sorted(found, key=lambda pair: pair[0])]


def read_gguf(path):
    from gguf import GGUFReader

    found = []
    for tensor in GGUFReader(path).tensors:
        # The library names the dimension that varies fastest first.
        shape = [int(n) for n in reversed(tensor.shape)]
        found.append(Tensor(tensor.name, tensor.tensor_type.name, shape, tensor.data.tobytes("C")))
    return found


def read_npy(path):
    import numpy

    return [of_numpy("array", numpy.load(path))]


def read_npz(path):
    import numpy

    with numpy.load(path) as archive:
        return [of_numpy(name, archive[name]) for name in archive.files]


def read_parquet(path):
    """One record for each column: its values as JSON."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    return [
        Tensor(name, str(column.type), [len(column)], json.dumps(column.to_pylist()).encode())
        for name, column in zip(table.column_names, table.columns)
    ]


# By container: what reads it, and the module that this needs.
READERS = {
    "safetensors": (read_safetensors, "safetensors"), "torch": (read_torch, "torch"), "dcp": (read_dcp, "torch"),
    "gguf": (read_gguf, "gguf"), "npy": (read_npy, "numpy"), "npz": (read_npz, "numpy"),
    "parquet": (read_parquet, "pyarrow"),
}


def same(found, expected, where):
    """Fails with a sentence unless the tensor is the expected one."""
    if (found.dtype, found.shape) != (expected["dtype"], expected["shape"]):
        sys.exit(f"{where}: {found.dtype} {found.shape}, expected {expected['dtype']} {expected['shape']}")
    if found.sha256() != expected["sha256"]:
        sys.exit(f"{where}: other elements than expected")


def compare_file(path, wanted):
    """Loads a file and compares everything in it."""
    read, _ = READERS[wanted["container"]]
    found = sorted(read(path), key=lambda tensor: tensor.name)
    expected = sorted(wanted["tensors"], key=lambda tensor: tensor["name"])
    names = [tensor["name"] for tensor in expected]
    if [tensor.name for tensor in found] != names:
        sys.exit(f"{path}: holds {[tensor.name for tensor in found]}, expected {names}")
    for tensor, one in zip(found, expected):
        same(tensor, one, f"{path}: {one['name']}")
    return len(found)


def compare_all(root, expected):
    files = tensors = 0
    missing = {}
    for name, wanted in expected.items():
        modules = [READERS[wanted["container"]][1], *wanted.get("needs", [])]
        module = next((module for module in modules if importlib.util.find_spec(module) is None), None)
        if module:
            missing[module] = missing.get(module, 0) + 1
            continue
        tensors += compare_file(root / name, wanted)
        files += 1
    print(f"{files} files loaded, {tensors} tensors as expected")
    for module, count in missing.items():
        print(f"not loaded: {count} files, {module} is not installed")


def load_one(path):
    """The only tensor of a file that holds one."""
    if path.suffix == ".npy":
        return read_npy(path)[0]
    if path.suffix == ".safetensors":
        tensors = read_safetensors(path)
        if len(tensors) != 1:
            sys.exit(f"{path}: {len(tensors)} tensors, expected one")
        return tensors[0]
    return None


def compare_tensors(expected, file, pairs):
    by_name = {tensor["name"]: tensor for tensor in expected[file]["tensors"]}
    for pair in pairs:
        name, _, path = pair.rpartition("=")
        path, wanted = pathlib.Path(path), by_name[name]
        found = load_one(path)
        if found is None:
            if hashlib.sha256(path.read_bytes()).hexdigest() != wanted["sha256"]:
                sys.exit(f"{path}: not the elements of {name}")
        else:
            same(found, wanted, f"{path}: {name}")
    print(f"{len(pairs)} tensors as expected")


def files_of(expected):
    return json.loads(pathlib.Path(expected).read_text())["files"]


def main():
    arguments = sys.argv[1:]
    if len(arguments) >= 3 and arguments[0] == "--tensors":
        expected = files_of(arguments[1])
        compare_tensors(expected, arguments[2], arguments[3:])
    elif len(arguments) == 2:
        compare_all(pathlib.Path(arguments[0]), files_of(arguments[1]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
