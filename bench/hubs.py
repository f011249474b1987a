"""A real Hub in front of the service of the release, in the space in which this thread is.

The Hub is the same whoever spawns: Glidepath's config, and the service beside it. What differs is the spawner's class.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from given import Bench
from house import House
from service import Service, site, sites_config
from waiting import free_port

#: A start's request is answered when the server is ready, and no earlier.
ANSWER_WITHIN_S = 120


@contextmanager
def hub(
    bench: Bench,
    folder: Path,
    settings: dict[str, dict[str, Any]] | None = None,
    sites: list[dict[str, Any]] | None = None,
    **config: Any,
) -> Iterator[tuple[House, Service]]:
    """`settings`: of the Hub, by class. `sites`: of the service, one of processes behind links when none is given;
    `config` is more of the service's. All that was started ends with the `with`."""
    os.environ |= {
        "GLIDEPATH_SPAWNER_BIN": str(bench.service),
        "GLIDEPATH_AGENT_BIN": str(bench.agent),
        "GLIDEPATH_LIGHT_SERVER_BIN": str(bench.light_server),
    }
    folder.mkdir(mode=0o711)
    name, hub_port = "bench", free_port()
    hubs = [{"name": name, "api_url": f"http://127.0.0.1:{hub_port}/hub/api"}]
    told = {"log": {"format": "text", "level": "warn"}} | config
    service = Service(folder, sites_config(sites or [site("here", folder, reach="tunnel")], None, **told), hubs)
    service.start()
    try:
        house = House(
            folder / "hub",
            hub=bench.hub,
            hub_name=name,
            service=service,
            http_timeout=ANSWER_WITHIN_S,
            cleanup_servers=True,
            hub_settings=settings or {},
        )
        house.hub_port = house.settings["hub_port"] = hub_port
        with house:
            yield house, service
    finally:
        service.stop()
