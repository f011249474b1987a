"""Everybody starts, stops, renames and cancels while everything dies. In the end all books agree.

`make churn` runs it long; `SEED=` and `KILLS=` choose. The same seed is the same plan of clients and deaths.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest
import requests

import churn_books
import churn_plan
from churn import Trace, World, tracebacks
from far import Far
from house import House
from people import quote
from service import DEADLINES, Service, site, sites_config
from waiting import NotInTime, eventually, free_port

KILLS = int(os.environ.get("KILLS") or 45)
SERVERS = int(os.environ.get("SERVERS") or (200 if KILLS > 100 else 80))
#: Not more at once than two cores carry beside the deaths.
ALIVE_AT_ONCE = int(os.environ.get("ALIVE") or (60 if KILLS > 100 else 30))
#: Of the site where servers wait in line.
SLOTS = {"slow": 10}
#: Nothing may be left of what has ended after two periods of looking at a site.
TWO_PERIODS_S = 2 * 5.0
#: Once nothing dies any more, everybody must be at rest within this time.
SETTLED_WITHIN_S = 150.0
#: Runs that have hung for longer than this on a machine that is busy with deaths are the churn's own doing.
PATIENT = DEADLINES | {"dialling_s": 60, "starting_s": 60, "doubt_s": 60}

#: Tracebacks in the Hub's log that are not of our making, with the reason.
TRACEBACKS = {
    r"RuntimeError: .* pending (spawn|check|stop)$": "JupyterHub gives a start that it interrupts one second to end, "
    "then answers 500 though the stop is under way; after a restart it does not stop what it has not found yet",
    r"KeyError: \('User %s has no such spawner": "JupyterHub's answer to a stop where another stop was quicker",
    r"asyncio.exceptions.CancelledError$": "JupyterHub's answer to a start that was stopped while it was waited for",
}


@pytest.fixture
def world(tmp_path: Path, far: Far) -> Iterator[World]:
    hub, hub_port = f"churn{os.getpid()}", free_port()
    starts = tmp_path / "starts"
    starts.touch()
    starts.chmod(0o666)
    sites = [
        site("here", tmp_path),
        site("far", tmp_path, far),
        site("slow", tmp_path, far, process_slots=SLOTS["slow"], process_queue_delay_s=3),
    ]
    hubs = [{"name": hub, "api_url": f"http://127.0.0.1:{hub_port}/hub/api"}]
    service = Service(tmp_path, sites_config(sites, far, deadlines=PATIENT), hubs)
    service.start()
    limits = {"active_server_limit": ALIVE_AT_ONCE, "concurrent_spawn_limit": 25}
    house = House(
        tmp_path / "hub",
        hub_name=hub,
        service=service,
        far=far,
        hub_settings={"JupyterHub": limits, "ConfigurableHTTPProxy": {"check_running_interval": 1}},
        environment={"HOUSE_STARTS": str(starts)},
    )
    house.hub_port = house.settings["hub_port"] = hub_port
    try:
        with house:
            yield World(house, service, Trace(tmp_path / "trace.log"), SERVERS)
    finally:
        service.stop()


@pytest.mark.timeout(600 + 20 * KILLS)
def test_scenario_10_the_service_killed_at_random_points_of_a_churn(world: World, tmp_path: Path) -> None:
    seed = int(os.environ.get("SEED") or 1)
    blows = churn_plan.blows(seed, KILLS)
    print(f"\nSEED={seed} KILLS={KILLS} SERVERS={SERVERS}: {dict(Counter(blow.whom for blow in blows))}", flush=True)
    world.trace.note("plan", seed=seed, kills=KILLS, servers=SERVERS, blows=[asdict(blow) for blow in blows])
    make_users(world)
    world.run(world.keep_service)
    world.run(world.watch)
    for client in range(churn_plan.CLIENTS):
        world.run(world.client, seed, client)
    for blow in blows:
        time.sleep(blow.pause_s)
        world.wait_for_front()
        world.strike(blow)
    world.end()
    world.service.wait_up(within_s=30)
    settled = settled_books(world, "after the churn")
    assert everyone_answers(world, settled) > ALIVE_AT_ONCE / 6, "nearly all that lived was lost"
    stop_all(world, settled)
    books = settled_books(world, "after all were stopped")
    assert not books.store and not books.hub
    print_answers(world)
    started = churn_books.starts(tmp_path / "starts")
    assert len(started) > KILLS / 2, f"SEED={seed}: only {len(started)} servers were started: that is no churn"
    doubled = {attempt: count for attempt, count in started.items() if count > 1}
    assert not doubled, f"SEED={seed}: servers that were started more than once: {doubled}"
    found = tracebacks(world.house.hub_log)
    assert_unexcused(found, seed)
    failed = sum(count for (_, status), count in world.trace.answers.items() if status == 500)
    assert failed <= found.total(), f"SEED={seed}: {failed} answers of 500, and {found.total()} tracebacks to judge"
    assert not world.trace.odd, f"SEED={seed}: {len(world.trace.odd)} wrong:\n" + "\n".join(world.trace.odd[:40])


def make_users(world: World) -> None:
    for user in world.users:
        assert world.house.api("POST", f"/users/{quote(user)}").status_code == 201


def settled_books(world: World, when: str) -> churn_books.Books:
    """Waits until all books agree, and still do after two periods; shows them."""
    world.trace.note(f"settling {when}")
    deadline = time.monotonic() + SETTLED_WITHIN_S
    while True:
        books = churn_books.read_books(world.house, world.service, SLOTS, world.sockets)
        if not books.differences():
            time.sleep(TWO_PERIODS_S)
            books = churn_books.read_books(world.house, world.service, SLOTS, world.sockets)
            if not books.differences():
                break
        if time.monotonic() > deadline:
            told = "\n".join(books.differences())
            print(f"\n{when}\n{books.table()}\n{told}", flush=True)
            world.trace.note("not settled", differences=books.differences())
            raise NotInTime(f"not at rest {when}:\n{books.table()}\n{told}")
        time.sleep(0.5)
    print(f"\n{when}\n{books.table()}", flush=True)
    world.trace.note(f"settled {when}", table=books.table())
    return books


def everyone_answers(world: World, books: churn_books.Books) -> int:
    """Through proxy, relay and link, each as itself; counts them. A server under its user's former name has no way in
    since the Hub was started again; it can only be stopped."""

    def ask(item: tuple[str, str]) -> bool:
        key, route = item
        if f"{route}/" != books.prefixes[key]:
            assert route.split("/")[2] in world.renamed, f"{key} believes to be at {books.prefixes[key]}, not {route}"
            return False

        def look() -> bool:
            reply = requests.get(f"{world.house.url}{route[1:]}/api", timeout=20)
            return reply.status_code == 200 and reply.json()["attempt"] == books.servers[key]

        eventually(f"{key} answers", look, 30)
        return True

    with ThreadPoolExecutor(8) as pool:
        answered = sum(pool.map(ask, books.routes.items()))
    print(f"{answered} of {len(books.routes)} answered, each as itself; the others' users were renamed", flush=True)
    world.trace.note("all answer", servers=answered)
    return answered


def stop_all(world: World, books: churn_books.Books) -> None:
    """Those in line first, as Glidepath's page does it: nobody may come to a place that another leaves."""
    for key in books.in_line:
        assert world.service.ask("DELETE", f"/servers/{key}").status_code in (200, 202)
    users = world.house.api("GET", "/users?state=ready&limit=1000").json()
    for user in users:
        for name in user["servers"]:
            reply = world.house.stop_server(user["name"], name)
            assert reply.status_code in (202, 204), reply.text


def print_answers(world: World) -> None:
    print("\nanswers:", ", ".join(f"{what} {status}: {n}" for (what, status), n in sorted(world.trace.answers.items())))


def assert_unexcused(found: Counter[str], seed: int) -> None:
    for line, count in found.items():
        print(f"traceback x{count}: {line}")
    unexcused = [line for line in found if not any(re.match(known, line) for known in TRACEBACKS)]
    assert not unexcused, f"SEED={seed}: tracebacks in the Hub's log: " + json.dumps(unexcused, indent=1)
