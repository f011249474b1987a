"""A home and a far space with an emulated line between them."""

from __future__ import annotations

import contextlib
import json
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from net import Failed, Space, ip

#: The addresses of the line's two ends.
HOME, FAR = "10.99.0.1", "10.99.0.2"
DEVICE = "wide0"
#: Packets that a device holds until they are read: the line's own queue is the one that counts.
DEVICE_QUEUE = 4000
WITHIN_S = 10


@dataclass(frozen=True)
class Nature:
    """What the line is like, each way."""

    rtt_ms: float
    mbit: float = 200
    #: The longest that a packet waits for those before it.
    queue_ms: float = 50
    #: Lost by chance.
    loss_percent: float = 0
    mtu: int = 1500
    #: The same seed loses the packets of the same numbers.
    seed: int = 1

    def again(self, repetition: int) -> Nature:
        """The same line on another day: other packets are lost."""
        return replace(self, seed=self.seed + repetition)

    def __str__(self) -> str:
        return f"{self.rtt_ms:g} ms" + (f", {self.loss_percent:g} % loss" if self.loss_percent else "")


class Line:
    """Both spaces and the line, gone when the `with` ends."""

    def __init__(self, program: Path, name: str, nature: Nature) -> None:
        self.program = program
        self.nature = nature
        self.home, self.far = Space(f"{name}-home"), Space(f"{name}-far")
        #: What became of the packets, `out` from home and `back`; there when the line has ended.
        self.fate: dict[str, dict[str, int]] = {}
        self._ends = contextlib.ExitStack()

    def __enter__(self) -> Line:
        with contextlib.ExitStack() as ends:
            ends.enter_context(self.home)
            ends.enter_context(self.far)
            self._process = self._started()
            ends.callback(self._end)
            self._told()
            for space, mine, theirs in ((self.home, HOME, FAR), (self.far, FAR, HOME)):
                ip("-n", space.name, "address", "add", mine, "peer", theirs, "dev", DEVICE)
                device = ("mtu", str(self.nature.mtu), "txqueuelen", str(DEVICE_QUEUE), "up")
                ip("-n", space.name, "link", "set", DEVICE, *device)
                space.route(theirs, "dev", DEVICE)
            self._ends = ends.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ends.close()

    def swallow(self) -> None:
        """From here on whatever is sent is gone without a word, as behind a dead middlebox."""
        self._order("swallow")

    def carry(self) -> None:
        """It carries again."""
        self._order("carry")

    def _started(self) -> subprocess.Popen[str]:
        nature = self.nature
        words = {
            "--device": DEVICE,
            "--delay-ms": nature.rtt_ms / 2,
            "--mbit": nature.mbit,
            "--queue-ms": nature.queue_ms,
            "--loss-percent": nature.loss_percent,
            "--seed": nature.seed,
        }
        argv = [str(self.program), "wide", "--spaces", *(f"/run/netns/{space.name}" for space in (self.home, self.far))]
        argv += [str(word) for pair in words.items() for word in pair]
        # Ahead of all others: a line that is late by its own fault is not the line that was asked for.
        argv = ["nice", "-n", "-19", *argv]
        pipe = subprocess.PIPE
        return subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def _order(self, word: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        self._told()

    def _told(self) -> dict[str, Any]:
        assert self._process.stdout and self._process.stderr
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"the line ended: {self._process.stderr.read().strip()}")
        told: dict[str, Any] = json.loads(line)
        return told

    def _end(self) -> None:
        """At the end of its standard input the line ends too."""
        try:
            last, _ = self._process.communicate(timeout=WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return
        if last:
            self.fate = json.loads(last)
