"""Where the link's time goes: a flame graph of both its ends for each load, beside the results.

make bench-flame

Sampled by perf, drawn by inferno. Widths are shares of the CPU that home and agent spend, kernel included.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import install
from aim import Load
from given import Bench
from net import Failed, Space, Stage, need_root
from peers import Ours
from rows.link import BULK_BYTES
from table import RESULTS

INFERNO = "0.12.8"
#: Samples a second, odd so that no timer keeps step with them, and what of each stack is kept.
HERTZ, STACK_BYTES = 197, 16_384
FOR_S = 3
#: What is narrower than this part of the picture, in percent, is not drawn: the files are kept with the source.
LEAST_PERCENT = 0.4
LOADS: dict[str, tuple[object, ...]] = {
    "requests": ("requests", "--conns", 64, "--seconds", FOR_S),
    "bulk": ("bulk", "--streams", 8, "--bytes", FOR_S * BULK_BYTES),
}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--programs", type=Path, default=Bench.programs, help="where the programs of the release are")
    args = asked.parse_args()
    need_root()
    perf = install.debian("perf", "linux-perf")
    collapse = install.crate("inferno", INFERNO, "inferno-collapse-perf")
    with tempfile.TemporaryDirectory(prefix="gp-bench.", dir="/tmp") as folder, Space("flame") as space:
        bench = Bench(1, Path(folder), args.programs)
        for tls in (True, False):
            for load, words in LOADS.items():
                name = f"{load}-{'tls' if tls else 'plain'}"
                stacks = sampled(bench, space, tls, words, perf, Path(folder) / name)
                draw(collapse, stacks, f"glidepath: {load}, {'TLS' if tls else 'plain'}", f"flame-{name}.svg")


def sampled(bench: Bench, space: Space, tls: bool, words: Sequence[object], perf: Path, folder: Path) -> Path:
    """The stacks of both ends of our link while this load runs."""
    with Stage(folder, space) as stage:
        stage.start("origin", [bench.program, "origin"])
        ours = Ours(bench, tls)
        ours.up(stage)
        pids = ",".join(map(str, stage.pids("home", "agent")))
        raw = folder / "perf.data"
        argv = [perf, "record", "--quiet", "--output", raw, "--freq", HERTZ, "--call-graph", f"dwarf,{STACK_BYTES}"]
        recorder = subprocess.Popen([str(word) for word in (*argv, "--pid", pids)])
        try:
            Load(bench.program, stage.home, ours.port).told(*map(str, words))
        finally:
            recorder.terminate()
            recorder.wait(30)
        stacks = folder / "stacks"
        with stacks.open("w") as to:
            if subprocess.run([perf, "script", "--input", raw], stdout=to, timeout=300).returncode != 0:
                raise Failed("perf script failed")
    return stacks


def draw(collapse: Path, stacks: Path, title: str, name: str) -> None:
    folded = subprocess.run([collapse, stacks], capture_output=True, check=True, timeout=120).stdout
    look = ["--title", title, "--minwidth", LEAST_PERCENT, "--hash", "--truncate-text-right"]
    command = [str(word) for word in (collapse.with_name("inferno-flamegraph"), *look)]
    picture = subprocess.run(command, input=folded, capture_output=True, check=True, timeout=120).stdout
    (RESULTS.parent / name).write_bytes(picture)
    print(f"{RESULTS.parent / name}: {len(picture) // 1024} KiB", flush=True)


if __name__ == "__main__":
    main()
