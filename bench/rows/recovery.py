"""What comes back, and when: after a hole in which the line swallowed everything, and after home was killed.

Holes are compared with tunnels that a user would pick instead; home's restart is ours alone, with many links at once.
"""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

from given import Bench
from line import HOME, Line, Nature
from net import LINK, ORIGIN, PUBLIC, Failed, Space, Stage, cpu_s, ip
from peers import Chisel, Ours, Papers, Peer, Rathole, Ssh, installed
from table import NO_GOAL, Goal, Row
from turns import in_turn
from witness import witness

HOLES_S = (5, 40)
LINE = Nature(rtt_ms=10, mbit=500)
#: After a hole's end nobody is waited for longer.
PATIENCE_S = 90
REQUEST = "first new request"
CONVERSATIONS = ("open WebSocket", "open streaming response")

#: Home is away for so long; its links have so long to come back, and so long to settle before.
AWAY_S, BACK_WITHIN_S, SETTLE_S = 1, 400, 3
AGENTS = 2
#: Files that a process holds beside one for each link.
MORE_FILES = 200
ADDRESS = "10.98.0.{}"
REMARK = (
    "agents and home share this machine, and most of the work is the agents' own; "
    "where each agent has a machine of its own, home's CPU is what counts"
)


@dataclass(frozen=True)
class Crowd:
    """Links of one home, from so many addresses."""

    links: int
    addresses: int

    def __str__(self) -> str:
        if self.links == 1:
            return "1 link"
        return f"{self.links:,} links at {self.addresses} address{'es' if self.addresses > 1 else ''}"


CROWDS = (Crowd(1, 1), Crowd(500, 1), Crowd(500, 50), Crowd(5000, 1), Crowd(5000, 50))


def rows(bench: Bench) -> Iterator[Row]:
    for hole_s in HOLES_S:
        yield from compared(bench, hole_s)
    for crowd in CROWDS:
        yield from restarted(bench, crowd)


def compared(bench: Bench, hole_s: int) -> Iterator[Row]:
    ours = Ours(bench, True)
    others, missing = installed([Rathole(True), Chisel(False), Ssh(again=True)])
    lost: dict[str, dict[str, str]] = defaultdict(dict)

    def measure(peer: Peer, folder: Path, _: int) -> dict[str, float]:
        line = Line(bench.program, "recovery", LINE)
        with line, Stage(folder, line.home, line.far, HOME) as stage:
            found, gone = after_hole(bench, stage, peer, line, hole_s)
        for key, why in gone.items():
            if peer is ours:
                raise Failed(f"the {key} was lost in a hole of {hole_s} s: {why}")
            lost[key][peer.name] = f"its {key} was lost in the hole of {hole_s} s"
        return found

    values = in_turn(bench, f"hole of {hole_s} s", [ours, *others], [ours], missing, measure)
    for key in (REQUEST, *CONVERSATIONS):
        of = values[key]
        away = missing | lost[key]
        yield Row(
            f"recovery from {hole_s} s: {key}",
            "s",
            of[ours.name],
            {peer.name: of[peer.name] for peer in others if peer.name not in away},
            lower_is_better=True,
            goal=Goal(at_most=1),
            not_here=away,
        )


def after_hole(
    bench: Bench, stage: Stage, peer: Peer, line: Line, hole_s: int
) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds after the hole's end until each went on, and which were lost."""
    stage.start("origin", [bench.program, "origin"])
    peer.up(stage)

    async def hole() -> None:
        line.swallow()
        await asyncio.sleep(hole_s)
        line.carry()

    with stage.home.entered():
        seen = asyncio.run(witness(PUBLIC, hole, PATIENCE_S))
    return {REQUEST: seen.request_s} | seen.went_on_s, seen.lost


def restarted(bench: Bench, crowd: Crowd) -> Iterator[Row]:
    values: dict[str, list[float]] = defaultdict(list)
    for repetition in range(bench.repetitions):
        bench.wait_quiet()
        with Space("recovery") as space:
            folder = bench.folder / f"{crowd.links}-{crowd.addresses}-{repetition}"
            with Stage(folder, space) as stage:
                found = after_restart(bench, stage, crowd)
        for key, value in found.items():
            values[key].append(value)
        told = " ".join(f"{key}={value:.4g}" for key, value in found.items())
        bench.say(f"home restarted, {repetition + 1} {crowd}: {told}")
    for key, name, unit, goal in (
        ("first", "first byte at all, the last", "s", NO_GOAL),
        ("p50", "first byte again, p50", "s", NO_GOAL),
        ("p99", "first byte again, p99", "s", Goal(at_most=5)),
        ("max", "first byte again, the last", "s", NO_GOAL),
        ("most", "most TLS handshakes in a second", "1/s", NO_GOAL),
        ("refused", "dials refused by home", "", NO_GOAL),
        ("dials", "dials of a link, mean", "", NO_GOAL),
        ("cpu", "CPU of home until all are back", "s", NO_GOAL),
    ):
        if crowd.links > 1 or key == "p99":
            row = f"home restarted, {crowd}: {name if crowd.links > 1 else 'first byte again'}"
            remark = REMARK if key == "p99" and crowd.links > 1 else ""
            yield Row(row, unit, values[key], lower_is_better=True, goal=goal, remark=remark)


def after_restart(bench: Bench, stage: Stage, crowd: Crowd) -> dict[str, float]:
    """Home is killed and comes back; seconds since it was started again."""
    allow_files(crowd.links + MORE_FILES)
    addresses = [ADDRESS.format(number + 1) for number in range(crowd.addresses)]
    for address in addresses:
        # What connects to an address of its own machine comes from that address.
        ip("-n", stage.home.name, "address", "add", f"{address}/32", "dev", "lo")
    stage.known_by |= set(addresses)
    papers = Papers(stage)
    home = [bench.program, "home", "--link", f"0.0.0.0:{LINK}", "--public", f"127.0.0.1:{PUBLIC}", "--answers"]
    home += ["--tls", papers.cert, papers.key]
    stage.start("home", home)
    urls = [word for address in addresses for word in ("--home", f"wss://{address}:{LINK}/link")]
    agent = [bench.program, "agent", *urls, "--ca", papers.ca, "--origin", f"127.0.0.1:{ORIGIN}", "--asks"]
    processes = min(AGENTS, crowd.links)
    began = time.time()
    for number in range(processes):
        first, last = (crowd.links * part // processes for part in (number, number + 1))
        stage.start("agent", [*agent, "--first", first, "--links", last - first])
    before = came(stage, crowd, since=0)
    time.sleep(SETTLE_S)
    stage.stop("home")
    time.sleep(AWAY_S)
    since = time.time()
    stage.start("home", home)
    after = came(stage, crowd, since)
    cpu = cpu_s(stage.pids("home"))
    took = sorted(told["at"] - since for told in after.values())
    dials = sum(after[link]["dials"] - before[link]["dials"] for link in after)
    door = [told for told in lines(stage.log("home")) if told["at"] > since]
    return {
        "first": max(told["at"] for told in before.values()) - began,
        "p50": at(took, 50),
        "p99": at(took, 99),
        "max": took[-1],
        "most": most_in_a_second([(told["at"], told["tls"]) for told in door]),
        "refused": float(door[-1]["refused"]),
        "dials": dials / crowd.links,
        "cpu": cpu,
    }


def came(stage: Stage, crowd: Crowd, since: float) -> dict[int, dict[str, Any]]:
    """The latest word of each link whose first byte came back, once all have said so since then."""
    end = time.monotonic() + BACK_WITHIN_S
    while True:
        up: dict[int, dict[str, Any]] = {}
        for told in lines(stage.log("agent")):
            if "ended" in told:
                raise Failed(f"link {told['link']} of {crowd} ended for good: {told['ended']}")
            if not told["up"]:
                up.pop(told["link"], None)
            elif told["at"] > since:
                up.setdefault(told["link"], told)
        if len(up) == crowd.links:
            return up
        if time.monotonic() > end:
            raise Failed(f"{len(up)} of {crowd} answered within {BACK_WITHIN_S} s")
        time.sleep(0.5)


def lines(log: Path) -> list[dict[str, Any]]:
    """What a program told, as far as its last line is whole."""
    told = log.read_text() if log.exists() else ""
    return [json.loads(line) for line in told[: told.rfind("\n") + 1].splitlines() if line.startswith("{")]


def at(ascending: list[float], percent: int) -> float:
    return quantiles(ascending, n=100, method="inclusive")[percent - 1] if len(ascending) > 1 else ascending[0]


def most_in_a_second(counts: list[tuple[float, int]]) -> float:
    """Of a count that only grows, told now and then: by how much it grew most within any second."""
    most, counts = 0.0, [(counts[0][0] - 1, 0), *counts]
    for late, much in counts:
        before = max(little for early, little in counts if early <= late - 1 or little == 0)
        most = max(most, float(much - before))
    return most


def allow_files(number: int) -> None:
    """For what is started from here on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < number:
        raise Failed(f"{number} files may be open at once; this machine allows {hard}")
    if soft != resource.RLIM_INFINITY and soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
