"""Keys of servers: the reversible encoding ``hub.user.server`` that the service knows.

In: a hub's, a user's and a server's name. Out: one text that is safe as a segment of a URL. Everything is derived,
nothing stored: a Hub that lost its state finds its servers again. The service's own code and this file are tested
with the same examples (``tests/vectors/server_key.json``).
"""

from __future__ import annotations

from typing import NamedTuple

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")


class ServerKey(NamedTuple):
    """Which server: its hub, its user, and its name, which is empty for the default server."""

    hub: str
    user: str
    server: str

    def full(self) -> str:
        """The written key. Letters, digits and ``-`` stand for themselves, other bytes are ``_`` and two hex digits."""
        return ".".join(_escape(part) for part in self)

    @classmethod
    def parse(cls, raw: str) -> ServerKey:
        """Reads :meth:`full` back; only the one canonical spelling. Raises ``ValueError``."""
        parts = raw.split(".")
        if len(parts) != 3:
            raise ValueError(f"server key {raw[:80]!r} does not have the three parts hub.user.server")
        key = cls(*(_unescape(part) for part in parts))
        if key.full() != raw:
            raise ValueError(f"server key {raw[:80]!r} is not spelt as it must be")
        return key


def _escape(part: str) -> str:
    return "".join(chr(byte) if byte in _PLAIN else f"_{byte:02x}" for byte in part.encode())


def _unescape(part: str) -> str:
    first, *escaped = part.split("_")
    out = bytearray(first.encode())
    for piece in escaped:
        out.append(int(piece[:2], 16))
        out += piece[2:].encode()
    return out.decode()
