"""What a row module is given."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from net import quiet

TOP = Path(__file__).resolve().parents[1]
#: Of JupyterHub.
HUB = "6"


@dataclass
class Bench:
    """What a row module is given."""

    #: Everything is measured so often, each time from a fresh start.
    repetitions: int
    #: A folder for files of this run; it goes with it.
    folder: Path
    #: Programs of the release.
    programs: Path = TOP / "target" / "release"
    #: The largest share of the machine's CPU that others had when something was about to be measured.
    busy: float = 0.0
    #: Peers that are here and gave no figure.
    failures: list[str] = field(default_factory=list)

    @property
    def program(self) -> Path:
        """`glidepath-bench`: origin, load, and both ends of a bare link."""
        return self.programs / "glidepath-bench"

    @cached_property
    def service(self) -> Path:
        """The service, built when a row first asks."""
        self._build("--package", "glidepath-spawner-svc")
        return self.programs / "glidepath-spawner"

    @cached_property
    def agent(self) -> Path:
        """The static agent, as it goes to sites."""
        target = os.environ["GLIDEPATH_MUSL_TARGET"]
        self._build("--package", "glidepath-agent", "--target", target)
        return self.programs.parent / target / "release" / "glidepath-agent"

    @cached_property
    def light_server(self) -> Path:
        """A single-user server of which hundreds fit a small machine."""
        self._build("--package", "glidepath-testkit", "--example", "light_server")
        return self.programs / "examples" / "light_server"

    @cached_property
    def place(self) -> Path:
        """The service's life cycle with batch systems made of memory."""
        self._build("--package", "glidepath-spawner-svc", "--example", "place")
        return self.programs / "examples" / "place"

    @cached_property
    def hub(self) -> str:
        """The version of the Hub whose environment holds the wheel of the release, built when a row first asks."""
        subprocess.run(["scripts/build", "release", HUB], cwd=TOP, check=True, stdout=subprocess.DEVNULL)
        return HUB

    def _build(self, *what: str) -> None:
        command = ["cargo", "build", "--quiet", "--release", "--locked", "--target-dir", str(self.programs.parent)]
        subprocess.run([*command, *what], cwd=TOP, check=True)

    def wait_quiet(self, within_s: float = 5) -> None:
        """Before something is measured."""
        self.busy = max(self.busy, quiet(within_s))

    def say(self, sentence: str) -> None:
        """Tells how far it is, and what went wrong."""
        print(f"{time.strftime('%H:%M:%S')} {sentence}", flush=True)

    def failed(self, peer: str, repetition: int, reason: Exception) -> str:
        """A peer that is here gave no figure: no row that leaves it out passes for a whole one."""
        sentence = f"FAILED in repetition {repetition + 1}: {reason}"
        self.failures.append(f"{peer} {sentence}")
        self.say(self.failures[-1])
        return sentence
