"""How large the agent is, how soon the service is there, and what both hold while nothing is asked of them.

The agent is the file that the wheel carries. The service is ready when its health page says so.
"""

from __future__ import annotations

import http.client
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import places
from given import TOP, Bench
from net import Failed, Memory, Space
from service import Service, server_key, site, sites_config
from table import NO_GOAL, Goal, Row
from waiting import agent_of, eventually, free_port

#: Starts of which the median counts.
STARTS = 10
RUNS = 1000
READY_WITHIN_S = 30
#: Before memory at rest is looked at.
REST_S = 5
USER = "ada"
FIGURES: tuple[tuple[str, str, str, Goal, str], ...] = (
    ("binary", "size: the agent's binary", "MB", Goal(at_most=6), ""),
    ("empty", "start: service, an empty store", "ms", Goal(at_most=100), f"median of {STARTS}"),
    ("full", f"start: service, {RUNS} runs wait", "ms", Goal(at_most=100), f"median of {STARTS}"),
    ("first", "start: service, its first", "ms", NO_GOAL, "makes its keys and puts the agent where jobs find it"),
    ("service", "rest: the service, an empty store", "MB", NO_GOAL, "resident"),
    ("service_full", f"rest: the service, {RUNS} runs wait", "MB", NO_GOAL, "resident"),
    ("agent", "rest: the agent of a server that is ready", "MB", NO_GOAL, "resident, its server not counted"),
    ("agent_alone", "rest: the agent, its own pages", "MB", NO_GOAL, "what a second one on the same machine adds"),
)


def rows(bench: Bench) -> Iterator[Row]:
    found: dict[str, list[float]] = {key: [] for key, *_ in FIGURES}
    with Space("size") as space, space.entered():
        for repetition in range(bench.repetitions):
            bench.wait_quiet()
            values = measured(bench, bench.folder / str(repetition))
            bench.say(f"{repetition + 1}: " + " ".join(f"{key}={value:.4g}" for key, value in values.items()))
            for key, value in values.items():
                found[key].append(value)
    for key, name, unit, goal, remark in FIGURES:
        yield Row(name, unit, found[key], lower_is_better=True, goal=goal, remark=remark)


def measured(bench: Bench, folder: Path) -> dict[str, float]:
    assert bench.hub  # its environment has what the wheel carries
    carried = TOP / f".venv-hub{bench.hub}" / "bin"
    os.environ |= {
        "GLIDEPATH_SPAWNER_BIN": str(carried / "glidepath-spawner"),
        "GLIDEPATH_AGENT_BIN": str(carried / "glidepath-agent"),
    }
    found = {"binary": Path(places.agent()).stat().st_size / 1e6}
    folder.mkdir(mode=0o711)
    home = free_port()
    told = {"log": {"format": "text", "level": "warn"}, "listen": {"metrics": f"127.0.0.1:{home}"}}
    # Nothing that waits there starts before the bench is over.
    sites = [site("here", folder, reach="tunnel"), site("slow", folder, process_queue_delay_s=24 * 3600)]
    service = Service(
        folder, sites_config(sites, None, **told), [{"name": "bench", "api_url": "http://127.0.0.1:9/hub/api"}]
    )
    found["first"] = start_ms(service, home)
    try:
        found |= at_rest(bench, service)
        found["empty"] = median(restart_ms(service, home) for _ in range(STARTS))
        time.sleep(REST_S)
        found["service"] = resident_mb(service)
        fill(service)
        found["full"] = median(restart_ms(service, home) for _ in range(STARTS))
        time.sleep(REST_S)
        found["service_full"] = resident_mb(service)
        empty(service)
    finally:
        service.stop()
    return found


def start_ms(service: Service, port: int) -> float:
    """From its execution until its health page says that it is ready."""
    with (service.state_dir / "service.log").open("ab") as log:
        argv = [places.service(), "--config", str(service.config_file), "serve"]
        began = time.monotonic()
        service.child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/")
    while not is_ready(port):
        if service.child.poll() is not None or time.monotonic() - began > READY_WITHIN_S:
            raise Failed(f"the service is not ready: {service.log[-2000:]}")
        time.sleep(0.001)
    return (time.monotonic() - began) * 1000


def restart_ms(service: Service, port: int) -> float:
    service.stop()
    return start_ms(service, port)


def is_ready(port: int) -> bool:
    try:
        asked = http.client.HTTPConnection("127.0.0.1", port, timeout=READY_WITHIN_S)
        asked.request("GET", "/health/ready")
        ready = asked.getresponse().status == 200
        asked.close()
        return ready
    except OSError:
        return False


def at_rest(bench: Bench, service: Service) -> dict[str, float]:
    """An agent whose server nobody visits."""
    server = Path(shutil.copy(bench.light_server, service.config_file.parent / "server"))
    server.chmod(0o755)
    asks_for(service, USER, "here", [str(server), "--ServerApp.sock={socket}"])
    run = service.wait_state(USER, "ready", within_s=60)["run"]
    time.sleep(REST_S)
    memory = Memory([agent_of(run).pid])
    service.ask("DELETE", f"/servers/{server_key(service.hub, USER)}?now=true&wait_s=20").raise_for_status()
    return {"agent": memory.rss_kb / 1000, "agent_alone": memory.private_kb / 1000}


def fill(service: Service) -> None:
    """Runs that wait."""
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: asks_for(service, f"user-{number}", "slow", ["nothing"]), range(RUNS)))
    eventually("all wait", lambda: sum(one["state"] == "queued" for one in listed(service)) == RUNS, 300, every_s=0.5)


def empty(service: Service) -> None:
    """Ends them: nothing of them is left."""
    with ThreadPoolExecutor(16) as pool:
        keys = [server_key(service.hub, f"user-{number}") for number in range(RUNS)]
        list(pool.map(lambda key: service.ask("DELETE", f"/servers/{key}?now=true"), keys))
    eventually("all have ended", lambda: all(one["state"] == "ended" for one in listed(service)), 300, every_s=0.5)


def listed(service: Service) -> list[dict[str, str]]:
    servers: list[dict[str, str]] = service.ask("GET", "/servers").json()["servers"]
    return servers


def asks_for(service: Service, user: str, site_name: str, argv: list[str]) -> None:
    """As the Hub's spawner does."""
    prefix = f"/user/{user}/"
    body = {
        "spawn_id": secrets.token_hex(8),
        "argv": argv,
        "env": {"JUPYTERHUB_SERVICE_PREFIX": prefix, "JUPYTERHUB_USER": user},
        "prefix": prefix,
        "options": {"site": site_name},
    }
    reply = service.ask("PUT", f"/servers/{server_key(service.hub, user)}", json=body)
    if not reply.ok:
        raise Failed(f"the service takes no server: {reply.status_code} {reply.text[:500]}")


def resident_mb(service: Service) -> float:
    assert service.child is not None
    return Memory([service.child.pid]).rss_kb / 1000
