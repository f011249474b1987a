"""What a row module is given."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from net import quiet

TOP = Path(__file__).resolve().parents[1]


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

    @property
    def program(self) -> Path:
        """`glidepath-bench`: origin, load, and both ends of a bare link."""
        return self.programs / "glidepath-bench"

    def wait_quiet(self, within_s: float = 5) -> None:
        """Before something is measured."""
        self.busy = max(self.busy, quiet(within_s))

    def say(self, sentence: str) -> None:
        """Tells how far it is, and what went wrong."""
        print(f"{time.strftime('%H:%M:%S')} {sentence}", flush=True)
