"""What everybody who keeps books says of the servers of one House, side by side.

The Hub's records, the proxy's routes, the service's store, the processes and the folders of jobs: at rest they must
name the same servers. A server is named by its written key.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import requests

from house import House
from service import Service, server_key
from waiting import alive

AGENT = b"glidepath-agent"


@dataclass(frozen=True)
class Labelled:
    """A process of a job of this House."""

    pid: int
    key: str
    attempt: str
    is_agent: bool
    #: Where the server believes to be reached; empty for an agent.
    prefix: str


@dataclass
class Books:
    """Each kind of book, as key -> what it says there."""

    hub: dict[str, str] = field(default_factory=dict)
    routes: dict[str, str] = field(default_factory=dict)
    store: dict[str, str] = field(default_factory=dict)
    agents: dict[str, str] = field(default_factory=dict)
    servers: dict[str, str] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)
    #: Where each server believes to be reached.
    prefixes: dict[str, str] = field(default_factory=dict)
    #: Servers that wait for a place at a site that is full: that is rest.
    in_line: set[str] = field(default_factory=set)
    #: What is in no book of servers and must not be there at rest.
    stray: list[str] = field(default_factory=list)

    TITLES = {
        "hub": "records of the Hub",
        "routes": "routes of the proxy",
        "store": "runs alive in the store",
        "agents": "agents",
        "servers": "processes of servers",
        "folders": "folders of jobs",
    }

    def differences(self) -> list[str]:
        """Every server that one book names and another does not; every one that is not at rest."""
        named = {kind: set(getattr(self, kind)) for kind in self.TITLES}
        found = list(self.stray)
        for key in sorted(set().union(*named.values())):
            if key in self.in_line:
                continue
            missing = [self.TITLES[kind] for kind in named if key not in named[kind]]
            if missing:
                said = {kind: getattr(self, kind)[key] for kind in named if key in named[kind]}
                found.append(f"{key} is not in: {', '.join(missing)}; elsewhere: {said}")
            elif (self.hub[key], self.store[key]) != ("ready", "ready"):
                found.append(f"{key} is {self.hub[key]} in the Hub and {self.store[key]} in the store")
            elif len({self.agents[key], self.servers[key], self.folders[key]}) > 1:
                found.append(
                    f"{key}: {self.agents[key]}, {self.servers[key]} and {self.folders[key]} are several lives"
                )
        return found

    def table(self) -> str:
        rows = [f"{title:<28}{len(getattr(self, kind)):>6}" for kind, title in self.TITLES.items()]
        rows += [f"{'(in line at a full site)':<28}{len(self.in_line):>6}", f"{'stray':<28}{len(self.stray):>6}"]
        return "\n".join(rows)


def read_books(house: House, service: Service, slots: dict[str, int], sockets: Iterable[str] = ()) -> Books:
    """All books as they stand; asks each of them once. `slots`: of the sites that have so many; `sockets`: folders that
    jobs ever had outside their own."""
    books = Books()
    hub = service.hub
    key_in_hub = {}
    listed = house.api("GET", "/users?include_stopped_servers=1&limit=1000").json()
    for user in listed:
        for name, server in user["servers"].items():
            state = server["pending"] or ("ready" if server["ready"] else "")
            # A server goes by the name that its user had when it was started.
            asked_as = (server.get("state") or {}).get("user") or user["name"]
            key_in_hub[person(user["name"]), name] = key = server_key(hub, asked_as, name)
            if state:
                books.hub[key] = state
    for route, told in _routes(house).items():
        if "user" in told:
            # The Hub does not tell the proxy of a rename.
            whose = (person(told["user"]), told["server_name"])
            books.routes[key_in_hub.get(whose) or server_key(hub, told["user"], told["server_name"])] = route
    key_of_run = {}
    with sqlite3.connect(f"file:{service.state_dir / 'glidepath.db'}?mode=ro", uri=True) as store:
        for run, key, state, is_alive, settled in store.execute(
            "SELECT run, server_key, state, alive, settled FROM runs"
        ):
            key_of_run[run] = key
            if is_alive:
                books.store[key] = state
            elif not settled:
                books.stray.append(f"{key}: run {run} has ended and is not settled")
        alive_runs = "SELECT run FROM runs WHERE alive = 1"
        orders = store.execute(f"SELECT count(*) FROM orders WHERE run NOT IN ({alive_runs})").fetchone()[0]
        if orders:
            books.stray.append(f"{orders} launch orders of runs that have ended")
    for process in labelled(hub):
        of = books.agents if process.is_agent else books.servers
        if process.key in of:
            books.stray.append(f"{process.key} has a second {'agent' if process.is_agent else 'server'}: {process}")
        of[process.key] = process.attempt
        if process.prefix:
            books.prefixes[process.key] = process.prefix
    work = house.folder.parent
    books.stray += [f"{left} is left" for left in work.glob("jobs-*/staging/*")]
    in_use = socket_folders(work)
    books.stray += [f"{folder} is left" for folder in sockets if folder not in in_use and Path(folder).exists()]
    for job in work.glob("jobs-*/jobs/*"):
        run = job.name.rpartition("-")[0]
        books.folders[key_of_run.get(run, job.name)] = job.name
    for name, places in slots.items():
        here = {key for key, folder in books.folders.items() if (work / f"jobs-{name}" / "jobs" / folder).exists()}
        if len(here & books.agents.keys()) == places:
            waiting = {key for key in here - books.agents.keys() if books.store.get(key) == "queued"}
            books.in_line |= {key for key in waiting if books.hub.get(key) in ("spawn", "check")}
    return books


def person(user: str) -> str:
    """Who it is, under whatever name: a rename of the churn adds to the first one."""
    return user.partition("_")[0]


def labelled(hub: str) -> list[Labelled]:
    """All live processes of jobs of this Hub: agents, and servers, which are agents' children."""
    marks = (b"GLIDEPATH_ATTEMPT=", f"GLIDEPATH_KEY={hub}.".encode())
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environ = (entry / "environ").read_bytes()
            if marks[1] not in environ:
                continue
            words = dict(word.split(b"=", 1) for word in environ.split(b"\0") if b"=" in word)
            pid = int(entry.name)
            if not alive(pid) or b"GLIDEPATH_ATTEMPT" not in words:
                continue
            argv = (entry / "cmdline").read_bytes().split(b"\0")
            is_agent = AGENT in argv[0] and b"run" in argv[1:3]
            key, attempt = words[b"GLIDEPATH_KEY"].decode(), words[b"GLIDEPATH_ATTEMPT"].decode()
            if not is_agent and AGENT in argv[0]:
                continue  # a job or a server that is being set up: not there yet
            prefix = words.get(b"JUPYTERHUB_SERVICE_PREFIX", b"").decode()
            found.append(Labelled(pid, key, attempt, is_agent, prefix))
        except (OSError, ValueError, KeyError, IndexError):
            continue
    return found


def socket_folders(work: Path) -> set[str]:
    """Folders of sockets that jobs have outside their own, as their records tell."""
    found = set()
    for record in [*work.glob("jobs-*/jobs/*/job.json"), *work.glob("jobs-*/staging/*/job.json")]:
        try:
            folder = str(json.loads(record.read_text())["socket_dir"])
        except (OSError, ValueError):
            continue
        if not folder.startswith(str(work)):
            found.add(folder)
    return found


def twice_alive(hub: str) -> list[str]:
    """Keys of which two servers live at the same moment: seen together, and both still there when looked at again."""
    by_key: defaultdict[str, list[Labelled]] = defaultdict(list)
    for process in labelled(hub):
        if not process.is_agent:
            by_key[process.key].append(process)
    return [
        f"{key} is alive twice: {processes}"
        for key, processes in by_key.items()
        if len(processes) > 1 and _all(alive, processes) and _all(alive, processes)
    ]


def starts(file: Path) -> dict[str, int]:
    """How often a server was started, by attempt; written by the stand-in servers themselves."""
    counted: defaultdict[str, int] = defaultdict(int)
    for line in file.read_text().splitlines():
        counted[line.split()[0]] += 1
    return dict(counted)


def _routes(house: House) -> dict[str, dict[str, str]]:
    reply = requests.get(
        f"http://127.0.0.1:{house.settings['proxy_api_port']}/api/routes",
        headers={"Authorization": f"token {house.settings['proxy_secret']}"},
        timeout=20,
    )
    found: dict[str, dict[str, str]] = reply.json()
    return found


def _all(test: Callable[[int], bool], processes: list[Labelled]) -> bool:
    return all(test(process.pid) for process in processes)
