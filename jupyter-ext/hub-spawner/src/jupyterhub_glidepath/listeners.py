"""Keeps the listening sockets of an embedded service while it is started again, as systemd does for a unit.

In: copies of its sockets, which the service sends to a socket in its state folder (sd_notify(3), ``FDSTORE=1``), and
the names of those that it serves no more (``FDSTOREREMOVE=1``). Out: the same sockets for the next process
(sd_listen_fds(3)). Whoever connects in between waits instead of being refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

NAME = "notify"
#: What an address of a unix socket can hold.
PATH_MAX_BYTES = 107
#: Descriptors are handed over in a row, which begins at the first of these numbers where there is room.
ROW_STARTS = range(64, 65_536, 64)


class Listeners:
    """The sockets of one service, by name."""

    def __init__(self, state_dir: Path, log: logging.Logger | logging.LoggerAdapter[logging.Logger]) -> None:
        self._path = state_dir / NAME
        self._log = log
        self._door: socket.socket | None = None
        self._kept: dict[str, int] = {}

    def open(self) -> None:
        """Begins to take them. The folder must be there, and closed for other accounts."""
        if self._door is not None:
            return
        if len(os.fsencode(self._path)) > PATH_MAX_BYTES:
            self._log.warning(
                "%s is too long for a socket: connections are refused while Glidepath's service starts again",
                self._path,
            )
            return
        self._path.unlink(missing_ok=True)
        door = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            door.bind(str(self._path))
        except OSError:
            door.close()
            raise
        self._door = door
        asyncio.get_running_loop().add_reader(door, self._take)

    def close(self) -> None:
        """Keeps nothing any more."""
        self.forget()
        if self._door is not None:
            asyncio.get_running_loop().remove_reader(self._door)
            self._door.close()
            self._door = None

    def forget(self) -> None:
        """Closes what is kept: who connects where nobody listens is to be told so."""
        for descriptor in self._kept.values():
            os.close(descriptor)
        self._kept.clear()

    @contextlib.contextmanager
    def handed_over(self) -> Iterator[tuple[dict[str, str], list[int]]]:
        """Environment and descriptors for a process that is to have them; they are the process's own after it began."""
        environ = {} if self._door is None else {"NOTIFY_SOCKET": str(self._path)}
        row = _in_a_row(list(self._kept.values()))
        try:
            if row:
                # Without LISTEN_PID, which only the new process itself could know.
                environ |= {
                    "LISTEN_FDS": str(len(row)),
                    "LISTEN_FDS_FIRST_FD": str(row[0]),
                    "LISTEN_FDNAMES": ":".join(self._kept),
                }
            yield environ, row
        finally:
            for descriptor in row:
                os.close(descriptor)

    def _take(self) -> None:
        door = self._door
        while door is not None:
            try:
                text, descriptors, _, _ = socket.recv_fds(door, 4096, 4, socket.MSG_CMSG_CLOEXEC)
            except OSError:
                return
            fields = dict(line.partition("=")[::2] for line in text.decode("utf-8", "replace").splitlines())
            name = fields.get("FDNAME", "")
            stores = fields.get("FDSTORE") == "1" and name != "" and len(descriptors) == 1
            if stores or fields.get("FDSTOREREMOVE") == "1":
                with contextlib.suppress(KeyError):
                    os.close(self._kept.pop(name))
            if stores:
                self._kept[name] = descriptors.pop()
            for descriptor in descriptors:
                os.close(descriptor)


def _in_a_row(descriptors: list[int]) -> list[int]:
    """Copies whose numbers follow each other, as the protocol has it. Takes no number that is in use."""
    for start in ROW_STARTS:
        row: list[int] = []
        for descriptor in descriptors:
            row.append(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, start + len(row)))
            if row[-1] != start + len(row) - 1:
                break
        else:
            return row
        for copy in row:
            os.close(copy)
    return []
