"""A bare link beside the tunnels that a user would pick instead: requests, bulk, CPU, echo alone and beside bulk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aim import Load
from given import Bench
from net import Space, Stage, awake, cpu_s
from peers import Copied, Direct, Ours, Peer, installed, with_tls, without_tls
from table import NO_GOAL, Goal, Row
from turns import in_turn

BULK_BYTES = 512 << 20
#: Of each load by wrk.
RATE_S = 2
ECHO_S = 1.5
#: Of the echo beside bulk: give or take half.
PACE_US = 4000


@dataclass(frozen=True)
class Figure:
    """One row: what it is called in `measured`, and for people."""

    key: str
    name: str
    unit: str
    goal: Goal = NO_GOAL
    lower: bool = False


TLS = (
    Figure("rps1", "requests, 1 connection", "1/s"),
    Figure("rps16", "requests, 16 connections", "1/s"),
    Figure("rps64", "requests, 64 connections", "1/s", Goal(at_least_times=1.2)),
    Figure("down1", "bulk down, 1 stream", "MB/s", Goal(at_least_times=1.3)),
    Figure("down8", "bulk down, 8 streams", "MB/s", Goal(at_least_times=1.3)),
    Figure("up1", "bulk up, 1 stream", "MB/s", Goal(at_least_times=1.3)),
    Figure("up8", "bulk up, 8 streams", "MB/s", Goal(at_least_times=1.3)),
    Figure("cpu", "CPU of both ends, all bulk", "s/GB", Goal(at_most_times=0.7), lower=True),
    Figure("echo_p50", "echo of 256 B alone, p50", "µs", lower=True),
    Figure("echo_p99", "echo of 256 B alone, p99", "µs", lower=True),
    Figure("beside1_p99", "echo beside 1 bulk stream, p99", "µs", lower=True),
    Figure("beside8_p99", "echo beside 8 bulk streams, p99", "µs", Goal(at_most_times=0.333), lower=True),
)
PLAIN = (
    Figure("rps64", "requests, 64 connections", "1/s", Goal(at_least_times=1.3)),
    Figure("down1", "bulk down, 1 stream", "MB/s"),
    Figure("down8", "bulk down, 8 streams", "MB/s", Goal(at_least_times=1.5)),
    Figure("up8", "bulk up, 8 streams", "MB/s", Goal(at_least_times=1.5)),
    Figure("cpu", "CPU of both ends, all bulk", "s/GB", lower=True),
    Figure("beside8_p99", "echo beside 8 bulk streams, p99", "µs", lower=True),
)


def rows(bench: Bench) -> Iterator[Row]:
    """Everybody in turn, so that what the machine does meanwhile hits all."""
    with Space("link") as space:
        yield from compared(bench, space, "TLS", TLS, Ours(bench, True), with_tls())
        yield from compared(bench, space, "plain", PLAIN, Ours(bench, False), without_tls())


def compared(
    bench: Bench, space: Space, kind: str, figures: tuple[Figure, ...], ours: Peer, others: list[Peer]
) -> Iterator[Row]:
    peers, missing = installed(others)
    direct, copied = Direct(), Copied(bench)
    wanted = {figure.key for figure in figures}

    def measure(peer: Peer, folder: Path, _: int) -> dict[str, float]:
        with Stage(folder, space) as stage:
            return measured(bench, stage, peer, wanted)

    values = in_turn(bench, kind, [direct, copied, ours, *peers], [ours], missing, measure)
    for figure in figures:
        of = values[figure.key]
        yield Row(
            f"link {kind}: {figure.name}",
            figure.unit,
            of[ours.name],
            {peer.name: of[peer.name] for peer in peers if peer.name not in missing},
            lower_is_better=figure.lower,
            goal=figure.goal,
            limit=of[direct.name],
            reference=of[copied.name],
            not_here=missing,
        )


def measured(bench: Bench, stage: Stage, peer: Peer, wanted: set[str]) -> dict[str, float]:
    """One peer, from its start to its end."""
    stage.start("origin", [bench.program, "origin"])
    peer.up(stage)
    load = Load(bench.program, stage.home, peer.port)
    found: dict[str, float] = {}
    for conns in (1, 16, 64):
        if f"rps{conns}" in wanted:
            found[f"rps{conns}"] = requests(load, conns, stage)
    cpu_per_gb = []
    for key, streams, up in (("down1", 1, False), ("down8", 8, False), ("up1", 1, True), ("up8", 8, True)):
        if key in wanted:
            found[key], cost = bulk(load, stage, streams, up)
            cpu_per_gb.append(cost)
    if stage.pids("home", "agent"):
        found["cpu"] = sum(cpu_per_gb) / len(cpu_per_gb)
    if "echo_p50" in wanted:
        with awake():
            echo = load.told("echo", "--seconds", ECHO_S)
        found |= {"echo_p50": echo["p50_us"], "echo_p99": echo["p99_us"]}
    for streams in (1, 8):
        if f"beside{streams}_p99" in wanted:
            echo = load.told("echo", "--seconds", ECHO_S, "--every-us", PACE_US, "--bulk", streams)
            found[f"beside{streams}_p99"] = echo["p99_us"]
    return found


def requests(load: Load, conns: int, stage: Stage) -> float:
    if conns > 1:
        return load.rate(conns, RATE_S, stage.folder)["per_s"]
    with awake():
        return load.rate(conns, RATE_S, stage.folder)["per_s"]


def bulk(load: Load, stage: Stage, streams: int, up: bool) -> tuple[float, float]:
    """MB/s, and CPU seconds of both ends for each GB."""
    before = cpu_s(stage.pids("home", "agent"))
    told = load.told("bulk", "--streams", streams, "--bytes", BULK_BYTES, *(["--upload"] if up else []))
    cost = cpu_s(stage.pids("home", "agent")) - before
    return told["mb_per_s"], cost / (told["bytes"] / 1e9)
