#!/usr/bin/env python3
"""How much a backup slows what runs beside it.

    cargo build --release
    benches/neighbours.py --data DIR --work WORK [--seconds 10] [--rounds 3]

Two neighbours run all the time: one process for each processor that hashes memory, and one that reads a file of its own in
WORK (1 GiB, made once) past the page cache, 1 MiB at random places at a time, as a loader of training data does. What they
get done in a while is counted alone, and beside backups of DIR into new repositories, one after another, with different
options; all in turns, medians. DIR is dropped from the page cache before each backup. A third row of figures is the share of
a second file (256 MiB, read before) that is still in the page cache afterwards. Python 3.9 or newer, Linux, no packages.
"""

import argparse
import hashlib
import mmap
import multiprocessing
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import time

OPTIONS = {
    "alone": None,
    "backup": [],
    "backup --background": ["--background"],
    "backup --threads 1": ["--threads", "1"],
    "backup --background --threads 1 --limit-read 200M": ["--background", "--threads", "1", "--limit-read", "200M"],
}
MIB = 1 << 20


def compute(until, counted):
    memory, hashed = b"x" * MIB, 0
    while time.monotonic() < until:
        hashlib.sha256(memory).digest()
        hashed += 1
    counted.put(("compute", hashed))


def load(path, until, counted):
    chance, read = random.Random(1), 0
    file, memory = os.open(path, os.O_RDONLY | os.O_DIRECT), mmap.mmap(-1, MIB)
    blocks = os.fstat(file).st_size // MIB
    while time.monotonic() < until:
        os.preadv(file, [memory], chance.randrange(blocks) * MIB)
        read += 1
    counted.put(("load", read))


def make(path, mebibytes):
    if not path.exists() or path.stat().st_size != mebibytes * MIB:
        with open(path, "wb") as file:
            for _ in range(mebibytes):
                file.write(os.urandom(MIB))
            os.fsync(file.fileno())


def cached_share(path):
    """Of one page in each MiB, asked without reading ahead."""
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    places, cached = range(0, os.fstat(file).st_size, MIB), 0
    for place in places:
        try:
            cached += os.preadv(file, [bytearray(1)], place, os.RWF_NOWAIT)
        except BlockingIOError:
            pass
    os.close(file)
    return cached / len(places)


def drop(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def measure(arguments, ckpt, extra):
    work = arguments.work
    repository, cache = work / "repository", work / "cache"
    environment = dict(os.environ, CKPT_REPO=str(repository), CKPT_CACHE_DIR=str(cache))
    counted, until = multiprocessing.Queue(), time.monotonic() + arguments.seconds
    neighbours = [multiprocessing.Process(target=compute, args=(until, counted)) for _ in range(os.cpu_count())]
    neighbours.append(multiprocessing.Process(target=load, args=(work / "load", until, counted)))
    (work / "hot").read_bytes()
    [neighbour.start() for neighbour in neighbours]
    moved = 0
    while time.monotonic() < until and extra is not None:
        shutil.rmtree(repository, ignore_errors=True)
        shutil.rmtree(cache, ignore_errors=True)
        drop(arguments.data)
        subprocess.run([ckpt, "init"], env=environment, check=True, stderr=subprocess.DEVNULL)
        command = [ckpt, "backup", arguments.data, "--settle", "0", *extra]
        backup = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            backup.wait(max(0, until - time.monotonic()))
            moved += 1
        except subprocess.TimeoutExpired:
            backup.kill()
            backup.wait()
    done = {"compute": 0, "load": 0}
    for _ in neighbours:
        kind, count = counted.get()
        done[kind] += count
    [neighbour.join() for neighbour in neighbours]
    return done["compute"] / arguments.seconds, done["load"] / arguments.seconds, cached_share(work / "hot"), moved


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ckpt", default="target/release/ckpt")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    ckpt = str(pathlib.Path(arguments.ckpt).absolute())
    make(arguments.work / "load", 1024)
    make(arguments.work / "hot", 256)
    rounds = {name: [] for name in OPTIONS}
    for _ in range(arguments.rounds):
        for name, extra in OPTIONS.items():
            rounds[name].append(measure(arguments, ckpt, extra))
    alone = [statistics.median(column) for column in zip(*rounds["alone"])]
    print("| beside | computing | reading, MiB/s | hot file in the cache | backups done |")
    print("|---|---|---|---|---|")
    for name, results in rounds.items():
        compute_rate, load_rate, hot, moved = (statistics.median(column) for column in zip(*results))
        print(f"| {name} | {compute_rate / alone[0]:.2f} | {load_rate:.0f} ({load_rate / alone[1]:.2f}) | {hot:.2f} | {moved:g} |")
    shutil.rmtree(arguments.work / "repository", ignore_errors=True)
    shutil.rmtree(arguments.work / "cache", ignore_errors=True)


if __name__ == "__main__":
    main()
