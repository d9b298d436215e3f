"""Writes the samples in this folder with PyTorch and numpy, and `expected.json`: what a parser must find in them.

The places are found by looking for the bytes of every tensor in the file, not by knowing the format.
Usage: python make.py [folder]
"""
import argparse
import collections
import json
import os
import sys

import numpy as np
import torch
import torch.distributed.checkpoint as dcp

NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.float8_e8m0fnu: "F8_E8M0",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL",
    torch.complex64: "C64", torch.complex128: "C128",
}
folder = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
os.chdir(folder)
torch.manual_seed(7)
expected = {}


def raw(tensor):
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def note(file, tensors):
    content = open(file, "rb").read()
    assert len(content) <= 30_000, (file, len(content))
    found = []
    for name, tensor in tensors.items():
        place = None
        if tensor.is_contiguous() and tensor.numel():
            assert content.count(raw(tensor)) == 1 or len(raw(tensor)) <= 16, name
            place = [content.find(raw(tensor)), len(raw(tensor))]
        found.append([name, NAMES[tensor.dtype], list(tensor.shape), tensor.is_contiguous(), place])
    expected[file] = found


def leaves(value, path=""):
    if isinstance(value, torch.Tensor):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    found = {}
    for key, inner in items:
        found.update(leaves(inner, f"{path}.{key}" if path else str(key)))
    return found


def save(file, value):
    torch.save(value, file)
    note(file, leaves(value))


base = torch.randn(40, 16)
tied = torch.randn(300)
save("types.pt", {
    "f64": torch.randn(130, dtype=torch.float64), "f32": base, "rows": base[8:24], "columns": base[:, 3:5],
    "turned": base.t(), "f16": torch.randn(600).half(), "bf16": torch.randn(24, 25).bfloat16(),
    "f8": torch.randn(1100).to(torch.float8_e4m3fn), "f8_e5": torch.randn(1100).to(torch.float8_e5m2),
    "f8_e8": torch.randint(0, 255, (30,), dtype=torch.uint8).view(torch.float8_e8m0fnu),
    "i64": torch.randint(1 << 60, (3,)), "i8": torch.randint(-128, 127, (1200,), dtype=torch.int8),
    "u16": torch.randint(1 << 16, (30,)).to(torch.uint16), "u32": torch.randint(1 << 32, (30,)).to(torch.uint32),
    "u64": torch.randint(1 << 60, (30,)).to(torch.uint64), "bool": torch.rand(1500) < 0.5,
    "c64": torch.randn(150, dtype=torch.complex64), "c128": torch.randn(80, dtype=torch.complex128),
    "scalar": torch.tensor(1.2345), "empty": torch.empty(0, 3),
    "embed.weight": tied, "head.weight": tied.view(20, 15), "parameter": torch.nn.Parameter(torch.randn(7, 41)),
})
model = torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.LayerNorm(16), torch.nn.Linear(16, 18))
optimizer = torch.optim.AdamW(model.parameters())
for _ in range(2):
    model(torch.randn(3, 20)).square().sum().backward()
    optimizer.step()
checkpoint = {
    "epoch": 3, "global_step": 1200, "pytorch-lightning_version": "2.5.0", "state_dict": model.state_dict(),
    "loops": {"fit_loop": {"batch_progress": {"total": {"ready": 1200}}}},
    "optimizer_states": [optimizer.state_dict()], "lr_schedulers": [{"last_epoch": 3, "_last_lr": [0.001]}],
    "hyper_parameters": argparse.Namespace(width=16, rate=1e-3), "big": 1 << 80, "below": -5,
}
save("checkpoint.ckpt", checkpoint)
save("lone.pt", torch.randn(500))
torch.save(model, "module.pt")
note("module.pt", {
    f"_modules.{module}._parameters.{name}": tensor
    for module, inner in model.named_children() for name, tensor in inner.named_parameters()
})
ordered = collections.OrderedDict(a=torch.randn(400), b=torch.randn(30))
torch.save(ordered, "protocol_5.pt", pickle_protocol=5)
note("protocol_5.pt", ordered)
script = torch.jit.script(torch.nn.Linear(20, 16))
torch.jit.save(script, "script.pt")
note("script.pt", dict(script.named_parameters()))

state = {"model": model.state_dict(), "rate": 0.25, "extra": {"inner": torch.arange(300)}, "step": 1200}
dcp.save(state, checkpoint_id="dcp", no_dist=True)
note("dcp/__0_0.distcp", leaves(state))

arrays = {"a": np.random.default_rng(7).normal(size=(20, 15)), "b": np.arange(700, dtype="<i4"), "c": np.float32(2.5)}
np.savez("arrays.npz", **arrays)
note("arrays.npz", {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()})
np.savez_compressed("compressed.npz", **arrays)

with open("expected.json", "w") as out:
    out.write("{\n" + ",\n".join(
        f"{json.dumps(file)}: [\n" + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n]"
        for file, rows in expected.items()
    ) + "\n}\n")
