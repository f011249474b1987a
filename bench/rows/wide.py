"""A link across a wide area beside the tunnels that a user would pick instead: an emulated line of 200 Mbit/s between
two namespaces, near and far, whole and with loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aim import Load
from given import Bench
from line import FAR, HOME, Line, Nature
from net import ORIGIN, Stage
from peers import Chisel, Direct, Ours, Peer, Rathole, Ssh, Wstunnel, installed
from table import NO_GOAL, Goal, Row
from turns import in_turn

#: Congestion control of all, as a route asks for it: what most machines at a site have.
NATURES = (
    Nature(rtt_ms=20),
    Nature(rtt_ms=20, loss_percent=0.3),
    Nature(rtt_ms=100),
    Nature(rtt_ms=100, loss_percent=0.3),
)
#: WebSockets that echo, each with one message under way, and microseconds between two messages, give or take half.
ECHOES, PACE_US = 4, 20_000
#: Before bulk counts: TCP needs so many round trips to find out what the line can do, and then some time.
LEAD_S, LEAD_ROUNDS = 1, 20
FRESH_S, ALONE_S, BESIDE1_S, BESIDE8_S = 2, 2, 3, 4
#: Of all streams of the transfer that is taken to its end.
WHOLE_BYTES = 1 << 20


@dataclass(frozen=True)
class Figure:
    """One row of each line: what it is called in `measured`, and for people."""

    key: str
    name: str
    unit: str = "ms"
    lower: bool = True

    def goal(self, nature: Nature) -> Goal:
        lossy = nature.loss_percent > 0
        if self.key == "fresh":
            return Goal(at_most=nature.rtt_ms + 5)
        if self.key == "bulk8":
            return Goal(at_least_times=1) if lossy else Goal(at_least=0.9 * nature.mbit)
        if self.key == "beside8_p99":
            return Goal(at_most=nature.rtt_ms + (15 if lossy else 10))
        return NO_GOAL


FIGURES = (
    Figure("fresh", "new connection and a small answer, p50"),
    Figure("echo_p50", "echo of 256 B alone, p50"),
    Figure("echo_p99", "echo of 256 B alone, p99"),
    Figure("bulk1", "bulk down, 1 stream, beside the echo", "Mbit/s", lower=False),
    Figure("bulk8", "bulk down, 8 streams, beside the echo", "Mbit/s", lower=False),
    Figure("beside1_p99", "echo beside 1 bulk stream, p99"),
    Figure("beside8_p50", "echo beside 8 bulk streams, p50"),
    Figure("beside8_p99", "echo beside 8 bulk streams, p99"),
)


def rows(bench: Bench) -> Iterator[Row]:
    """Line by line, on each of them everybody in turn."""
    for nature in NATURES:
        yield from compared(bench, nature)


def compared(bench: Bench, nature: Nature) -> Iterator[Row]:
    direct, ours, one_lane = Direct(), Ours(bench, True), Ours(bench, True, lanes=1)
    others, missing = installed([Rathole(True), Wstunnel(True), Ssh(), Chisel(False)])

    def measure(peer: Peer, folder: Path, repetition: int) -> dict[str, float]:
        # Each repetition loses other packets, everybody those of the same numbers.
        line = Line(bench.program, "wide", nature.again(repetition))
        with line, Stage(folder, line.home, line.far, HOME) as stage:
            return measured(bench, stage, peer, nature)

    values = in_turn(bench, str(nature), [direct, ours, one_lane, *others], [ours, one_lane], missing, measure)
    for mine, suffix in ((ours, ""), (one_lane, ", with one lane")):
        for figure in FIGURES:
            of = values[figure.key]
            yield Row(
                f"wide {nature}{suffix}: {figure.name}",
                figure.unit,
                of[mine.name],
                {peer.name: of[peer.name] for peer in others if peer.name not in missing},
                lower_is_better=figure.lower,
                goal=figure.goal(nature) if mine is ours else NO_GOAL,
                limit=of[direct.name],
                not_here=missing,
            )


def measured(bench: Bench, stage: Stage, peer: Peer, nature: Nature) -> dict[str, float]:
    """One peer, from its start to its end."""
    stage.start("origin", [bench.program, "origin", "--listen", f"0.0.0.0:{ORIGIN}"])
    if isinstance(peer, Direct):
        load = Load(bench.program, stage.home, ORIGIN, host=FAR)
        stage.wait_up(ORIGIN, host=FAR)
    else:
        load = Load(bench.program, stage.home, peer.port)
        peer.up(stage)
    fresh = load.told("requests", "--fresh", "--seconds", FRESH_S)
    echo = ("echo", "--conns", ECHOES, "--every-us", PACE_US)
    alone = load.told(*echo, "--seconds", ALONE_S)
    beside = (*echo, "--lead-ms", int(1000 * LEAD_S + LEAD_ROUNDS * nature.rtt_ms))
    one = load.told(*beside, "--seconds", BESIDE1_S, "--bulk", 1)
    eight = load.told(*beside, "--seconds", BESIDE8_S, "--bulk", 8)
    load.told("bulk", "--streams", 8, "--bytes", WHOLE_BYTES)
    return {
        "fresh": fresh["p50_us"] / 1e3,
        "echo_p50": alone["p50_us"] / 1e3,
        "echo_p99": alone["p99_us"] / 1e3,
        "bulk1": one["bulk_mb_per_s"] * 8,
        "bulk8": eight["bulk_mb_per_s"] * 8,
        "beside1_p99": one["p99_us"] / 1e3,
        "beside8_p50": eight["p50_us"] / 1e3,
        "beside8_p99": eight["p99_us"] / 1e3,
    }
