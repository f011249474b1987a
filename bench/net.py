"""Network namespaces of the bench's own, the processes in them, and what these cost.

A `Space` is a namespace, a `Stage` what is started for one measurement. Only what was started here is ever ended: by
its process id, or because it runs inside a namespace that was made here.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TextIO

#: Where agents dial home, where users connect at home, and where the server behind the agent listens.
LINK, PUBLIC, ORIGIN = 7000, 7001, 9000
CLONE_NEWNET = 0x4000_0000
#: What a process may print before it is asked why it ended.
TOLD_BYTES = 2000


class Failed(Exception):
    """A measurement that gives no figure, and why."""


def need_root() -> None:
    """Namespaces are made by root alone."""
    if os.geteuid() != 0:
        sys.exit("make bench needs root: it makes network namespaces of its own (try: sudo make bench)")


class Space:
    """A network namespace with its loopback up, gone when the `with` ends."""

    def __init__(self, name: str, congestion: str = "cubic") -> None:
        self.name = f"gp-bench-{name}"
        self.congestion = congestion

    def __enter__(self) -> Space:
        self._remove()
        ip("netns", "add", self.name)
        ip("-n", self.name, "link", "set", "lo", "up")
        # Congestion control by route: bbr, the default of some machines, paces loopback and cuts it to a third.
        for destination in ("127.0.0.0/8", "127.0.0.1"):
            table = ("table", "local", "proto", "kernel", "scope", "host", "src", "127.0.0.1")
            self.route("local", destination, "dev", "lo", *table)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._remove()

    def route(self, *words: str) -> None:
        """`ip route replace`, with the congestion control of this space."""
        ip("-n", self.name, "route", "replace", *words, "congctl", self.congestion)

    def inside(self, argv: Sequence[object]) -> list[str]:
        """The command that runs this one in here. `ip` becomes it: the process id is its own."""
        return ["ip", "netns", "exec", self.name, *map(str, argv)]

    def run(self, argv: Sequence[object], within_s: float = 60) -> str:
        """Runs to its end in here and answers what it printed."""
        try:
            done = subprocess.run(self.inside(argv), capture_output=True, text=True, timeout=within_s)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"{Path(str(argv[0])).name} {argv[1]}: not done in {within_s:.0f} s") from error
        if done.returncode != 0:
            raise Failed(f"{Path(str(argv[0])).name} {argv[1]}: {done.stderr.strip() or done.returncode}")
        return done.stdout

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is in here, and so is what it starts or connects to."""
        with open("/proc/thread-self/ns/net") as outside, open(f"/run/netns/{self.name}") as inside:
            enter(inside)
            try:
                yield
            finally:
                enter(outside)

    def _remove(self) -> None:
        if not Path(f"/run/netns/{self.name}").exists():
            return
        for pid in ip("netns", "pids", self.name).split():
            end(int(pid))
        ip("netns", "del", self.name)


def enter(space: TextIO) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(space.fileno(), CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"entering {space.name}")


def ip(*words: str) -> str:
    """Runs `ip`; its error is the sentence."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20)
    if done.returncode != 0:
        raise Failed(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


class Stage:
    """What is started for one measurement, by role: `home`, `agent`, `origin`. All of it ends with the `with`.

    Home and load are in one space, agent and origin in another or the same; `address` is home's as the agent sees it.
    """

    def __init__(self, folder: Path, home: Space, far: Space | None = None, address: str = "127.0.0.1") -> None:
        self.folder = folder
        self.home = home
        self.far = far or home
        self.address = address
        #: Whatever agents know home by: its certificate is for all of them.
        self.known_by = {"127.0.0.1", address}
        self._started: list[tuple[str, subprocess.Popen[bytes]]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self, role: str, argv: Sequence[object], **environ: str) -> subprocess.Popen[bytes]:
        """Starts a process in the space of its role; what it prints goes to `ROLE.log`."""
        space = self.far if role in ("agent", "origin") else self.home
        with self.log(role).open("ab") as log:
            process = subprocess.Popen(
                space.inside(argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"RUST_LOG": "error"} | environ,
                cwd=self.folder,
            )
        self._started.append((role, process))
        return process

    def stop(self, *roles: str) -> None:
        """Kills these roles' processes and what they started; everybody when none is named."""
        going = [(role, process) for role, process in self._started if not roles or role in roles]
        for _, process in reversed(going):
            for pid in reversed(tree(process.pid)):
                end(pid)
        for _, process in going:
            process.wait(10)
        self._started = [entry for entry in self._started if entry not in going]

    def pids(self, *roles: str) -> list[int]:
        """The processes of these roles, with all that they started."""
        return [pid for role, process in self._started if role in roles for pid in tree(process.pid)]

    def log(self, role: str) -> Path:
        return self.folder / f"{role}.log"

    def write(self, name: str, text: str) -> Path:
        """A file for one of the processes, readable by its owner alone."""
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(text)
        return path

    def wait_up(self, port: int = PUBLIC, within_s: float = 20, host: str = "127.0.0.1") -> None:
        """Until the origin's whole answer arrives through this port, as the home space sees it."""
        told = self.home.run([sys.executable, "-S", "-E", "-c", PROBE, host, port, within_s], within_s + 10)
        if told.strip() == "up":
            return
        logs = [
            f"{role}: {self.log(role).read_text(errors='replace').strip()[-TOLD_BYTES:]}"
            for role in ("home", "agent", "origin")
            if self.log(role).exists() and self.log(role).stat().st_size
        ]
        raise Failed(f"did not come up in {within_s:.0f} s; {'; '.join(logs) or 'nothing was said'}")


PROBE = r"""
import socket, sys, time
end = time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), 1) as tcp:
            tcp.settimeout(1)
            tcp.sendall(b"GET / HTTP/1.1\r\nHost: up\r\nConnection: close\r\n\r\n")
            got = b""
            while part := tcp.recv(4096):
                got += part
        if b" 200 " in got and got.endswith(b"\n"):
            print("up")
            break
    except OSError:
        pass
    time.sleep(0.05)
"""


def end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def tree(pid: int) -> list[int]:
    """A process and all that it started, parents first."""
    found = [pid]
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split():
                found += tree(int(child))
    return found


def cpu_s(pids: Sequence[int]) -> float:
    """CPU seconds so far of all their threads, as fine as the scheduler counts."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                total += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0])
    return total / 1e9


class Memory:
    """KiB of these processes: resident, resident with shared pages by share, and theirs alone."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.rss_kb = self.pss_kb = self.private_kb = 0
        for pid in pids:
            with contextlib.suppress(OSError):
                for key, kb in re.findall(r"^(\w+):\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M):
                    if key == "Rss":
                        self.rss_kb += int(kb)
                    elif key == "Pss":
                        self.pss_kb += int(kb)
                    elif key.startswith("Private_"):
                        self.private_kb += int(kb)


def quiet(within_s: float, busy_at_most: float = 0.12) -> float:
    """Waits until the machine has nothing else to do, or no longer. Answers the share of CPU that was busy at last."""
    until = time.monotonic() + within_s
    while True:
        before = cpu_ticks()
        time.sleep(0.5)
        spent = [new - old for old, new in zip(before, cpu_ticks(), strict=True)]
        busy = 1 - (spent[3] + spent[4]) / max(1, sum(spent))
        if busy <= busy_at_most or time.monotonic() > until:
            return busy


def cpu_ticks() -> list[int]:
    with open("/proc/stat") as stat:
        return [int(ticks) for ticks in stat.readline().split()[1:9]]


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """Keeps every CPU from halting, by what gives way to everything: then the figure is the program's, not the time
    that a virtual CPU takes to wake up. For rows with a single client."""
    spin = ["chrt", "--idle", "0", "sh", "-c", "while :; do :; done"]
    spinners = [subprocess.Popen(spin) for _ in range(os.cpu_count() or 1)]
    try:
        time.sleep(0.1)
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()
