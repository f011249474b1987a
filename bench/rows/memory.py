"""What an idle link holds at home, what an agent end holds, and what a stream holds whose reader has stopped.

Of each program the first tunnel is its floor; what one more costs is what all the others hold together, by their
number. Counted is memory that is the process's alone: the kernel's buffers are not in it.
"""

from __future__ import annotations

import re
import resource
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from aim import Load
from given import Bench
from net import LINK, ORIGIN, PUBLIC, Failed, Memory, Space, Stage
from peers import Ours, Papers, Peer, Rathole, Wstunnel, installed
from table import Goal, Row
from turns import in_turn

#: Links of ours in one process, and tunnels of a peer.
LINKS, TUNNELS = 5000, 500
#: Links that are dialled in a second: home lets so many in from one address.
DIALS_PER_S = 100
UP_WITHIN_S = 300
#: Handshakes leave memory behind that allocators give back late.
SETTLE_S = 10
#: Streams whose readers have stopped.
STALLED = 8
#: What home may keep of each: the credit that it gave.
WINDOW_MB = 8 * 1.048576
REMARK = f"{LINKS} links in one process beside {TUNNELS} tunnels of a peer; without the kernel's buffers"


def rows(bench: Bench) -> Iterator[Row]:
    open_files()
    ours = Ours(bench, True)
    peers, missing = installed([Rathole(True), Wstunnel(True)])
    with Space("memory") as space:

        def measure(peer: Peer, folder: Path, _: int) -> dict[str, float]:
            return measured(bench, space, peer, folder)

        values = in_turn(bench, "memory", [ours, *peers], [ours], missing, measure)
        stalled_kb = [stalled(bench, space, ours, repetition) for repetition in range(bench.repetitions)]
    for key, name, goal in (
        ("link", "memory: one more idle link at home", Goal(at_most=25)),
        ("agent", "memory: an agent end with one link", Goal()),
        ("home", "memory: home with one link", Goal()),
        ("more", "memory: one more link in an agent end", Goal()),
    ):
        of = values[key]
        yield Row(
            name,
            "kB",
            of[ours.name],
            {peer.name: of[peer.name] for peer in peers if peer.name not in missing},
            lower_is_better=True,
            goal=goal,
            not_here=missing,
            remark=REMARK if key == "link" else "",
        )
    yield Row(
        "memory: home, for each reader that has stopped",
        "MB",
        [kb / 1000 for kb in stalled_kb],
        lower_is_better=True,
        goal=Goal(at_most=WINDOW_MB + 0.5),
        remark=f"{STALLED} streams of one link, each with a window of 8 MiB",
    )


def open_files() -> None:
    """Inherited by all that is started: a home of thousands has thousands of sockets."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < LINKS + 1000:
        raise Failed(f"{LINKS} links need as many open files, and only {most} are allowed (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def measured(bench: Bench, space: Space, peer: Peer, folder: Path) -> dict[str, float]:
    """kB of both ends with one tunnel, and what each further one adds."""
    count = LINKS if isinstance(peer, Ours) else TUNNELS
    kb: dict[int, tuple[float, float]] = {}
    found: dict[str, float] = {}
    for tunnels in (1, count):
        with Stage(folder.with_name(f"{folder.name}-{tunnels}"), space) as stage:
            stage.start("origin", [bench.program, "origin"])
            begin(bench, stage, peer, tunnels)
            stage.wait_up(PUBLIC, UP_WITHIN_S)
            until_up(space, tunnels)
            home, agent = Memory(stage.pids("home")), Memory(stage.pids("agent"))
            kb[tunnels] = home.private_kb, agent.private_kb
            if tunnels == 1:
                found |= {"home": home.rss_kb, "agent": agent.rss_kb}
    (home_one, agent_one), (home_all, agent_all) = kb[1], kb[count]
    # The kernel counts in 1,024 bytes.
    scale = 1.024 / (count - 1)
    return found | {"link": (home_all - home_one) * scale, "more": (agent_all - agent_one) * scale}


def begin(bench: Bench, stage: Stage, peer: Peer, tunnels: int) -> None:
    """Both ends with so many tunnels, in two processes."""
    if isinstance(peer, Ours):
        peer.home(stage)
        argv = [bench.program, "agent", "--home", f"wss://127.0.0.1:{LINK}/link", "--ca", Papers(stage).ca]
        many = ["--links", tunnels, "--per-s", DIALS_PER_S]
        stage.start("agent", [*argv, "--origin", f"127.0.0.1:{ORIGIN}", *many])
    elif isinstance(peer, Rathole):
        peer.home(stage, tunnels)
        time.sleep(0.5)
        peer.agent(stage, tunnels)
    elif isinstance(peer, Wstunnel):
        peer.home(stage)
        time.sleep(0.5)
        peer.agent(stage, tunnels)


def until_up(space: Space, tunnels: int) -> None:
    """Until so many connections of agents are there and stay for a while."""
    deadline, since = time.monotonic() + UP_WITHIN_S, None
    while since is None or time.monotonic() - since < SETTLE_S:
        there = connections(space)
        if there < tunnels:
            since = None
        elif since is None:
            since = time.monotonic()
        if time.monotonic() > deadline:
            raise Failed(f"{there} of {tunnels} links were up after {UP_WITHIN_S} s")
        time.sleep(0.5)


def connections(space: Space) -> int:
    return len(space.run(["ss", "-Htn", "state", "established", f"( sport = :{LINK} )"]).splitlines())


def stalled(bench: Bench, space: Space, ours: Ours, repetition: int) -> float:
    """kB at home for each stream whose user reads nothing."""
    with Stage(bench.folder / f"{repetition}-stalled", space) as stage:
        stage.start("origin", [bench.program, "origin"])
        ours.up(stage)
        Load(bench.program, space, PUBLIC).told("requests", "--conns", STALLED, "--seconds", 1)
        before = Memory(stage.pids("home")).private_kb
        aim = ["--target", f"127.0.0.1:{PUBLIC}", "--stalled", STALLED, "--seconds", 2, "--hold-s", 6]
        held: list[int] = []
        with (stage.folder / "stall.log").open("wb") as log:
            load = subprocess.Popen(space.inside([bench.program, "stall", *aim]), stdout=log, stderr=log)
            try:
                while load.poll() is None:
                    held.append(Memory(stage.pids("home")).private_kb)
                    time.sleep(0.25)
            finally:
                load.kill()
                load.wait()
        told = (stage.folder / "stall.log").read_text()
        if load.returncode != 0 or not re.search(r"p99_us", told):
            raise Failed(f"beside readers that stopped: {told.strip() or load.returncode}")
        # What it holds for long, not a peak of the allocator.
        return (median(held[-20:]) - before) * 1.024 / STALLED
