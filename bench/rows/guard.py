"""Has the link become slower? Beside two relays that only copy, on whatever machine: ratios, with generous bounds.

A machine twice as fast makes both twice as fast, and a noisy one disturbs both. A bound is about half of what was
reached when it was set, so that it fails for what somebody did and not for what else the machine was doing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from given import Bench
from net import Space, Stage
from peers import Copied, Ours
from rows.link import Figure, measured
from table import Goal, Row

FIGURES = (
    Figure("rps64", "requests, 64 connections", "1/s", Goal(at_least_times=0.4)),
    Figure("down8", "bulk down, 8 streams", "MB/s", Goal(at_least_times=0.25)),
    Figure("up8", "bulk up, 8 streams", "MB/s", Goal(at_least_times=0.25)),
    Figure("cpu", "CPU of both ends, all bulk", "s/GB", Goal(at_most_times=5), lower=True),
    Figure("beside8_p99", "echo beside 8 bulk streams, p99", "µs", Goal(at_most_times=1), lower=True),
)


def rows(bench: Bench) -> Iterator[Row]:
    """Ours without TLS, as the relays have none."""
    ours, copied = Ours(bench, False), Copied(bench)
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with Space("guard") as space:
        for repetition in range(bench.repetitions):
            for peer in (copied, ours):
                bench.wait_quiet()
                folder = bench.folder / f"{repetition}-{peer.name}".replace(" ", "-")
                with Stage(folder, space) as stage:
                    found = measured(bench, stage, peer, {figure.key for figure in FIGURES})
                for key, value in found.items():
                    values[key][peer.name].append(value)
                told = " ".join(f"{key}={value:.4g}" for key, value in found.items())
                bench.say(f"{repetition + 1} {peer.name}: {told}")
    for figure in FIGURES:
        of = values[figure.key]
        yield Row(
            f"guard: {figure.name}",
            figure.unit,
            of[ours.name],
            {copied.name: of[copied.name]},
            lower_is_better=figure.lower,
            goal=figure.goal,
        )
