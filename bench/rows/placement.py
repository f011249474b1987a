"""How long a decision takes with a thousand sites and ten thousand runs that wait, and what the service holds for them.

The service's own life cycle with its store on disk; only the batch systems are made of memory. In the worst shape none
but the last site fits and everybody waits there.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

from given import Bench
from net import Failed
from table import NO_GOAL, Goal, Row

SITES, RUNS = 1000, 10_000
WITHIN_S = 600
SHAPES = {"all": "every site fits", "last": "the last site alone fits"}
#: Key, what it is, unit, goal, how much of the unit is one of what is told.
FIGURES: tuple[tuple[str, str, str, Goal, float], ...] = (
    ("decision_us", "a decision, p50", "µs", Goal(at_most=1000), 1),
    ("decision_p99_us", "a decision, p99", "µs", NO_GOAL, 1),
    ("ranking_us", "of it, ranking the sites", "µs", NO_GOAL, 1),
    ("start_us", "a start until it is written down", "µs", NO_GOAL, 1),
    ("holds_kb", "memory for each waiting run", "kB", Goal(at_most=100), 1.024 / RUNS),
)


def rows(bench: Bench) -> Iterator[Row]:
    values: dict[tuple[str, str], list[float]] = {}
    for repetition in range(bench.repetitions):
        for shape in SHAPES:
            bench.wait_quiet()
            told = measured(bench, repetition, shape)
            bench.say(f"{repetition + 1} {shape}: " + " ".join(f"{key}={value:.4g}" for key, value in told.items()))
            for key, value in told.items():
                values.setdefault((shape, key), []).append(value)
    for shape, words in SHAPES.items():
        for key, name, unit, goal, scale in FIGURES:
            yield Row(
                f"placement, {words}: {name}",
                unit,
                [value * scale for value in values[shape, key]],
                lower_is_better=True,
                goal=goal,
                remark=f"{SITES} sites, {RUNS} runs that wait" if key == "decision_us" else "",
            )


def measured(bench: Bench, repetition: int, shape: str) -> dict[str, float]:
    folder = bench.folder / f"{repetition}-{shape}"
    folder.mkdir(mode=0o700)
    argv = [bench.place, "--folder", folder, "--sites", SITES, "--runs", RUNS, "--shape", shape]
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=WITHIN_S)
    if done.returncode != 0:
        raise Failed(f"placing: {done.stderr.strip()[:500]}")
    told: dict[str, float] = json.loads(done.stdout)
    return told
