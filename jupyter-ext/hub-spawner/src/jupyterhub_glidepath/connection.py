"""One Hub process' connection to the service: client, event feed, and the embedded service when there is one.

All spawners of a Hub share it. It is made at first use and lives until the event loop ends; its tasks are named and
owned here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyterhub_glidepath.client import BadSecretFile, Client, Unreachable, read_secret
from jupyterhub_glidepath.embedded import Embedded, HubFacts
from jupyterhub_glidepath.events import Feed

SCHEMES = ("http://", "https://")

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


@dataclass(frozen=True)
class Where:
    """Which service, for which hub. An empty ``service_url`` is the embedded one."""

    service_url: str
    hub_name: str
    secret_file: str
    state_dir: str

    def slip(self) -> str | None:
        """What is wrong with these settings, whatever the service says; ``None`` when nothing is."""
        if not self.service_url:
            return None
        if not self.service_url.startswith(SCHEMES):
            return f"c.GlidepathSpawner.service_url {self.service_url!r} must begin with http:// or https://"
        if not self.secret_file:
            return "c.GlidepathSpawner.secret_file is not set: it names the file with this Hub's secret"
        try:
            read_secret(Path(self.secret_file))
        except BadSecretFile as error:
            return f"c.GlidepathSpawner.secret_file: {error}"
        return None


class Connection:
    """See the module. Make one with :func:`connect`."""

    def __init__(
        self,
        where: Where,
        hub: HubFacts,
        settings: dict[str, Any],
        log: Log,
        stops_with_hub: Callable[[], bool],
    ) -> None:
        self.embedded: Embedded | None = None
        if where.service_url:
            path = Path(where.secret_file)
            self.client = Client(hub.name, _given(where.service_url), lambda: read_secret(path))
        else:
            embedded = Embedded(Path(where.state_dir), hub, settings, log, stops_with_hub)
            self.embedded = embedded
            self.client = Client(hub.name, embedded.address, lambda: read_secret(embedded.secret_file))
        self.feed = Feed(self.client, log)
        self._tasks: list[asyncio.Task[None]] = []

    def open(self) -> None:
        """Starts the tasks, in the running loop."""
        if self.embedded is not None:
            self._tasks.append(asyncio.create_task(self.embedded.run(), name="glidepath embedded service"))
        self._tasks.append(asyncio.create_task(self.feed.run(), name="glidepath event feed"))

    async def close(self) -> None:
        """Ends the tasks and lets go of the service."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.client.close()


_connections: dict[Where, tuple[asyncio.AbstractEventLoop, Connection]] = {}


def connect(
    where: Where,
    hub: HubFacts,
    settings: dict[str, Any],
    log: Log,
    stops_with_hub: Callable[[], bool] = lambda: False,
) -> Connection:
    """The connection of this process to that service; opened when there is none in the running loop yet."""
    loop = asyncio.get_running_loop()
    found = _connections.get(where)
    if found is not None and found[0] is loop:
        return found[1]
    connection = Connection(where, hub, settings, log, stops_with_hub)
    connection.open()
    _connections[where] = (loop, connection)
    return connection


def connected(where: Where) -> Connection | None:
    """The open connection to that service, if there is one in the running loop."""
    found = _connections.get(where)
    return found[1] if found is not None and found[0] is asyncio.get_running_loop() else None


async def close_all() -> None:
    """Closes the connections of the running loop."""
    loop = asyncio.get_running_loop()
    for where, (owner, connection) in list(_connections.items()):
        if owner is loop:
            del _connections[where]
            await connection.close()


def _given(url: str) -> Callable[[], Any]:
    async def locate() -> str:
        if not url.startswith(SCHEMES):
            raise Unreachable(f"service_url {url!r} must begin with http:// or https://")
        return url

    return locate
