#!/usr/bin/env python3
"""Writes the sample containers beside this file, each with the library that people write it with, and `expected.json`.

    PYTHON tests/data/containers/make.py [--expected]

With --expected the containers stay as they are, and only `expected.json` is written.

PYTHON has torch, numpy, safetensors, gguf, pyarrow, transformers, accelerate, lightning, deepspeed (installed with
DS_BUILD_OPS=0; it compiles one helper at its first run) and blake3. Seeds are fixed, versions of
libraries are not: what is in the repository is what the versions named in `expected.json` wrote.

`expected.json` holds for each container what its library finds when it loads the file again:

    {"versions": {...}, "files": {PATH: {"container": KIND, "tensors": [{"name", "dtype", "shape", "sha256", "blake3"}]}}}

Hashes are of the elements row by row, little-endian. A tensor that the file does not hold in this way (transposed, in
Fortran order, big-endian, compressed) has `"is_plain": false`; of big-endian ones that is said, too. Files whose tensors belong to objects, where names are
the library's business, have `"names_are_free": true`. Parquet has the places of its column chunks as `"column_chunks"`. `"needs"` names modules that
loading takes beside the library of the container, because objects of theirs are in the file.
"""

import importlib.metadata
import json
import logging
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import warnings

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))
sys.dont_write_bytecode = True
os.environ.update(DS_ACCELERATOR="cpu", MASTER_ADDR="127.0.0.1", MASTER_PORT="29517", RANK="0", WORLD_SIZE="1",
                  LOCAL_RANK="0", LOCAL_SIZE="1", CUDA_VISIBLE_DEVICES="", TRANSFORMERS_VERBOSITY="error",
                  PATH=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
warnings.simplefilter("ignore")

import blake3
import numpy as np
import torch

import load_back

LIBRARIES = ["torch", "numpy", "safetensors", "gguf", "pyarrow", "transformers", "lightning", "deepspeed"]


def seed():
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)


def folder(name):
    path = HERE / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def model():
    return torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.ReLU(), torch.nn.Linear(40, 8))


def trained(steps=2):
    """A model and its optimizer after a few steps."""
    network = model()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.randn(4, 24)).square().mean().backward()
        optimizer.step()
    return network, optimizer


def safetensors_files():
    from safetensors.numpy import save_file as save_numpy
    from safetensors.torch import save_file

    here = folder("safetensors")
    weights = torch.randn(64, 48) * 0.02
    floats = {
        "model.embed.weight": weights.to(torch.bfloat16), "model.half": weights[:20].to(torch.float16),
        "model.single": weights[:24].contiguous(), "model.double": weights[:5].to(torch.float64),
        "model.e4m3": weights.to(torch.float8_e4m3fn), "model.e5m2": weights.to(torch.float8_e5m2),
        "scalar": torch.tensor(3.25), "empty": torch.empty(0, 16), "flags": weights[0] > 0,
        "numbers": torch.arange(-50, 50), "name with spaces and \u00e9": torch.ones(3, dtype=torch.bfloat16),
    }
    save_file(floats, here / "model.safetensors", metadata={"format": "pt", "step": "12", "note": "\u00e9 \" \\"})
    many = {f"layers.{n}.weight": torch.randn(1 + n % 7, 3).to(torch.bfloat16) for n in range(60)}
    save_file(many, here / "many.safetensors")
    kinds = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
    save_numpy({kind: np.arange(11).astype(kind) for kind in kinds}, here / "integers.safetensors")
    save_file({}, here / "nothing.safetensors", metadata={"only": "notes"})


def torch_files():
    here = folder("torch")
    network, optimizer = trained()
    torch.save(network.state_dict(), here / "state.pt")
    torch.save(optimizer.state_dict(), here / "adamw.pt")
    torch.save(network, here / "module.pth")
    torch.save(network.state_dict(), here / "before_1_6.pt", _use_new_zipfile_serialization=False)
    base = torch.randn(40, 30)
    views = {
        "base": base, "rows": base[10:20], "column": base[:, 3], "transposed": base.t(), "tied": base,
        "tail": base.reshape(-1)[1000:], "parameter": torch.nn.Parameter(torch.randn(6)),
        "permuted": torch.randn(2, 3, 4).permute(2, 0, 1), "expanded": torch.ones(1, 1).expand(4, 5),
    }
    torch.save(views, here / "views.pt")
    nested = {
        "epoch": 3, "loss": 0.25, "name": "run", "none": None, "bytes": b"\x00\xff", "big": 1 << 70,
        "model": {"a": {"b": torch.randn(5, 5).to(torch.bfloat16)}, "flags": torch.tensor([True, False])},
        "list": [torch.randn(3).half(), (torch.tensor(7), "text"), []], 5: torch.arange(6, dtype=torch.int32),
        "complex": torch.randn(4, dtype=torch.complex64), "empty": torch.empty(0), "scalar": torch.tensor(1.5),
        "e4m3": torch.randn(32).to(torch.float8_e4m3fn), "bytes_8": torch.arange(9, dtype=torch.uint8),
    }
    torch.save(nested, here / "nested.ckpt")
    torch.save({"weight": torch.randn(64, 64).to(torch.bfloat16)}, here / "pytorch_model.bin")


def lightning_files():
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = model()

        def training_step(self, batch, _):
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    here = folder("lightning")
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 24)), batch_size=4)
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                                enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(Module(), data)
    trainer.save_checkpoint(here / "epoch=0-step=2.ckpt")


def trainer_files():
    import functools
    import transformers

    config = transformers.LlamaConfig(vocab_size=96, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                                      num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32)
    network = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    network.save_pretrained = functools.partial(network.save_pretrained, max_shard_size="6KB")
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(0, 96, (8, 12))]
    arguments = transformers.TrainingArguments(output_dir="hf_trainer", max_steps=2, save_steps=2, use_cpu=True,
                                               per_device_train_batch_size=4, report_to=[], disable_tqdm=True,
                                               learning_rate=1e-3, seed=7, logging_steps=1)
    transformers.Trainer(model=network, args=arguments, train_dataset=rows).train()
    here = folder("hf_trainer")
    made = pathlib.Path("hf_trainer/checkpoint-2")
    # The arguments name the machine that they were made on.
    (made / "training_args.bin").unlink()
    shutil.copytree(made, here / "checkpoint-2")


def deepspeed_files():
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo")
    network = model()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    config = {"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 1}, "bf16": {"enabled": False},
              "zero_allow_untested_optimizer": True}
    engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=config)
    for _ in range(2):
        engine.backward(engine(torch.randn(4, 24)).square().mean())
        engine.step()
    engine.save_checkpoint("deepspeed")
    here = folder("deepspeed")
    shutil.copytree("deepspeed/global_step2", here / "global_step2")
    shutil.copy("deepspeed/latest", here / "latest")
    torch.distributed.destroy_process_group()


def dcp_files():
    import torch.distributed.checkpoint as dcp

    state = {
        "model": {"weight": torch.randn(48, 24), "half": torch.randn(30, 20).to(torch.bfloat16), "bias": torch.randn(7)},
        "optimizer": {"step": torch.tensor(12.0), "lr": 0.001},
        "notes": {"run": "seven", "blob": b"\x01\x02\x03"},
    }
    dcp.save(state, checkpoint_id=folder("dcp") / "checkpoint", no_dist=True)
    here = folder("dcp_sharded")
    subprocess.run([sys.executable, __file__, "--sharded", str(here / "checkpoint")], check=True)


def save_sharded(rank, path):
    """One of two processes that hold half of every tensor."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_PORT="29519")
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    seed()
    state = {
        "rows": distribute_tensor(torch.randn(33, 16), mesh, [Shard(0)]),
        "columns": distribute_tensor(torch.randn(8, 50).to(torch.bfloat16), mesh, [Shard(1)]),
        "whole": torch.randn(5),
    }
    dcp.save(state, checkpoint_id=path)
    torch.distributed.destroy_process_group()


def gguf_files():
    from gguf import GGMLQuantizationType as Kind, GGUFWriter, quants

    here = folder("gguf")
    writer = GGUFWriter(here / "model.gguf", "llama")
    writer.add_block_count(1)
    writer.add_array("tokenizer.ggml.tokens", [f"token{n}" for n in range(40)])
    writer.add_array("general.scores", [0.5, 0.25])
    writer.add_custom_alignment(64)
    weights = np.random.randn(24, 96).astype("float32")
    writer.add_tensor("token_embd.weight", weights)
    writer.add_tensor("blk.0.attn_norm.weight", weights[0, :10].copy())
    writer.add_tensor("blk.0.attn_q.weight", weights[:8].astype("float16"))
    for name, kind in [("k", Kind.Q8_0), ("v", Kind.Q4_0), ("o", Kind.BF16)]:
        writer.add_tensor(f"blk.0.attn_{name}.weight", quants.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def numpy_files():
    here = folder("numpy")
    numbers = np.random.randn(30, 20).astype("float32")
    arrays = {"rows": numbers, "columns": np.asfortranarray(numbers), "scalar": np.float64(2.5),
              "big_endian": numbers.astype(">f4"), "half": numbers.astype("float16"), "flags": numbers > 0,
              "empty": np.zeros((0, 4)), "counts": np.arange(200, dtype="int64")}
    for name, array in arrays.items():
        np.save(here / f"{name}.npy", array)
    np.savez(here / "stored.npz", **arrays)
    np.savez_compressed(here / "compressed.npz", weights=numbers, counts=arrays["counts"])


def parquet_files():
    import pyarrow
    import pyarrow.parquet as parquet

    here = folder("parquet")
    rows = 900
    table = pyarrow.table({
        "id": np.arange(rows), "score": np.random.randn(rows).astype("float32"),
        "text": [f"row {n} says {random.choice(['yes', 'no', 'perhaps'])} {n * n % 977}" for n in range(rows)],
        "maybe": [None if n % 5 == 0 else n % 3 for n in range(rows)],
        "list": [list(range(n % 4)) for n in range(rows)],
    })
    for compression in ["snappy", "zstd"]:
        parquet.write_table(table, here / f"{compression}.parquet", compression=compression, row_group_size=400)
    parquet.write_table(table, here / "content_defined.parquet", compression="zstd", row_group_size=400,
                        use_content_defined_chunking={"min_chunk_size": 1024, "max_chunk_size": 4096})


def column_chunks(path):
    """Where the column chunks lie, as the library says."""
    import pyarrow.parquet

    metadata = pyarrow.parquet.ParquetFile(path).metadata
    chunks = []
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            starts = [chunk.data_page_offset] + [chunk.dictionary_page_offset] * bool(chunk.dictionary_page_offset)
            chunks.append({"column": chunk.path_in_schema, "offset": min(starts), "bytes": chunk.total_compressed_size})
    return sorted(chunks, key=lambda chunk: chunk["offset"])


def container_of(path):
    """The kind of a file, and whether it is written so that its tensors can be found; none for what is no container."""
    kinds = {".safetensors": "safetensors", ".distcp": "dcp", ".gguf": "gguf", ".npy": "npy", ".npz": "npz",
             ".parquet": "parquet", ".pt": "torch", ".pth": "torch", ".bin": "torch", ".ckpt": "torch"}
    return kinds.get(path.suffix)


def describe(path):
    kind = container_of(path)
    read, _ = load_back.READERS[kind]
    tensors = []
    for tensor in read(path):
        one = {"name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape, "sha256": tensor.sha256(),
               "blake3": blake3.blake3(tensor.data).hexdigest()}
        if not tensor.is_plain or path.name == "compressed.npz":
            one["is_plain"] = False
        if tensor.is_big_endian:
            one["is_big_endian"] = True
        tensors.append(one)
    found = {"container": kind, "tensors": tensors}
    if path.name == "before_1_6.pt":
        found["is_old"] = True
    if kind == "torch" and b"cdeepspeed" in path.read_bytes():
        found["needs"] = ["deepspeed"]
    if path.name == "module.pth":
        found["names_are_free"] = True
    if kind == "parquet":
        found["column_chunks"] = column_chunks(path)
    return found


def write_expected():
    files = {}
    for path in sorted(HERE.rglob("*")):
        if path.is_file() and container_of(path):
            files[path.relative_to(HERE).as_posix()] = describe(path)
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    lines = [f"{json.dumps(name)}: {json.dumps(found)}" for name, found in files.items()]
    text = f'{{"versions": {json.dumps(versions)},\n"files": {{\n' + ",\n".join(lines) + "\n}}\n"
    json.loads(text)
    (HERE / "expected.json").write_text(text)
    sizes = [path.stat().st_size for path in HERE.rglob("*") if path.is_file()]
    print(f"{len(files)} containers, {len(sizes)} files, {sum(sizes)} bytes")


def main():
    if sys.argv[1:] == ["--expected"]:
        return write_expected()
    if sys.argv[1:2] == ["--sharded"]:
        torch.multiprocessing.spawn(save_sharded, (sys.argv[2],), nprocs=2)
        return
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        # Paths that end up in checkpoints are relative.
        os.chdir(scratch)
        for write in [safetensors_files, torch_files, trainer_files, lightning_files, deepspeed_files, dcp_files,
                      gguf_files, numpy_files, parquet_files]:
            seed()
            write()
        os.chdir(HERE)
    write_expected()


if __name__ == "__main__":
    main()
