"""Waiting with a deadline, and finding processes and ports of our own."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Found = TypeVar("Found")
#: Each has ports of its own.
WORKERS_MOST = 8
_given: set[int] = set()


class NotInTime(AssertionError):
    """What a test waited for did not happen."""


def eventually(what: str, look: Callable[[], Found | None], within_s: float = 20.0, every_s: float = 0.1) -> Found:
    """Looks until there is something true; the deadline is over all looks."""
    deadline = time.monotonic() + within_s
    last: object = None
    while True:
        try:
            last = look()
            if last:
                return last
        except (OSError, LookupError, ValueError) as error:
            last = error
        if time.monotonic() > deadline:
            raise NotInTime(f"not within {within_s:.0f} s: {what}; last seen: {last!r}")
        time.sleep(every_s)


def stays(what: str, look: Callable[[], object], for_s: float, every_s: float = 0.25) -> None:
    """Fails as soon as it is not so, within that time."""
    deadline = time.monotonic() + for_s
    while time.monotonic() < deadline:
        assert look(), f"did not stay so for {for_s:.0f} s: {what}"
        time.sleep(every_s)


def free_port() -> int:
    """A port below those that the kernel hands out by itself, given once and by one worker alone, so that it is still
    free when its program binds it."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for _ in range(200):
        port = random.randrange(18_000 + worker % WORKERS_MOST, 30_000, WORKERS_MOST)
        if port in _given:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            _given.add(port)
            return port
    raise NotInTime("no free port found")


@dataclass(frozen=True)
class Process:
    """One process of a job, as the kernel shows it."""

    pid: int
    argv: tuple[str, ...]
    attempt: str
    uid: int

    @property
    def is_agent(self) -> bool:
        return any("glidepath-agent" in part for part in self.argv[:1]) and "run" in self.argv[:3]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def processes_of(run: str = "") -> list[Process]:
    """All live processes that carry the label of an attempt of this run; of any run when none is named."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environ = (entry / "environ").read_bytes().split(b"\0")
            labels = [one for one in environ if one.startswith(b"GLIDEPATH_ATTEMPT=")]
            if not labels or not alive(int(entry.name)):
                continue
            attempt = labels[0].partition(b"=")[2].decode()
            if run and not attempt.startswith(run):
                continue
            argv = tuple((entry / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0"))
            found.append(Process(int(entry.name), argv, attempt, entry.stat().st_uid))
        except OSError:
            continue
    return found


def agent_of(run: str) -> Process:
    return eventually(f"an agent of {run}", lambda: next((p for p in processes_of(run) if p.is_agent), None), 10)


def server_of(run: str) -> Process:
    """The user's server: the agent's child."""

    def look() -> Process | None:
        agents = {process.pid for process in processes_of(run) if process.is_agent}
        for process in processes_of(run):
            stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            if int(stat[1]) in agents:
                return process
        return None

    return eventually(f"a server of {run}", look, 10)
