#!/usr/bin/env python3
"""What several versions of the same data take in a repository: training runs, fine-tunes, datasets.

    cargo build --release
    benches/sequences.py --work DIR [--only run,tunes,jsonl,parquet,parquet-cdc,files] [--run DIR] ...

Each sequence is backed up version after version, one snapshot each, and all at once into another repository. The table
says what is stored, the time of the backups, and how long the newest version takes to restore beside a repository that
holds nothing else. Every snapshot is restored and compared byte by byte. What is measured and how: docs/BENCHMARKS.md.

Python's standard library, numpy (fine-tunes) and pyarrow (Parquet); the training run needs `--run`, or an interpreter with
torch and safetensors in TORCH_PYTHON. What cannot be made is said, as `NOT RUN: reason`. Linux.
"""

import argparse
import fnmatch
import importlib.util
import json
import os
import pathlib
import random
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time

from compare import ROOT, disk_bytes, same_content

# Files look as if they had been left alone since: what was just written counts as an unfinished checkpoint.
LONG_AGO = 1_600_000_000


class NotRun(Exception):
    """A sequence cannot be made here; the text says why."""


# Making versions: each function fills `out` with one directory for each version, whose names sort in their order. ------


def training_run(out, arguments):
    if arguments.run:
        folders = sorted((path for path in arguments.run.iterdir() if path.is_dir()), key=step_of)
        for number, folder in enumerate(folders):
            target = out / f"{number:03}" / folder.name
            for path in sorted(folder.rglob("*")):
                if path.is_file() and fnmatch.fnmatch(path.name, arguments.files):
                    place = target / path.relative_to(folder)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, place)
        return
    python = os.environ.get("TORCH_PYTHON")
    if not python:
        raise NotRun("no checkpoints are named with --run, and TORCH_PYTHON is not set")
    made = out.with_name("trained")
    shutil.rmtree(made, ignore_errors=True)
    size = [arguments.checkpoints, arguments.steps, arguments.width, arguments.layers]
    subprocess.run([python, ROOT / "benches/train.py", made, *map(str, size)], check=True)
    for number, folder in enumerate(sorted(made.iterdir(), key=step_of)):
        (out / f"{number:03}").mkdir()
        folder.rename(out / f"{number:03}" / folder.name)
    shutil.rmtree(made)


def step_of(folder):
    """The step of a checkpoint: as its state says, else by the numbers in its name."""
    try:
        return [json.loads((folder / "trainer_state.json").read_text())["global_step"]]
    except (OSError, ValueError, KeyError):
        return [int(number) for number in re.findall(r"\d+", folder.name)]


def fine_tunes(out, arguments):
    if importlib.util.find_spec("numpy") is None:
        raise NotRun("numpy is missing")
    import numpy as np

    chance = np.random.default_rng(1)
    width, vocabulary = 512, 16_000
    layers = max(3, (arguments.model_bytes - 4 * vocabulary * width) // (2 * 13 * width * width))
    shapes = {"model.embed_tokens.weight": (vocabulary, width), "lm_head.weight": (vocabulary, width)}
    for layer in range(layers):
        for name, shape in {"self_attn.q_proj": (width, width), "self_attn.k_proj": (width, width),
                            "self_attn.v_proj": (width, width), "self_attn.o_proj": (width, width),
                            "mlp.gate_proj": (3 * width, width), "mlp.up_proj": (3 * width, width),
                            "mlp.down_proj": (width, 3 * width)}.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    draw = lambda shape, scale: chance.standard_normal(shape, dtype="float32") * np.float32(scale)
    base = {name: bf16(np, draw(shape, 0.02 + 0.01 * (len(name) % 4))) for name, shape in shapes.items()}
    write_model(out / "0/base", base)
    noise = noise_that_changes(np, next(iter(base.values())), 0.7, chance)

    def tuned(name, words):
        numbers = (words.astype("uint32") << 16).view("float32")
        return bf16(np, numbers + draw(words.shape, noise * float(numbers.std())))

    full = {name: tuned(name, words) for name, words in base.items()}
    changed = [np.mean(full[name] != words) for name, words in base.items()]
    near = [np.mean(np.abs(full[name].astype("int32") - words) <= 2) for name, words in base.items()]
    print(f"fine-tunes: {np.mean(changed):.0%} of the words change, {np.mean(near):.0%} by at most 2 units", flush=True)
    write_model(out / "1/full", full)
    is_late = lambda name: name == "lm_head.weight" or int((re.findall(r"layers\.(\d+)", name) or [0])[0]) * 3 >= 2 * layers
    write_model(out / "2/frozen", {n: tuned(n, words) if is_late(n) else words for n, words in base.items()})
    resized = {name: tuned(name, words) for name, words in base.items()}
    for name in ["model.embed_tokens.weight", "lm_head.weight"]:
        resized[name] = np.concatenate([resized[name], bf16(np, draw((77, width), 0.02))])
    write_model(out / "3/resized", resized)


def bf16(np, numbers):
    """The nearest bf16 of each fp32, ties to even, as 16-bit words."""
    bits = np.ascontiguousarray(numbers, dtype="float32").view("uint32")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("uint16")


def noise_that_changes(np, words, share, chance):
    """The noise, as a multiple of the deviation of the numbers, that changes this share of their words."""
    numbers = (words[:200].astype("uint32") << 16).view("float32")
    low, high = 0.0, 0.1
    for _ in range(30):
        middle = (low + high) / 2
        noise = chance.standard_normal(numbers.shape, dtype="float32") * np.float32(middle * numbers.std())
        is_less = np.mean(bf16(np, numbers + noise) != words[:200]) < share
        low, high = (middle, high) if is_less else (low, middle)
    return low


def write_model(folder, tensors):
    """A safetensors file of bf16 tensors."""
    folder.mkdir(parents=True)
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, words in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(words.shape), "data_offsets": [at, at + words.nbytes]}
        at += words.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for words in tensors.values():
            file.write(words.astype("<u2", copy=False).tobytes())
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))


def library_files():
    """The sources of Python's own library, as lists of lines."""
    library = pathlib.Path(sysconfig.get_paths()["stdlib"])
    texts = (path.read_text(errors="replace") for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts)
    return [lines for lines in (text.splitlines() for text in texts) if len(lines) > 20]


def row_versions(megabytes):
    """Five versions of a table of text, each made from the one before it."""
    chance = random.Random(1)
    lines = sorted({line.strip() for file in library_files() for line in file if len(line.strip()) > 30})
    made = 0

    def row():
        nonlocal made
        made += 1
        text = "\n".join(chance.choice(lines) for _ in range(chance.randrange(6, 24)))
        return {"id": f"{made:09}-{chance.getrandbits(64):016x}", "score": round(chance.gauss(0, 1), 4), "text": text}

    rows, size = [], 0
    while size < megabytes * 1_000_000:
        rows.append(row())
        size += len(rows[-1]["text"]) + 70
    yield rows
    rows = rows + [row() for _ in range(len(rows) // 20)]
    yield rows
    places = set(chance.sample(range(len(rows)), len(rows) // 100))
    rows = [one for at, old in enumerate(rows) for one in ([row(), old] if at in places else [old])]
    yield rows
    places = set(chance.sample(range(len(rows)), len(rows) // 50))
    rows = [old for at, old in enumerate(rows) if at not in places]
    yield rows
    rows = list(rows)
    for at in chance.sample(range(len(rows)), len(rows) // 100):
        rows[at] = rows[at] | {"text": rows[at]["text"] + "\n" + chance.choice(lines)}
    yield rows


def jsonl(out, arguments):
    for number, rows in enumerate(row_versions(arguments.megabytes)):
        folder = out / f"{number}"
        folder.mkdir()
        with open(folder / "rows.jsonl", "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def parquet(out, arguments, **options):
    if importlib.util.find_spec("pyarrow") is None:
        raise NotRun("pyarrow is missing")
    import pyarrow
    import pyarrow.parquet

    for number, rows in enumerate(row_versions(arguments.megabytes)):
        folder = out / f"{number}"
        folder.mkdir()
        table = pyarrow.Table.from_pylist(rows)
        try:
            pyarrow.parquet.write_table(table, folder / "rows.parquet", compression="snappy", **options)
        except TypeError as error:
            raise NotRun(f"pyarrow {pyarrow.__version__}: {error}") from error


def parquet_by_content(out, arguments):
    parquet(out, arguments, use_content_defined_chunking=True)


def small_files(out, arguments):
    chance, files = random.Random(2), library_files()
    for number in range(arguments.small_files):
        lines = chance.choice(files)
        begin = chance.randrange(len(lines) - 10)
        folder = out / f"0/{number % 200:03}"
        folder.mkdir(parents=True, exist_ok=True)
        text = "\n".join(lines[begin:begin + chance.randrange(10, 400)])
        (folder / f"{number:05}.txt").write_text(f"# {number}\n{text}\n")


# What is made how, and whether a version replaces the one before it or stands beside it.
SEQUENCES = {
    "run": (training_run, False), "tunes": (fine_tunes, False), "jsonl": (jsonl, True), "parquet": (parquet, True),
    "parquet-cdc": (parquet_by_content, True), "files": (small_files, True),
}


# Measuring. -----------------------------------------------------------------------------------------------------------


class Repository:
    """A repository of its own, and the program that writes it."""

    def __init__(self, program, folder):
        self.program, self.folder = program, folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.environment = os.environ | {"CKPT_REPO": str(folder / "repo"), "CKPT_CACHE_DIR": str(folder / "cache")}
        self("init")

    def __call__(self, *arguments):
        """Runs a command; what it said and its seconds."""
        os.sync()
        begin = time.monotonic()
        command = [self.program, *map(str, arguments)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout, time.monotonic() - begin

    def backup(self, folder):
        """The id of the snapshot, and seconds."""
        said, seconds = self("backup", folder, "--source", "sequence", "--json")
        return json.loads(said.splitlines()[-1])["data"]["snapshot"], seconds

    def restore(self, selector, target):
        shutil.rmtree(target, ignore_errors=True)
        return self("restore", selector, "--target", target)[1]

    def stored(self):
        return disk_bytes(self.folder / "repo")


def compare(repository, selector, wanted, place):
    repository.restore(selector, place / "restored")
    if not same_content(wanted, place / "restored"):
        raise SystemExit(f"{selector} is not what was backed up from {wanted}")
    shutil.rmtree(place / "restored")


def measure(name, arguments):
    """The rows of the table for one sequence."""
    make, is_replaced = SEQUENCES[name]
    place = arguments.work / name
    shutil.rmtree(place, ignore_errors=True)
    versions = place / "versions"
    versions.mkdir(parents=True)
    make(versions, arguments)
    for path in [*versions.rglob("*"), versions]:
        os.utime(path, (LONG_AGO, LONG_AGO))
    folders = sorted(versions.iterdir())
    logical, rows = disk_bytes(versions), []
    for manner in ["one by one", "at once"]:
        if manner == "at once" and len(folders) == 1:
            continue
        repository = Repository(arguments.ckpt, place / "repository")
        seconds, snapshots = backups(repository, manner, is_replaced, folders, place / "data")
        stored = repository.stored()
        repository("verify", "--read-data")
        check(repository, manner, is_replaced, snapshots, folders, versions, place)
        newest = f"{snapshots[-1]}:{folders[-1].name}" if manner == "at once" or not is_replaced else snapshots[-1]
        alone, ratio = restores(repository, newest, folders[-1], place, arguments)
        rows.append((name, manner, len(folders), logical, stored, seconds, alone, ratio))
    shutil.rmtree(place)
    return rows


def backups(repository, manner, is_replaced, folders, data):
    """Backs up, and leaves the versions where they were; seconds and ids of snapshots."""
    if manner == "at once":
        snapshot, seconds = repository.backup(folders[0].parent)
        return seconds, [snapshot]
    total, snapshots = 0, []
    if not is_replaced:
        data.mkdir()
    for folder in folders:
        # Under one path, or beside the versions so far, as a directory of checkpoints grows.
        here = data if is_replaced else data / folder.name
        folder.rename(here)
        os.utime(data, (LONG_AGO, LONG_AGO))
        snapshot, seconds = repository.backup(data)
        total += seconds
        snapshots.append(snapshot)
        if is_replaced:
            here.rename(folder)
    if not is_replaced:
        for folder in folders:
            (data / folder.name).rename(folder)
        data.rmdir()
    return total, snapshots


def check(repository, manner, is_replaced, snapshots, folders, versions, place):
    """Restores every snapshot; of those that grow, what is new in each, and the last one as a whole."""
    if manner == "at once":
        return compare(repository, snapshots[0], versions, place)
    for snapshot, folder in zip(snapshots, folders):
        compare(repository, snapshot if is_replaced else f"{snapshot}:{folder.name}", folder, place)
    if not is_replaced:
        compare(repository, snapshots[-1], versions, place)


def restores(repository, newest, folder, place, arguments):
    """Median seconds of the newest version from a repository without history, and how many times that with history."""
    alone = Repository(arguments.ckpt, place / "alone")
    snapshot, _ = alone.backup(folder)
    with_history, without = [], []
    for _ in range(arguments.rounds):
        without.append(alone.restore(snapshot, place / "restored"))
        with_history.append(repository.restore(newest, place / "restored"))
    base = statistics.median(without)
    return base, statistics.median(with_history) / base


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", type=pathlib.Path, required=True, help="directory for data, repositories and copies")
    parser.add_argument("--ckpt", type=pathlib.Path, default=ROOT / "target/release/ckpt", help="the ckpt program")
    parser.add_argument("--only", default=",".join(SEQUENCES), help="sequences, by name, separated by commas")
    parser.add_argument("--run", type=pathlib.Path, help="a directory of checkpoints, instead of a training of its own")
    parser.add_argument("--files", default="*", help="of --run, only files whose name matches: model.safetensors")
    parser.add_argument("--checkpoints", type=int, default=10, help="checkpoints of the training (default 10)")
    parser.add_argument("--steps", type=int, default=100, help="steps from one to the next (default 100)")
    parser.add_argument("--width", type=int, default=256, help="width of the model (default 256)")
    parser.add_argument("--layers", type=int, default=6, help="layers of the model (default 6)")
    parser.add_argument("--model-bytes", type=int, default=100_000_000, help="of the fine-tunes (default 10^8)")
    parser.add_argument("--megabytes", type=int, default=100, help="of each version of the rows (default 100)")
    parser.add_argument("--small-files", type=int, default=20_000, help="number of small files (default 20,000)")
    parser.add_argument("--rounds", type=int, default=3, help="restores that are timed (default 3)")
    arguments = parser.parse_args()
    arguments.ckpt = arguments.ckpt.resolve(strict=True)
    arguments.work = arguments.work.resolve()
    names = arguments.only.split(",")
    if unknown := set(names) - set(SEQUENCES):
        parser.error(f"no such sequences: {', '.join(sorted(unknown))}")
    rows = []
    for name in names:
        try:
            rows += measure(name, arguments)
        except NotRun as reason:
            print(f"NOT RUN: {name}: {reason}", flush=True)
    head = ["sequence", "backed up", "versions", "logical MB", "stored MB", "stored / logical", "backups s",
            "restore of the newest alone s", "with history x"]
    print("\n| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for name, manner, versions, logical, stored, seconds, alone, ratio in rows:
        print(f"| {name} | {manner} | {versions} | {logical / 1e6:.1f} | {stored / 1e6:.1f} | {stored / logical:.4f} "
              f"| {seconds:.2f} | {alone:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
