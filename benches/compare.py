#!/usr/bin/env python3
"""End-to-end comparison of `ckpt` with other backup programs, `cp -r` beside them.

Every program that is found takes its turn in every round (tool after tool, in another order each round), so that a
disturbance of the machine hits all alike; the table shows medians. A program that fails is shown as failed and the
others go on. What is measured and how to read it: docs/BENCHMARKS.md.

    cargo build --release
    benches/compare.py --data synthetic:4G --work /tmp/compare --runs 5

Python's standard library only; Linux.
"""

import argparse
import filecmp
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import time

PHASES = ["backup", "again", "verify", "restore"]
ROOT = pathlib.Path(__file__).resolve().parent.parent
PASSWORD = "comparison"


class Failed(Exception):
    """A command ended with an error; its text says which, and the last lines of its output."""


def run(command, env, log, cwd=None):
    """Runs a command to its end: wall-clock seconds and its peak resident memory in bytes (all its children's)."""
    log.write(("$ " + " ".join(map(str, command)) + "\n").encode())
    log.flush()
    begin = time.monotonic()
    child = subprocess.Popen(
        list(map(str, command)), env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=cwd
    )
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - begin
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))}: exit {child.returncode}, see {log.name}")
    return seconds, usage.ru_maxrss * 1024


class Tool:
    """One program: how it is prepared, and the command for each phase (None: it has no such phase)."""

    name = ""

    def __init__(self, program):
        self.program = program

    def version(self):
        reply = subprocess.run([self.program, "--version"], capture_output=True, text=True, check=False)
        lines = (reply.stdout or reply.stderr).strip().splitlines()
        return lines[0] if lines else "unknown version"

    def env(self, place):
        """What the program needs in its environment; caches go to `place`, fresh in each round."""
        return {"XDG_CACHE_HOME": place / "cache", "HOME": place / "home"}

    def init(self, repo):
        return None

    def backup(self, repo, data):
        raise NotImplementedError

    def again(self, repo, data):
        return self.backup(repo, data)

    def verify(self, repo):
        return None

    def restore(self, repo, data, target):
        """The command, and the directory it is run in (None: any)."""
        raise NotImplementedError

    def restored(self, target, data):
        """Where the restored copy of `data` stands."""
        return target / data.relative_to("/")


class Ckpt(Tool):
    name = "ckpt"

    def env(self, place):
        return super().env(place) | {"CKPT_CACHE_DIR": place / "cache"}

    def init(self, repo):
        return [self.program, "init", "-r", repo]

    def backup(self, repo, data):
        return [self.program, "backup", "-r", repo, data]

    def verify(self, repo):
        return [self.program, "verify", "-r", repo, "--read-data"]

    def restored(self, target, data):
        return target

    def restore(self, repo, data, target):
        return [self.program, "restore", "-r", repo, "latest", "--target", target], None


class Sealed(Ckpt):
    """The same with an encrypted repository and an admin key of usual cost; its ratio to `ckpt` is what sealing costs."""

    name = "sealed ckpt"

    def env(self, place):
        return super().env(place) | {"CKPT_KEY_FILE": place / "admin.key"}

    def init(self, repo):
        # The key of the environment is the one that is made.
        return ["env", "-u", "CKPT_KEY_FILE", self.program, "init", "-r", repo, "--encrypt", "--generate",
                repo.parent / "admin.key"]


class Bare(Ckpt):
    """The same without parity: the ratio of `ckpt` to it is what parity costs."""

    name = "bare ckpt"

    def init(self, repo):
        return super().init(repo) + ["--parity", "none"]


class Copy(Tool):
    name = "cp + sync"

    def backup(self, repo, data):
        # A copy is comparable to a durable backup only once it has reached the disk.
        return ["sh", "-c", 'mkdir -p "$1" && cp -r "$0" "$1/copy.new" && sync -f "$1" && '
                'rm -rf "$1/copy" && mv "$1/copy.new" "$1/copy"', data, repo]

    def restore(self, repo, data, target):
        return ["sh", "-c", 'cp -r "$0/copy" "$1/copy" && sync -f "$1"', repo, target], None

    def restored(self, target, data):
        return target / "copy"


class Restic(Tool):
    name = "restic"

    def version(self):
        return subprocess.run([self.program, "version"], capture_output=True, text=True, check=False).stdout.strip()

    def env(self, place):
        return super().env(place) | {"RESTIC_PASSWORD": PASSWORD}

    def init(self, repo):
        return [self.program, "init", "-r", repo]

    def backup(self, repo, data):
        return [self.program, "backup", "-q", "-r", repo, data]

    def verify(self, repo):
        return [self.program, "check", "-r", repo, "--read-data"]

    def restore(self, repo, data, target):
        return [self.program, "restore", "-q", "-r", repo, "latest", "--target", target], None


class Rustic(Tool):
    name = "rustic"

    def env(self, place):
        return super().env(place) | {"RUSTIC_PASSWORD": PASSWORD, "RUSTIC_NO_PROGRESS": "true"}

    def init(self, repo):
        return [self.program, "init", "-r", repo]

    def backup(self, repo, data):
        return [self.program, "backup", "-r", repo, data]

    def verify(self, repo):
        return [self.program, "check", "-r", repo, "--read-data"]

    def restore(self, repo, data, target):
        return [self.program, "restore", "-r", repo, "latest", target], None


class Borg(Tool):
    name = "borg"

    def __init__(self, program):
        super().__init__(program)
        self.archives = 0

    def env(self, place):
        return super().env(place) | {
            "BORG_BASE_DIR": place / "borg",
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }

    def init(self, repo):
        return [self.program, "init", "-e", "none", repo]

    def backup(self, repo, data):
        self.archives += 1
        return [self.program, "create", f"{repo}::archive-{self.archives}", data]

    def verify(self, repo):
        return [self.program, "check", "--verify-data", repo]

    def restore(self, repo, data, target):
        return [self.program, "extract", f"{repo}::archive-{self.archives}"], target


class Bupstash(Tool):
    name = "bupstash"

    def __init__(self, program):
        super().__init__(program)
        self.items = 0

    def env(self, place):
        return super().env(place) | {
            "BUPSTASH_KEY": place / "key",
            "BUPSTASH_SEND_LOG": place / "send-log",
            "BUPSTASH_QUERY_CACHE": place / "query-cache",
        }

    def init(self, repo):
        key = repo.parent / "key"
        return ["sh", "-c", '"$0" new-key -o "$1" && "$0" init -r "$2"', self.program, key, repo]

    def backup(self, repo, data):
        self.items += 1
        return [self.program, "put", "-q", "-r", repo, f"name=data-{self.items}", data]

    def restore(self, repo, data, target):
        return [self.program, "restore", "-q", "-r", repo, "--into", target, f"name=data-{self.items}"], None

    def restored(self, target, data):
        return target


def find_tools(arguments):
    """The programs to compare, `ckpt` first."""
    tools = []
    if pathlib.Path(arguments.ckpt).is_file():
        tools += [kind(str(pathlib.Path(arguments.ckpt).resolve())) for kind in (Ckpt, Sealed, Bare)]
    else:
        print(f"{arguments.ckpt} is not there: build it, or name it with --ckpt", file=sys.stderr)
    tools.append(Copy("cp"))
    for kind in [Restic, Rustic, Borg, Bupstash]:
        program = shutil.which(kind.name)
        if program:
            tools.append(kind(program))
    wanted = arguments.tools.split(",") if arguments.tools else None
    return [tool for tool in tools if wanted is None or tool.name.split()[0] in wanted]


def disk_bytes(path):
    """The lengths of all files below `path`, summed."""
    return sum(
        (pathlib.Path(parent) / name).lstat().st_size for parent, _, names in os.walk(path) for name in names
    )


def drop_from_cache(path):
    """Drops every file below `path` from the page cache, as far as it is clean."""
    for parent, _, names in os.walk(path):
        for name in names:
            file = pathlib.Path(parent) / name
            if file.is_file() and not file.is_symlink():
                with open(file, "rb") as handle:
                    os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(path):
    """Reads every file below `path` once."""
    for parent, _, names in os.walk(path):
        for name in names:
            file = pathlib.Path(parent) / name
            if file.is_file():
                with open(file, "rb", buffering=0) as handle:
                    while handle.read(1 << 22):
                        pass


def rest():
    """Waits until no disk has done anything for half a second, or half a minute is over: what was deleted is given back to a
    disk long after the deletion has returned, and would be paid for by whoever comes next."""
    os.sync()
    before = None
    for _ in range(60):
        now = pathlib.Path("/proc/diskstats").read_text()
        if now == before:
            return
        before = now
        time.sleep(0.5)


def same_content(one, other):
    """True if both directories hold the same files with the same bytes."""
    names = [sorted(str(p.relative_to(d)) for p in d.rglob("*") if p.is_file()) for d in (one, other)]
    return names[0] == names[1] and all(filecmp.cmp(one / n, other / n, shallow=False) for n in names[0])


def one_round(tool, arguments, data, place, log):
    """All phases of one program in a fresh place: seconds by phase, stored bytes, peak memory in bytes."""
    repo, target = place / "repo", place / "restored"
    env = os.environ | {name: str(value) for name, value in tool.env(place).items()}
    for path in [place / "home", place / "cache", target]:
        path.mkdir(parents=True)
    result, peak = {}, 0
    init = tool.init(repo)
    if init:
        run(init, env, log)
    for phase in PHASES:
        cwd = None
        if phase == "restore":
            command, cwd = tool.restore(repo, data, target)
        else:
            command = tool.verify(repo) if phase == "verify" else getattr(tool, phase)(repo, data)
        if command is None:
            continue
        rest()
        if arguments.cold:
            drop_from_cache(data)
            drop_from_cache(repo)
        else:
            # Some programs write past the page cache: warm is to mean the same for all.
            warm(repo if phase in ("verify", "restore") else data)
        result[phase], memory = run(command, env, log, cwd)
        peak = max(peak, memory)
        if phase == "again":
            result["stored"] = disk_bytes(repo)
    if arguments.check and not same_content(data, tool.restored(target, data)):
        raise Failed(f"{tool.name}: the restored data differs from the source")
    result["memory"] = peak
    return result


def prepare_data(arguments):
    """The directory to back up; a synthetic one is generated once and kept in the work directory."""
    if not arguments.data.startswith("synthetic:"):
        return pathlib.Path(arguments.data).resolve(strict=True)
    size = arguments.data.removeprefix("synthetic:")
    directory = arguments.work / f"synthetic-{size}-seed-{arguments.seed}"
    if not directory.is_dir():
        part = directory.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        command = ["cargo", "bench", "-q", "--bench", "limit", "--", "--generate", part, "--bytes", size]
        subprocess.run([*map(str, command), "--seed", str(arguments.seed)], cwd=ROOT, check=True)
        part.rename(directory)
    return directory


def seconds_and_ratio(value, base):
    """`12.3 (1.50)`: seconds, and how many times those of ckpt."""
    if value is None:
        return "none"
    ratio = f" ({value / base:.2f})" if base else ""
    return f"{value:.2f}{ratio}"


def table(tools, results, logical):
    """The medians as a Markdown table."""
    median = {
        tool.name: {key: statistics.median(r[key] for r in results[tool.name]) for key in results[tool.name][0]}
        for tool in tools
        if results[tool.name]
    }
    base = median.get("ckpt", {})
    lines = ["| | " + " | ".join(PHASES) + " | stored | peak MB | runs |", "|---" * (len(PHASES) + 4) + "|"]
    for tool in tools:
        row = median.get(tool.name)
        if row is None:
            lines.append(f"| {tool.name} | failed |" + " |" * (len(PHASES) + 2))
            continue
        cells = [seconds_and_ratio(row.get(phase), base.get(phase)) for phase in PHASES]
        cells += [f"{row['stored'] / logical:.4f}", f"{row['memory'] / 1e6:.0f}", str(len(results[tool.name]))]
        lines.append(f"| {tool.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", default="synthetic:4G", help="a directory, or synthetic:SIZE (K, M, G)")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="directory for repositories and copies")
    parser.add_argument("--runs", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the synthetic data (default 1)")
    parser.add_argument("--ckpt", default=str(ROOT / "target/release/ckpt"), help="the ckpt program")
    parser.add_argument("--tools", help="only these, separated by commas: ckpt,sealed,bare,cp,restic,rustic,borg,bupstash")
    parser.add_argument("--cold", action="store_true", help="drop data and repository from the page cache before each phase; without it both are read into it before what reads them")
    parser.add_argument("--no-check", dest="check", action="store_false", help="do not compare restored data")
    arguments = parser.parse_args()
    arguments.work = arguments.work.resolve()
    arguments.work.mkdir(parents=True, exist_ok=True)
    data = prepare_data(arguments)
    tools = find_tools(arguments)
    if not tools:
        return "no program to measure"
    logical = disk_bytes(data)
    print(f"{data}: {logical} bytes; {'cold' if arguments.cold else 'warm'} page cache; {os.cpu_count()} cores")
    for tool in tools:
        print(f"  {tool.name}: {tool.version()}")
    results = {tool.name: [] for tool in tools}
    failed = set()
    for number in range(arguments.runs):
        # In another order each time: what a program leaves to the disk falls on the next. The same orders in every run.
        for tool in random.Random(number).sample(tools, len(tools)):
            if tool.name in failed:
                continue
            place = arguments.work / "round"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            with open(arguments.work / f"{tool.name.split()[0]}.log", "ab") as log:
                try:
                    results[tool.name].append(one_round(tool, arguments, data, place, log))
                    latest = results[tool.name][-1]
                    seconds = [f"{phase} {latest[phase]:.2f}" for phase in PHASES if phase in latest]
                    print(f"  {tool.name}: {', '.join(seconds)}", file=sys.stderr)
                except Failed as failure:
                    print(f"  {failure}", file=sys.stderr)
                    failed.add(tool.name)
            shutil.rmtree(place, ignore_errors=True)
        print(f"round {number + 1} of {arguments.runs} done", file=sys.stderr)
    print("\n" + table(tools, results, logical))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
