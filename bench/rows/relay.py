"""The service's relay beside the proxies that sit at its place, with one server behind each.

Ours is the real service: a request goes by its relay, a link with TLS and the real agent to the server, or, at a site
of `reach = "direct"`, by the relay to the server's socket. By a proxy it takes one hop and no tunnel.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from aim import Load
from given import Bench
from net import Failed, Space, Stage
from peers import Chp, Direct, Peer, Traefik, installed
from service import Service, server_key, site, sites_config
from table import NO_GOAL, Goal, Row

BULK_BYTES = 256 << 20
RATE_S = 3
ECHO_S = 2
USER = "ada"
PREFIX = f"/user/{USER}/"
REMARK = (
    "a Hub's own proxy stays in front of the relay, so that a user's request passes both; "
    "the figures are of the relay and of the proxy alone"
)

#: Key, name, unit, whether less is better, goal beside configurable-http-proxy.
FIGURES: tuple[tuple[str, str, str, bool, Goal], ...] = (
    ("rps1", "requests, 1 connection", "1/s", False, NO_GOAL),
    ("rps16", "requests, 16 connections", "1/s", False, NO_GOAL),
    ("rps64", "requests, 64 connections", "1/s", False, Goal(at_least_times=5)),
    ("p50", "requests, 64 connections, p50", "µs", True, NO_GOAL),
    ("p99", "requests, 64 connections, p99", "µs", True, Goal(at_most_times=1)),
    ("down1", "bulk down, 1 stream", "MB/s", False, NO_GOAL),
    ("down8", "bulk down, 8 streams", "MB/s", False, NO_GOAL),
    ("up1", "bulk up, 1 stream", "MB/s", False, NO_GOAL),
    ("echo64", "echoes of 256 B, 64 WebSockets", "1/s", False, NO_GOAL),
)
#: Of these alone there is a row beside traefik.
SECOND = {"rps64", "p99", "down8", "echo64"}
#: What is ours, by the site's reach.
OURS = {"tunnel": "relay over a link", "direct": "relay, direct site"}


def rows(bench: Bench) -> Iterator[Row]:
    chp, traefik, direct = Chp(), Traefik(), Direct()
    here, missing = installed([chp, traefik])
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def keep(name: str, found: dict[str, float]) -> None:
        bench.say(f"{name}: " + " ".join(f"{key}={value:.4g}" for key, value in found.items()))
        for key, value in found.items():
            values[key][name].append(value)

    with Space("relay") as space:
        for repetition in range(bench.repetitions):
            for reach, name in OURS.items():
                bench.wait_quiet()
                with served(bench, space, reach, repetition) as load:
                    keep(name, measured(bench, load))
            for peer in [direct, *here]:
                if peer.name in missing:
                    continue
                bench.wait_quiet()
                try:
                    keep(peer.name, beside(bench, space, peer, repetition))
                except Failed as reason:
                    if peer is direct:
                        raise
                    missing[peer.name] = bench.failed(peer.name, repetition, reason)
    for ours in OURS.values():
        for peer in (chp, traefik):
            for key, figure, unit, lower, goal in FIGURES:
                if peer is traefik and key not in SECOND:
                    continue
                of = values[key]
                yield Row(
                    f"{ours}, beside {peer.name}: {figure}",
                    unit,
                    of[ours],
                    {} if peer.name in missing else {peer.name: of[peer.name]},
                    lower_is_better=lower,
                    goal=goal if peer is chp else NO_GOAL,
                    limit=of[direct.name],
                    not_here={name: why for name, why in missing.items() if name == peer.name},
                    remark=REMARK if key == "rps64" and peer is chp else "",
                )


def beside(bench: Bench, space: Space, peer: Peer, repetition: int) -> dict[str, float]:
    """A proxy, or nothing at all, in front of the origin."""
    with Stage(bench.folder / f"{repetition}-{peer.name}", space) as stage:
        stage.start("origin", [bench.program, "origin"])
        peer.up(stage)
        return measured(bench, Load(bench.program, space, peer.port))


def measured(bench: Bench, load: Load) -> dict[str, float]:
    """The same of everybody."""
    found = {}
    for conns in (1, 16, 64):
        told = load.rate(conns, RATE_S, bench.folder)
        found[f"rps{conns}"] = told["per_s"]
    found |= {"p50": told["p50_us"], "p99": told["p99_us"]}
    for key, streams, more in (("down1", 1, []), ("down8", 8, []), ("up1", 1, ["--upload"])):
        found[key] = load.told("bulk", "--streams", streams, "--bytes", BULK_BYTES, *more)["mb_per_s"]
    found["echo64"] = load.told("echo", "--conns", 64, "--seconds", ECHO_S)["per_s"]
    return found


@contextmanager
def served(bench: Bench, space: Space, reach: str, repetition: int) -> Iterator[Load]:
    """The service with one site and one user's server that is ready; where users' requests for it go."""
    folder = bench.folder / f"{repetition}-{reach}"
    folder.mkdir(mode=0o711)
    program = folder / "server"
    shutil.copy(bench.program, program)
    program.chmod(0o755)
    os.environ |= {"GLIDEPATH_SPAWNER_BIN": str(bench.service), "GLIDEPATH_AGENT_BIN": str(bench.agent)}
    config = sites_config([site("here", folder, reach=reach)], None, log={"format": "text", "level": "warn"})
    hub = {"name": "bench", "api_url": "http://127.0.0.1:9/hub/api"}
    with space.entered():
        service = Service(folder, config, [hub])
        service.start()
        try:
            view = ready(service, [str(program), "origin", "--unix", "{socket}"])
            port = urlsplit(view["url"]).port
            assert port, view["url"]
            yield Load(bench.program, space, port, PREFIX.rstrip("/"))
            service.ask("DELETE", f"/servers/{server_key(hub['name'], USER)}?now=true&wait_s=20").raise_for_status()
        finally:
            service.stop()


def ready(service: Service, argv: list[str]) -> dict[str, Any]:
    """Asks for the server, as the Hub's spawner does."""
    environ = {"JUPYTERHUB_SERVICE_PREFIX": PREFIX, "JUPYTERHUB_USER": USER}
    body = {"spawn_id": secrets.token_hex(8), "argv": argv, "env": environ, "prefix": PREFIX}
    reply = service.ask("PUT", f"/servers/{server_key(service.hub, USER)}", json=body)
    if not reply.ok:
        raise Failed(f"the service takes no server: {reply.status_code} {reply.text[:500]}")
    return service.wait_state(USER, "ready", within_s=60)
