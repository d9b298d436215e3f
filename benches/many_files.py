#!/usr/bin/env python3
"""Makes very many tiny files, and measures what a snapshot of them costs.

    benches/many_files.py --work DIR [--files 1000000] [--ckpt target/release/ckpt]

In DIR it makes `files/` with the files (1,000 in a folder, 2 to 32 bytes each; kept from run to run, as `files.done` says), a repository and a
cache, and prints for each command wall-clock and processor seconds, the largest resident memory, and for `ls` the time
to the first line. `find -printf` over the same files, with as many questions about each, stands beside the unchanged
backup. Everything but the result can be deleted afterwards. Python 3.9 or newer, no packages.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import time


def make(folder, count):
    """The files; their names and contents follow from their numbers."""
    # Beside them: what stands among them is backed up.
    done = folder.with_name("files.done")
    if done.exists() and done.read_text() == str(count):
        return
    done.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    for first in range(0, count, 1000):
        inner = folder / f"{first // 100000:03}" / f"{first // 1000:06}"
        inner.mkdir(parents=True)
        for number in range(first, min(first + 1000, count)):
            (inner / f"sample-{number:08}.txt").write_bytes(b"%d " % number * (1 + number % 4))
    done.write_text(str(count))


def run(label, command, environment, first_line=False):
    began = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    first = process.stdout.read(1)
    until_first = time.monotonic() - began
    lines = first.count(b"\n")
    while block := process.stdout.read(1 << 20):
        lines += block.count(b"\n")
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    note = f"first output after {until_first:.3f} s" if first_line else ""
    print(f"| {label} | {wall:.2f} | {usage.ru_utime:.2f} + {usage.ru_stime:.2f} | {usage.ru_maxrss // 1024} | {lines} | {note} |", flush=True)
    if process.returncode != 0:
        raise SystemExit(f"{command} ended with {process.returncode}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--ckpt", default="target/release/ckpt")
    parser.add_argument("--rounds", type=int, default=2, help="of the unchanged backup and find, in turns")
    options = parser.parse_args()
    work = options.work.absolute()
    files, ckpt = work / "files", str(pathlib.Path(options.ckpt).absolute())
    make(files, options.files)
    environment = dict(os.environ, CKPT_REPO=str(work / "repository"), CKPT_CACHE_DIR=str(work / "cache"))
    shutil.rmtree(work / "repository", ignore_errors=True)
    shutil.rmtree(work / "cache", ignore_errors=True)
    last = options.files - 1
    place = f"{last // 100000:03}/{last // 1000:06}"
    name = f"{place}/sample-{last:08}.txt"
    print("| command | s | s of processors | MiB | lines | |")
    print("|---|---|---|---|---|---|")
    run("init", [ckpt, "init"], environment)
    run("first backup", [ckpt, "backup", files], environment)
    for _ in range(options.rounds):
        run("unchanged backup", [ckpt, "backup", files], environment)
        run("find -printf", ["find", files, "-printf", "%i %s %T@ %C@ %m %U %G %n %P\\n"], environment)
    run("snapshots", [ckpt, "snapshots"], environment)
    run("ls -R", [ckpt, "ls", "-R", "latest"], environment, first_line=True)
    run("ls of the last folder", [ckpt, "ls", f"latest:{place}"], environment, first_line=True)
    run("dump of the last file", [ckpt, "dump", "latest", name], environment, first_line=True)
    run("find by name", [ckpt, "find", f"sample-{last:08}.txt", "--snapshot", "latest"], environment)
    run("verify", [ckpt, "verify"], environment)
    target = work / "restored"
    shutil.rmtree(target, ignore_errors=True)
    run("restore of one folder", [ckpt, "restore", f"latest:{place}", "--target", target], environment)
    shutil.rmtree(target, ignore_errors=True)


if __name__ == "__main__":
    main()
