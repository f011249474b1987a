"""Measures one service with many servers and writes the table of docs/reliability.md.

make load [SERVERS=500] [USERS=2000]

Real Hub, proxy, service, agents, links through a network namespace; the servers are small ones of the testkit. What is
measured is the machine's as much as the program's, so the table names it.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import requests

import tables
from far import Far
from many import STARTS_AT_ONCE, Many, Sockets, many, quantile
from waiting import eventually

#: Between two pings of one WebSocket.
PING_EVERY_S = 2.0
MEASURED_FOR_S = 30.0


def main() -> None:
    told = argparse.ArgumentParser(description=__doc__)
    told.add_argument("--servers", type=int, default=500)
    told.add_argument("--users", type=int, default=2000)
    told.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    args = told.parse_args()
    far = Far()
    far.build()
    try:
        with tempfile.TemporaryDirectory(prefix="gp-load.", dir="/tmp") as folder:
            Path(folder).chmod(0o711)
            with many(Path(folder), far) as crowd:
                rows = measured(crowd, args.servers, args.users)
    finally:
        far.remove()
    told_as = tables.table(("what", "measured"), rows)
    print(told_as)
    if args.write:
        tables.write("measured", told_as)


def measured(crowd: Many, servers: int, users: int) -> list[tuple[str, str]]:
    """Everything, one after the other; each row is what was measured and the figure."""
    load_before = os.getloadavg()[0]
    rows: list[tuple[str, str]] = []
    make_users(crowd, users)
    rows.append((f"start of the Hub with {users} users, none active", seconds(restarted_hub(crowd))))
    began = time.monotonic()
    crowd.start(servers, within_s=1800)
    took = time.monotonic() - began
    rows.append((f"{servers} servers asked for {STARTS_AT_ONCE} at a time until all are ready", seconds(took)))
    memory = crowd.memory_mb()
    rows.append(("memory of the service / the Hub", f"{memory['service']:.0f} MB / {memory['hub']:.0f} MB"))
    rows.append(("memory of one agent (shared pages by share)", f"{memory['agents'] / servers:.1f} MB"))
    before = crowd.runs()
    with Sockets(crowd, PING_EVERY_S) as sockets:
        sockets.all_answer(within_s=120)
        rows += under_pings(crowd, sockets, servers)
        rows += pages(crowd)
        crowd.house.kill_hub()
        began = time.monotonic()
        crowd.house.start()
        serves = time.monotonic() - began
        crowd.wait_ready(within_s=600)
        all_ready = time.monotonic() - began
        sockets.all_answer(within_s=60)
        rows.append(("Hub killed and started: until its API answers / all are ready in it", both(serves, all_ready)))
        whole(servers, kept(crowd, before), servers - len(sockets.lost))
        rows.append(("servers and WebSockets kept through that", f"{servers} and {servers}"))
    crowd.service.kill()
    began = time.monotonic()
    crowd.service.start()
    up = time.monotonic() - began
    eventually("all links are back", lambda: crowd.metric("glidepath_links") >= servers, 600, every_s=0.5)
    linked = time.monotonic() - began
    eventually("all answer", crowd.all_answer, 300)
    rows.append(("service killed and started: until it is up / all links are back", both(up, linked)))
    whole(servers, kept(crowd, before))
    rows.append(("servers kept through that", str(servers)))
    return [("machine", machine(load_before)), *rows]


def whole(servers: int, *counts: int) -> None:
    """No table is made of a run that lost something."""
    if any(count != servers for count in counts):
        raise SystemExit(f"lost: of {servers} there are {' and '.join(map(str, counts))}")


def make_users(crowd: Many, count: int) -> None:
    for first in range(0, count, 200):
        names = [f"light-{number}" for number in range(first, min(first + 200, count))]
        assert crowd.house.api("POST", "/users", {"usernames": names}).status_code == 201


def restarted_hub(crowd: Many) -> float:
    crowd.house.kill_hub()
    return timed(crowd.house.start)


def under_pings(crowd: Many, sockets: Sockets, servers: int) -> list[tuple[str, str]]:
    """Latencies, CPU and descriptors while every WebSocket is pinged."""
    service = psutil.Process(crowd.service.pid)
    sockets.latencies_ms.clear()
    cpu, began = sum(service.cpu_times()[:2]), time.monotonic()
    requests_ms: list[float] = []
    with requests.Session() as session:
        while time.monotonic() - began < MEASURED_FOR_S:
            user = crowd.users[len(requests_ms) % len(crowd.users)]
            asked = time.monotonic()
            session.get(crowd.url(user), timeout=30).raise_for_status()
            requests_ms.append((time.monotonic() - asked) * 1000)
    share = (sum(service.cpu_times()[:2]) - cpu) / (time.monotonic() - began)
    pings = f"{servers / PING_EVERY_S:.0f} pings per second over {servers} WebSockets"
    return [
        (f"{pings}: answered after, p50 / p99", latency(sockets.latencies_ms)),
        ("a GET through proxy, relay and link meanwhile, p50 / p99", latency(requests_ms)),
        ("the service's CPU meanwhile", f"{share * 100:.0f} % of one core"),
        ("the service's open files", str(service.num_fds())),
    ]


def pages(crowd: Many) -> list[tuple[str, str]]:
    """What an operator opens."""
    first = timed(lambda: crowd.house.api("GET", "/users?limit=50").raise_for_status())
    active = timed(lambda: crowd.house.api("GET", "/users?state=active&limit=200").raise_for_status())
    listed = timed(lambda: crowd.service.ask("GET", "/servers").raise_for_status())
    return [
        ("the Hub's list of users, 50 of all / 200 active ones", f"{first * 1000:.0f} ms / {active * 1000:.0f} ms"),
        ("the service's list of all servers", f"{listed * 1000:.0f} ms"),
    ]


def kept(crowd: Many, before: dict[str, str]) -> int:
    after = crowd.runs()
    return sum(after.get(key) == run for key, run in before.items())


def timed(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def seconds(value: float) -> str:
    return f"{value:.1f} s"


def both(one: float, other: float) -> str:
    return f"{one:.1f} s / {other:.1f} s"


def latency(values_ms: list[float]) -> str:
    return f"{quantile(values_ms, 0.5):.1f} ms / {quantile(values_ms, 0.99):.1f} ms"


def machine(load_before: float) -> str:
    """What it ran on, and how busy that was, with this and with other things."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.machine())
    memory_gb = psutil.virtual_memory().total / 2**30
    return (
        f"{psutil.cpu_count()} cores of {model}, {memory_gb:.0f} GB; {os.environ['PROFILE']} build; "
        f"load {load_before:.1f} before it began, {os.getloadavg()[1]:.1f} in its last five minutes"
    )


if __name__ == "__main__":
    main()
