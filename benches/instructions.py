#!/usr/bin/env python3
"""Instructions that the hot loops execute for each byte, held against those that are written down.

    benches/instructions.py                    counts and compares; exit 1 if a loop takes clearly more than it did
    benches/instructions.py --update           counts and writes benches/instructions.tsv
    benches/instructions.py --history OUT.svg  draws all versions of that file, from the history of the repository

Counts do not depend on what else the machine does, unlike times: valgrind executes the loops of `cargo bench --bench
budget` and counts. It knows no AVX-512, so these are the paths for processors with AVX2; on others nothing is compared. Another
compiler gives other counts: then only what is far above counts as a step back. A loop that became dearer on purpose, or cheaper, is written down by
`--update`, in the commit that changed it.

Python's standard library and valgrind; Linux on x86-64.
"""

import argparse
import json
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = ROOT / "benches" / "instructions.tsv"
# What a loop may take more before that counts as a step back. Counts repeat, but the compiler divides the code anew with every
# change anywhere, which has moved one by 4 %.
TOLERANCE = 0.06
# With another compiler than the one that the counts are of: what a loop loses that is no longer vectorised is more.
TOLERANCE_OF_OTHERS = 0.25
SET_MIB = 4
ROUNDS = (1, 2)


def output(*command):
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def build():
    """The program with the loops."""
    messages = output("cargo", "bench", "--bench", "budget", "--no-run", "--message-format", "json")
    artifacts = (json.loads(line) for line in messages.splitlines() if line.startswith("{"))
    built = [a["executable"] for a in artifacts if a.get("target", {}).get("name") == "budget" and a.get("executable")]
    return built[-1]


def count(program, stage):
    """Instructions for each byte of the source: the difference of two numbers of rounds, so that setting up cancels."""
    totals = []
    for rounds in ROUNDS:
        done = subprocess.run(
            ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", program,
             "--stage", stage, "--set", str(SET_MIB), "--rounds", str(rounds)],
            capture_output=True, text=True, check=True)
        totals.append(int(re.search(r"Collected : (\d+)", done.stderr).group(1)))
    return (totals[1] - totals[0]) / (ROUNDS[1] - ROUNDS[0]) / (SET_MIB << 20)


def compiler():
    return output("rustc", "--version").strip()


def parse(text):
    """The compiler, and each loop's count."""
    lines = [line for line in text.splitlines() if line]
    counts = dict(line.split("\t") for line in lines if not line.startswith("#"))
    return lines[0].removeprefix("# "), {name: float(value) for name, value in counts.items()}


def compare(counted):
    written_by, written = parse(TABLE.read_text())
    tolerance, worse = TOLERANCE, []
    if written_by != compiler():
        tolerance = TOLERANCE_OF_OTHERS
        print(f"instructions: counts are of {written_by}, this is {compiler()}: only what is {tolerance:.0%} above them fails")
    print(f"{'loop':<20} {'written':>10} {'counted':>10}")
    for name, value in counted.items():
        before = written.get(name)
        change = "new" if not before else f"{value / before - 1:+.1%}"
        print(f"{name:<20} {before or 0:>10.4f} {value:>10.4f} {change:>8}")
        if before is None or value > before * (1 + tolerance):
            worse.append(name)
    gone = sorted(set(written) - set(counted))
    if worse or gone:
        print(f"instructions: a step back in {', '.join(worse + gone)}: mend it, or `benches/instructions.py --update` and say why")
        return 1
    return 0


def history(out):
    """An SVG of all versions of the table, each loop as a share of its first count."""
    name = TABLE.relative_to(ROOT).as_posix()
    commits = output("git", "log", "--reverse", "--format=%h %cs", "--", name).split("\n")
    versions = []
    for line in filter(None, commits):
        commit, day = line.split()
        versions.append((f"{day} {commit}", parse(output("git", "show", f"{commit}:{name}"))[1]))
    if TABLE.exists() and (not versions or versions[-1][1] != parse(TABLE.read_text())[1]):
        versions.append(("now", parse(TABLE.read_text())[1]))
    loops = sorted({loop for _, counts in versions for loop in counts})
    first = {loop: next(c[loop] for _, c in versions if loop in c) for loop in loops}
    step, height, left = 90, 300, 60
    width = left + step * max(1, len(versions) - 1) + 220
    top = max([1.1] + [c[loop] / first[loop] for _, c in versions for loop in c])
    y = lambda share: height - (height - 30) * share / top
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height + 70}" font-family="sans-serif" font-size="11">',
             f'<rect width="{width}" height="{height + 70}" fill="white"/>',
             f'<text x="{left}" y="15">instructions for each byte, as a share of the first count</text>']
    for share in (0, 0.5, 1):
        parts.append(f'<line x1="{left}" x2="{width - 220}" y1="{y(share)}" y2="{y(share)}" stroke="#ddd"/>'
                     f'<text x="{left - 28}" y="{y(share) + 4}">{share:g}</text>')
    for at, (label, _) in enumerate(versions):
        x = left + step * at
        parts.append(f'<text transform="translate({x},{height + 12}) rotate(30)">{label}</text>')
    ends = []
    for number, loop in enumerate(loops):
        colour = f"hsl({number * 360 // len(loops)},70%,40%)"
        points = [(left + step * at, y(c[loop] / first[loop])) for at, (_, c) in enumerate(versions) if loop in c]
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{" ".join(f"{x:.0f},{v:.1f}" for x, v in points)}"/>')
        parts += [f'<circle cx="{x:.0f}" cy="{v:.1f}" r="2.5" fill="{colour}"/>' for x, v in points]
        ends.append((points[-1][1], loop, colour))
    # Labels beside the last points, none over another.
    last = 0
    for value, loop, colour in sorted(ends):
        last = max(value, last + 13)
        parts.append(f'<text x="{width - 210}" y="{last + 4:.1f}" fill="{colour}">{loop}</text>')
    pathlib.Path(out).write_text("\n".join(parts + ["</svg>"]) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--history", metavar="OUT.svg")
    arguments = parser.parse_args()
    if arguments.history:
        return history(arguments.history)
    if not shutil.which("valgrind"):
        return print("NOT RUN: instructions: valgrind is not installed")
    if "avx2" not in pathlib.Path("/proc/cpuinfo").read_text():
        return print("NOT RUN: instructions: this processor has no AVX2")
    program = build()
    counted = {stage: count(program, stage) for stage in output(program, "--list").split()}
    if not arguments.update:
        return compare(counted)
    lines = [f"# {compiler()}", "# instructions for each byte of the source, AVX2"]
    TABLE.write_text("\n".join(lines + [f"{name}\t{value:.4f}" for name, value in counted.items()]) + "\n")
    print(TABLE.read_text(), end="")


if __name__ == "__main__":
    sys.exit(main())
