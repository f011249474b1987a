"""A far site: a network namespace that lets nothing in, behind a cable that can be pulled.

Outside there is one address, ours; inside another one, the site's. The namespace drops every inbound connection.
"""

from __future__ import annotations

import itertools
import os
import random
import subprocess
from pathlib import Path

_number = itertools.count()

FIREWALL = """
table inet site {
  chain inbound {
    type filter hook input priority 0; policy drop;
    iifname "lo" accept
    ct state established,related accept
  }
}
"""


class Far:
    """One namespace and its cable. Needs root."""

    def __init__(self, name: str = "") -> None:
        number = next(_number)
        self.name = name or f"glidepath-{os.getpid()}-{number}"
        self.outside = f"gp{os.getpid()}o{number}"
        self.inside = f"gp{os.getpid()}i{number}"
        block = random.randrange(2**14)  # of four addresses each, in 10.213.0.0/16
        self.home = f"10.213.{block // 64}.{block % 64 * 4 + 1}"
        self.address = f"10.213.{block // 64}.{block % 64 * 4 + 2}"

    @property
    def path(self) -> str:
        return f"/run/netns/{self.name}"

    def build(self) -> None:
        """Makes it; one of the same name that somebody left behind goes first."""
        self.remove()
        _run("ip", "netns", "add", self.name)
        _run("ip", "link", "add", self.outside, "type", "veth", "peer", "name", self.inside, "netns", self.name)
        _run("ip", "address", "add", f"{self.home}/30", "dev", self.outside)
        _run("ip", "link", "set", self.outside, "up")
        self._within("ip", "address", "add", f"{self.address}/30", "dev", self.inside)
        self._within("ip", "link", "set", self.inside, "up")
        self._within("ip", "link", "set", "lo", "up")
        self._within("nft", "-f", "-", text=FIREWALL)

    def cut(self) -> None:
        """Pulls the cable: nothing is refused, everything is silent."""
        self._within("ip", "link", "set", self.inside, "down")

    def restore(self) -> None:
        self._within("ip", "link", "set", self.inside, "up")

    def remove(self) -> None:
        if Path(self.path).exists():
            _run("ip", "netns", "delete", self.name)
        subprocess.run(["ip", "link", "delete", self.outside], capture_output=True, check=False, timeout=10)

    def _within(self, *command: str, text: str | None = None) -> None:
        _run("ip", "netns", "exec", self.name, *command, text=text)


def _run(*command: str, text: str | None = None) -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
