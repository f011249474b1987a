"""What a start takes by Hub, shim, service, agent and link, beside the Hub's own spawner of bare processes.

Both Hubs are the same real one and start the same small server, in turn. A start is over when the Hub answers that the
server is ready and the server answers through the Hub's proxy.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import requests

import places
from given import Bench
from house import House
from hubs import ANSWER_WITHIN_S, hub
from net import Failed, Space, cpu_s
from service import site
from table import NO_GOAL, Goal, Row
from waiting import eventually, free_port

AT_ONCE = 16
#: One after the other.
SINGLE = 8
#: Asked for by `AT_ONCE` users at a time, for the rate.
SUSTAINED = 64
GOAL = Goal(at_most_times=1.2)
OURS, ALIKE, THEIRS = "glidepath", "glidepath without cgroups", "SimpleLocalProcessSpawner"
REMARK = (
    "the Hub itself asks a server again after 0 to 0.2 s, then in longer steps, until it answers: ours answers its "
    "first question, a bare process only when it is there within milliseconds"
)
REMARK_ALIKE = (
    "the peer makes no cgroup and no account; to move a process into a cgroup the kernel may wait for 10 to 20 ms, "
    "whoever asks it to"
)
#: The servers that are started, by how long they take.
SERVERS = {"light": "there at once", "stub": "of Python"}
#: Key, name, unit, whether less is better, goal.
FIGURES: tuple[tuple[str, str, str, bool, Goal], ...] = (
    ("one", "one, until it is ready", "ms", True, GOAL),
    ("all", f"{AT_ONCE} at once, until all are ready", "ms", True, GOAL),
    ("each", f"{AT_ONCE} at once, each until it is ready", "ms", True, GOAL),
    ("rate", f"sustained, {AT_ONCE} at a time", "1/s", False, NO_GOAL),
    ("cpu", "the Hub's CPU for each, sustained", "ms", True, NO_GOAL),
)


@dataclass(frozen=True)
class Way:
    """One way to start one kind of server. What a user's name begins with chooses the command of ours."""

    name: str
    server: str
    users: str
    settings: dict[str, dict[str, Any]]
    #: Of the site of ours.
    options: dict[str, Any] = field(default_factory=dict)
    #: One after the other is all that is measured.
    singly: bool = False


def rows(bench: Bench) -> Iterator[Row]:
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    with Space("spawn") as space, space.entered():
        for repetition in range(bench.repetitions):
            for server in SERVERS:
                for way in (ours(server), *alike(server), simple(bench, server, repetition)):
                    bench.wait_quiet()
                    found = measured(bench, way, repetition)
                    told = " ".join(f"{key}={value:.4g}" for key, value in found.items())
                    bench.say(f"{repetition + 1} {server}, {way.name}: {told}")
                    for key, value in found.items():
                        values[server, key, way.name].append(value)
                values[server, "one", "bare"].append(bare_ms(bench, server, repetition))
    for server, words in SERVERS.items():
        for key, name, unit, lower, goal in FIGURES:
            yield Row(
                f"spawn, a server {words}: {name}",
                unit,
                values[server, key, OURS],
                {THEIRS: values[server, key, THEIRS]},
                lower_is_better=lower,
                goal=goal,
                limit=values.get((server, key, "bare"), ()),
                remark=REMARK if key == "one" else "",
            )

    yield Row(
        f"spawn, a server {SERVERS['light']}: one, without cgroups",
        "ms",
        values["light", "one", ALIKE],
        {THEIRS: values["light", "one", THEIRS]},
        lower_is_better=True,
        goal=GOAL,
        limit=values["light", "one", "bare"],
        remark=REMARK_ALIKE,
    )


def ours(server: str) -> Way:
    return Way(OURS, server, "light" if server == "light" else "stub-well", {})


def alike(server: str) -> list[Way]:
    """Ours, with no more around a process than the peer has."""
    if server != "light":
        return []
    return [Way(ALIKE, server, "light", {}, {"process_cgroup": "off"}, singly=True)]


def simple(bench: Bench, server: str, repetition: int) -> Way:
    """The Hub's own: a child of the Hub, under the Hub's account."""
    homes = bench.folder / f"{repetition}-{server}-homes"
    settings: dict[str, dict[str, Any]] = {
        "JupyterHub": {"spawner_class": f"jupyterhub.spawner.{THEIRS}"},
        THEIRS: {"home_dir_template": f"{homes}/{{username}}"},
        "Spawner": {"cmd": command(bench, server), "args": []},
    }
    return Way(THEIRS, server, "simple", settings)


def command(bench: Bench, server: str) -> list[str]:
    if server == "light":
        return [str(bench.light_server)]
    return [places.stub_python(), str(places.HERE / "servers" / "stub.py"), "well"]


def measured(bench: Bench, way: Way, repetition: int) -> dict[str, float]:
    """One Hub, from its start to its end."""
    told = {name: dict(of_class) for name, of_class in way.settings.items()}
    told.setdefault("JupyterHub", {})["tornado_settings"] = {"slow_spawn_timeout": ANSWER_WITHIN_S}
    folder = bench.folder / f"{repetition}-{way.server}-{way.name}".replace(" ", "-")
    sites = [site("here", folder, reach="tunnel", **way.options)]
    with hub(bench, folder, told, sites) as (house, _), ThreadPoolExecutor(AT_ONCE) as pool:
        users = [f"{way.users}-{number}" for number in range(AT_ONCE + SUSTAINED)]
        assert house.api("POST", "/users", {"usernames": users}).status_code == 201
        few, many = users[:AT_ONCE], users[AT_ONCE:]
        # Homes, accounts and modules are there before anything counts.
        all_started(house, pool, few)
        singles = []
        for user in few[:SINGLE]:
            singles.append(started_ms(house, user))
            stop(house, pool, [user])
        found = {"one": median(singles)}
        return found if way.singly else found | together(house, pool, few, many)


def together(house: House, pool: ThreadPoolExecutor, few: list[str], many: list[str]) -> dict[str, float]:
    """Many at a time: all of a few, and a few of many."""
    assert house.process is not None
    hub_alone = [house.process.pid]
    all_ms, each, _ = all_started(house, pool, few, hub_alone)
    took_ms, _, cost_s = all_started(house, pool, many, hub_alone)
    return {
        "all": all_ms,
        "each": median(each),
        "rate": len(many) / took_ms * 1000,
        "cpu": cost_s / len(many) * 1000,
    }


def all_started(
    house: House, pool: ThreadPoolExecutor, users: list[str], watched: Sequence[int] = ()
) -> tuple[float, list[float], float]:
    """Until all are ready, until each is, and the CPU seconds of the processes that are watched. Ends all of them."""
    before, began = cpu_s(watched), time.monotonic()
    each = list(pool.map(lambda user: started_ms(house, user), users))
    took_ms, cost_s = (time.monotonic() - began) * 1000, cpu_s(watched) - before
    stop(house, pool, users)
    return took_ms, each, cost_s


def started_ms(house: House, user: str) -> float:
    """Until the Hub says that it is ready, and it answers through the proxy."""
    began = time.monotonic()
    reply = requests.post(
        f"http://127.0.0.1:{house.port}/hub/api/users/{user}/server",
        headers={"Authorization": f"token {house.token}"},
        timeout=ANSWER_WITHIN_S + 10,
    )
    if reply.status_code != 201:
        raise Failed(f"{user}: {reply.status_code} {reply.text[:500]}")
    answer = requests.get(f"http://127.0.0.1:{house.port}/user/{user}/api", timeout=30)
    took_ms = (time.monotonic() - began) * 1000
    if answer.status_code != 200 or answer.json().get("version") not in SERVERS:
        raise Failed(f"the server of {user} answers {answer.status_code} {answer.text[:200]}")
    return took_ms


def stop(house: House, pool: ThreadPoolExecutor, users: list[str]) -> None:
    """Until the Hub has none of these."""

    def one(user: str) -> None:
        house.stop_server(user)
        house.wait_gone(user)

    list(pool.map(one, users))


def bare_ms(bench: Bench, server: str, repetition: int) -> float:
    """The server alone, until it answers."""
    home, port = bench.folder / f"{repetition}-{server}-bare", free_port()
    home.mkdir()
    told = {"JUPYTERHUB_SERVICE_URL": f"http://127.0.0.1:{port}/user/bare/", "JUPYTERHUB_SERVICE_PREFIX": "/user/bare/"}
    environ = os.environ | told | {"HOME": str(home), "JUPYTERHUB_USER": "bare"}
    began = time.monotonic()
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            command(bench, server), env=environ, cwd=home, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        eventually("the bare server answers", lambda: requests.get(f"http://127.0.0.1:{port}/").ok, 10, every_s=0.001)
        return (time.monotonic() - began) * 1000
    finally:
        process.kill()
        process.wait()
