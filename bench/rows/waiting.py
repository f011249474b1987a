"""What a thousand servers cost while nothing happens: waiting in a site's queue, and ready with nobody there.

In both the Hub is a real one and has all of them in its books; the ready ones are real processes behind links.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import requests

from given import Bench
from house import House
from hubs import ANSWER_WITHIN_S, hub
from net import Memory, Space, cpu_s
from service import Service, site
from table import Goal, Row
from waiting import eventually

SERVERS = 1000
AT_ONCE = 16
#: After the last of them came to where it stays: for a minute a site is looked at more often.
SETTLE_S = 65
#: So that what the Hub does every half minute is in it.
WATCHED_S = 60
ALL_WITHIN_S = 1800
#: Asked for in one request.
USERS_AT_ONCE = 200

#: Key, what it is, unit, goal.
FIGURES: tuple[tuple[str, str, str, Goal], ...] = (
    ("hub", "CPU of the Hub", "s/min", Goal(at_most=3)),
    ("service", "CPU of the service", "s/min", Goal(at_most=3)),
    ("transactions", "transactions of the store", "1/min", Goal(at_most=60)),
    ("changes", "changes in the store", "1/min", Goal(at_most=60)),
    ("queries", "queries of the backend", "1/min", Goal(at_most=150)),
    ("rss", "memory of the service", "MB", Goal(at_most=200)),
)
KINDS = {
    "pending": "a site without a free slot; queries do not grow with the number of servers",
    "ready": "real agents and servers that nobody visits; queries do not grow with the number of servers",
}


def rows(bench: Bench) -> Iterator[Row]:
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    with Space("waiting") as space, space.entered():
        for repetition in range(bench.repetitions):
            for kind, measure in (("pending", pending), ("ready", ready)):
                found = measure(bench, repetition)
                bench.say(f"{repetition + 1} {kind}: " + " ".join(f"{k}={v:.4g}" for k, v in found.items()))
                for key, value in found.items():
                    values[kind, key].append(value)
    for kind, remark in KINDS.items():
        for key, name, unit, goal in FIGURES:
            yield Row(
                f"{SERVERS} {kind}: {name}",
                unit,
                values[kind, key],
                lower_is_better=True,
                goal=goal,
                remark=remark if key == "queries" else "",
            )


def pending(bench: Bench, repetition: int) -> dict[str, float]:
    """One runs and takes the only slot, the others wait behind it."""
    folder = bench.folder / f"{repetition}-pending"
    full = site("here", folder, reach="tunnel", process_slots=1)
    with hub(bench, folder, {"JupyterHub": {"tornado_settings": {"slow_spawn_timeout": 0}}}, [full]) as (
        house,
        service,
    ):
        users = made(house, SERVERS + 1)

        def ask_for(user: str) -> None:
            assert ask(house, user).status_code == 202, user

        ask_for(users[0])
        house.wait_ready(users[0])
        for_all(ask_for, users[1:])
        wait_for(service, "queued")
        return watched(house, service)


def ready(bench: Bench, repetition: int) -> dict[str, float]:
    settings = {"JupyterHub": {"tornado_settings": {"slow_spawn_timeout": ANSWER_WITHIN_S}}}
    with hub(bench, bench.folder / f"{repetition}-ready", settings) as (house, service):
        users = made(house, SERVERS)

        def start(user: str) -> None:
            reply = ask(house, user)
            assert reply.status_code == 201, f"{user}: {reply.status_code} {reply.text[:500]}"

        for_all(start, users)
        wait_for(service, "ready")
        return watched(house, service)


def made(house: House, count: int) -> list[str]:
    """The users, in the Hub's books."""
    users = [f"light-{number}" for number in range(count)]
    for first in range(0, count, USERS_AT_ONCE):
        reply = house.api("POST", "/users", {"usernames": users[first : first + USERS_AT_ONCE]})
        assert reply.status_code == 201, reply.text
    return users


def ask(house: House, user: str) -> requests.Response:
    return requests.post(
        f"http://127.0.0.1:{house.port}/hub/api/users/{user}/server",
        headers={"Authorization": f"token {house.token}"},
        timeout=ANSWER_WITHIN_S + 10,
    )


def for_all(act: Callable[[str], None], users: list[str]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(act, users))


def wait_for(service: Service, state: str) -> None:
    """Until so many are there, and what that stirred has settled."""
    look = f'glidepath_runs{{site="here",state="{state}"}}'
    eventually(f"{SERVERS} are {state}", lambda: counted(service).get(look, 0) == SERVERS, ALL_WITHIN_S, every_s=1)
    time.sleep(SETTLE_S)


def watched(house: House, service: Service) -> dict[str, float]:
    """What a minute costs."""
    assert house.process is not None and service.child is not None
    processes = {"hub": [house.process.pid], "service": [service.child.pid]}
    cost = {name: cpu_s(pids) for name, pids in processes.items()}
    before, began = counted(service), time.monotonic()
    time.sleep(WATCHED_S)
    cost = {name: cpu_s(pids) - cost[name] for name, pids in processes.items()}
    after, minutes = counted(service), (time.monotonic() - began) / 60

    def grew(metric: str) -> float:
        return sum(value - before.get(name, 0) for name, value in after.items() if name.startswith(metric))

    found = {name: value / minutes for name, value in cost.items()}
    return found | {
        "transactions": grew("glidepath_store_transactions_total") / minutes,
        "changes": grew("glidepath_store_changes_total") / minutes,
        "queries": grew("glidepath_backend_queries_total") / minutes,
        "rss": Memory(processes["service"]).rss_kb / 1000,
    }


def counted(service: Service) -> dict[str, float]:
    """What the service counts, by name and labels."""
    text = requests.get(f"{service.facts['metrics']}/metrics", timeout=10).text
    return {name: float(value) for name, value in re.findall(r"^(glidepath_\S+) (\S+)$", text, re.M)}
