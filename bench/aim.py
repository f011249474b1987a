"""What load says of what it was aimed at. Every figure here is of bytes that were checked."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import install
from net import Failed, Space

#: wrk's script: sums at the end, exact to the byte.
SUMS = """
done = function(summary, latency, requests)
    local errors = summary.errors
    local bad = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    io.write(string.format('{"requests":%d,"bytes":%d,"us":%d,"bad":%d,"p50_us":%d,"p99_us":%d}\\n',
        summary.requests, summary.bytes, summary.duration, bad, latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass
class Load:
    """Aimed at one port of a space."""

    program: Path
    space: Space
    port: int
    #: In front of every path.
    prefix: str = ""
    host: str = "127.0.0.1"

    def told(self, what: str, *words: object, within_s: float = 180) -> dict[str, Any]:
        """One of the load programs, which print nothing when a byte is wrong."""
        aim = ["--target", f"{self.host}:{self.port}", "--prefix", self.prefix]
        figure: dict[str, Any] = json.loads(self.space.run([self.program, what, *aim, *words], within_s))
        return figure

    def rate(self, conns: int, seconds: int, folder: Path) -> dict[str, float]:
        """Requests a second and their times, by wrk.

        Answers are checked one by one just before, over as many connections; of wrk's own the sum of bytes must fit.
        """
        reply = self.told("requests", "--conns", conns, "--seconds", 0.3)["reply_bytes"]
        script = folder / "sums.lua"
        script.write_text(SUMS)
        argv = [
            "wrk",
            "-t1",
            f"-c{conns}",
            f"-d{seconds}s",
            "-s",
            script,
            f"http://{self.host}:{self.port}{self.prefix}/",
        ]
        told = self.space.run([install.debian("wrk", "wrk"), *argv[1:]], seconds + 30)
        found = re.search(r"^\{.*\}$", told, re.MULTILINE)
        if not found:
            raise Failed(f"wrk said nothing: {told[-200:]}")
        sums = json.loads(found[0])
        if sums["bad"]:
            raise Failed(f"{sums['bad']} of {sums['requests']} requests failed")
        # Answers under way at the end are counted as bytes and not as requests.
        surplus = sums["bytes"] - sums["requests"] * reply
        if not sums["requests"] or not 0 <= surplus <= conns * reply:
            raise Failed(f"{sums['requests']} answers of {reply} bytes are not {sums['bytes']} bytes")
        return {
            "per_s": sums["requests"] / sums["us"] * 1e6,
            "p50_us": float(sums["p50_us"]),
            "p99_us": float(sums["p99_us"]),
        }
