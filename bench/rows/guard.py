"""Has the link become slower? Beside two relays that only copy, on whatever machine: ratios, with generous bounds.

A machine twice as fast makes both twice as fast, and a noisy one disturbs both. A bound is about half of what was
reached when it was set, so that it fails for what somebody did and not for what else the machine was doing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from given import Bench
from net import Space, Stage
from peers import Copied, Ours, Peer
from rows.link import Figure, measured
from table import Goal, Row
from turns import in_turn

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
    wanted = {figure.key for figure in FIGURES}
    with Space("guard") as space:

        def measure(peer: Peer, folder: Path, _: int) -> dict[str, float]:
            with Stage(folder, space) as stage:
                return measured(bench, stage, peer, wanted)

        values = in_turn(bench, "guard", [copied, ours], [copied, ours], {}, measure)
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
