#!/usr/bin/env python3
"""`ckpt` on many small files, beside `cp -r`: seconds, processor time, stored bytes, memory.

    cargo build --release
    benches/small_files.py --make DIR --files 60000 [--from DIR ...]
    benches/small_files.py --data DIR --work DIR --runs 5 [--cold] [--ckpt PROGRAM ...]

`--make` gathers real files of this machine into DIR; the same sources give the same files. Every program takes its turn
in every round; the tables show medians. Restored files are compared with their source. What is measured, and how to read
it: docs/BENCHMARKS.md.

Python's standard library only; Linux.
"""

import argparse
import hashlib
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time

from compare import ROOT, disk_bytes, drop_from_cache, same_content, warm

# Longer files are not small.
BYTES_MAX = 128 << 10
# Files look as if they had been left alone since: what was just written counts as unsettled.
LONG_AGO = 1_600_000_000
PHASES = ["full", "again", "verify", "restore"]
KINDS = ["packs", "index", "parity"]
# A pack says at this place whether it holds lists of files (docs/FORMAT.md, Packs).
KIND_AT, KIND_TREE = 11, 1


# Making the files. ---------------------------------------------------------------------------------------------------


def default_sources():
    """Trees of text and code that most machines have; those that are missing are passed over."""
    home = pathlib.Path.home()
    python = pathlib.Path(sysconfig.get_paths()["stdlib"])
    places = [python, "/usr/include", home / ".cargo/registry/src", "/usr/share/doc", "/usr/lib/python3", "/usr/share"]
    return [pathlib.Path(place) for place in places]


def candidates(sources):
    """Paths of regular files, source by source, in the order of their names; none twice."""
    seen = set()
    for source in sources:
        for parent, folders, names in os.walk(source):
            folders.sort()
            for name in sorted(names):
                path = pathlib.Path(parent) / name
                if path not in seen and path.is_file() and not path.is_symlink() and 0 < path.stat().st_size <= BYTES_MAX:
                    seen.add(path)
                    yield path


def make(folder, count, sources, seed):
    """Copies `count` different files into `folder`, at their own paths; beyond what there is, edited copies of them."""
    folder.mkdir(parents=True)
    known, paths, total = set(), [], 0
    for path in candidates(sources):
        if len(paths) == count:
            break
        try:
            content = path.read_bytes()
        except OSError:
            continue
        digest = hashlib.sha256(content).digest()
        if digest not in known:
            known.add(digest)
            paths.append(path)
            total += write(folder / "0" / path.relative_to("/"), content)
    if not paths:
        return "no files were found to copy"
    dice = random.Random(seed)
    for number in range(len(paths), count):
        path = paths[number % len(paths)]
        content = edited(path.read_bytes(), dice, known)
        total += write(folder / str(number // len(paths)) / path.relative_to("/"), content)
    for parent, _, _ in os.walk(folder, topdown=False):
        os.utime(parent, (LONG_AGO, LONG_AGO))
    print(f"{folder}: {count} files, {total} bytes, {len(paths)} of them found")
    return None


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return len(content)


def edited(content, dice, known):
    """One line in ten is gone or stands twice. Where that gives a file that is there already, as for one of few lines, a line is added."""
    lines = content.splitlines(keepends=True)
    changes = [dice.random() for _ in lines]
    new = b"".join(line * (0 if c < 0.05 else 2 if c > 0.95 else 1) for line, c in zip(lines, changes)) or content
    while (digest := hashlib.sha256(new).digest()) in known:
        new += b"%016x\n" % dice.getrandbits(64)
    known.add(digest)
    return new


# Measuring. ----------------------------------------------------------------------------------------------------------


def run(command, env=None):
    """Runs a command to its end: wall-clock seconds, processor seconds, and its peak resident memory in bytes."""
    begin = time.monotonic()
    child = subprocess.Popen([*map(str, command)], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - begin
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: exit {child.returncode}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def rest(paths, is_cold):
    """Brings the disk to rest before a command is timed. Cold: what it will read is in no cache."""
    os.sync()
    if not is_cold:
        return
    for path in paths:
        drop_from_cache(path)
    try:
        # Names and inodes too, where that is permitted.
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        pass


def ckpt_round(program, data, place, arguments):
    """All phases of one program in a fresh place: by phase the seconds, processor seconds and memory."""
    repo, target = place / "repo", place / "restored"
    env = os.environ | {"CKPT_CACHE_DIR": str(place / "cache")}
    run([program, "init", "-r", repo], env)
    commands = {
        "full": ["backup", "-r", repo, data],
        "again": ["backup", "-r", repo, data],
        "verify": ["verify", "-r", repo, "--read-data"],
        "restore": ["restore", "-r", repo, "latest", "--target", target],
    }
    result = {}
    for phase in PHASES:
        rest([data, repo], arguments.cold)
        if phase in ("verify", "restore") and not arguments.cold:
            # What was written past the page cache is to be as warm as what was not: as in compare.py.
            warm(repo)
        result[phase] = run([program, *commands[phase]], env)
        if phase == "full":
            result["stored"] = {kind: disk_bytes(repo / kind) for kind in KINDS} | {"all": disk_bytes(repo)}
            result["stored"]["tree"] = tree_bytes(repo)
    if arguments.check and not same_content(data, target):
        raise SystemExit(f"{program}: the restored files differ from the source")
    return result


def tree_bytes(repo):
    """What the packs hold of lists of files: the packs of the second kind."""
    total = 0
    for path in (repo / "packs").rglob("*"):
        if path.is_file():
            with open(path, "rb") as pack:
                total += path.stat().st_size if pack.read(KIND_AT + 1)[KIND_AT] == KIND_TREE else 0
    return total


def cp_round(data, place, arguments):
    """A copy, and a copy that has reached the disk, each as a backup and as a restore would make it."""
    result = {}
    for phase, source, target in [("full", data, place / "copy"), ("restore", place / "copy", place / "back")]:
        rest([source], arguments.cold)
        copy = run(["cp", "-r", source, target])
        sync = run(["sync", "-f", target])
        result[phase] = tuple(map(sum, zip(copy[:2], sync[:2]))) + (copy[2],)
        result[phase + " without sync"] = copy
    return result


def figures(rounds, base):
    """A row of medians: seconds, and in brackets processor seconds."""
    cells = []
    for phase in PHASES:
        if phase not in rounds[0]:
            cells.append("")
            continue
        seconds, processor = (statistics.median(r[phase][i] for r in rounds) for i in (0, 1))
        against = f" {seconds / statistics.median(r[phase][0] for r in base):.2f} x" if phase in base[0] else ""
        cells.append(f"{seconds:.2f} ({processor:.2f}){against}")
    return cells


def measure(arguments):
    programs = [pathlib.Path(program).resolve(strict=True) for program in arguments.ckpt]
    data = arguments.data.resolve(strict=True)
    logical = disk_bytes(data)
    count = sum(len(names) for _, _, names in os.walk(data))
    print(f"{data}: {count} files, {logical} bytes; {'cold' if arguments.cold else 'warm'}; {os.cpu_count()} cores\n")
    results = {program: [] for program in [*programs, "cp -r + sync"]}
    places = []
    for number in range(arguments.runs):
        for program, rounds in results.items():
            # Nothing is deleted before the end: ext4 takes no inode that was freed in the last minutes, and looks at
            # each of them whenever a file is created.
            places.append(arguments.work / f"round-{number}-{len(places)}")
            place = places[-1]
            place.mkdir(parents=True)
            if not arguments.cold:
                warm(data)
            is_copy = isinstance(program, str)
            rounds.append(cp_round(data, place, arguments) if is_copy else ckpt_round(program, data, place, arguments))
        print(f"round {number + 1} of {arguments.runs} done", file=sys.stderr)
    for place in places:
        shutil.rmtree(place, ignore_errors=True)
    copies = results["cp -r + sync"]
    print("seconds (processor seconds), x cp -r + sync\n")
    print("| | " + " | ".join(PHASES) + " | peak MB |\n" + "|---" * (len(PHASES) + 2) + "|")
    for program, rounds in results.items():
        peak = max(statistics.median(r[p][2] for r in rounds) for p in PHASES if p in rounds[0])
        print(f"| {program} | " + " | ".join(figures(rounds, copies)) + f" | {peak / 1e6:.0f} |")
    without = [statistics.median(r[p + " without sync"][0] for r in copies) for p in ("full", "restore")]
    print(f"\ncp -r without sync: {without[0]:.2f} and {without[1]:.2f} s\n\nstored / logical after the first backup\n")
    print("| | all but parity | files' content | lists of files | index | parity |\n|---|---|---|---|---|---|")
    for program in programs:
        stored = results[program][-1]["stored"]
        parts = [stored["all"] - stored["parity"], stored["packs"] - stored["tree"], stored["tree"], stored["index"],
                 stored["parity"]]
        print(f"| {program} | " + " | ".join(f"{part / logical:.4f}" for part in parts) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--make", type=pathlib.Path, help="make the files in this directory, which must not exist")
    parser.add_argument("--files", type=int, default=60_000, help="how many (default 60,000)")
    parser.add_argument("--from", dest="sources", type=pathlib.Path, nargs="+", help="directories to take them from")
    parser.add_argument("--seed", type=int, default=1, help="seed of the edits (default 1)")
    parser.add_argument("--data", type=pathlib.Path, help="the files to measure with")
    parser.add_argument("--work", type=pathlib.Path, help="directory for repositories and copies, on the same disk")
    parser.add_argument("--runs", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--ckpt", action="append", help="the program, several to compare them")
    parser.add_argument("--cold", action="store_true", help="drop everything from the page cache before each command")
    parser.add_argument("--no-check", dest="check", action="store_false", help="do not compare restored files")
    arguments = parser.parse_args()
    arguments.ckpt = arguments.ckpt or [ROOT / "target/release/ckpt"]
    if arguments.make:
        return make(arguments.make, arguments.files, arguments.sources or default_sources(), arguments.seed)
    if not arguments.data or not arguments.work:
        parser.error("--make DIR, or --data DIR and --work DIR")
    return measure(arguments)


if __name__ == "__main__":
    sys.exit(main())
