"""Many servers at once behind one service: started, connected by a WebSocket each, measured.

Their programs are `light_server` of the testkit, so that hundreds fit a small machine. The Hub's proxy stands apart, as
it must where open WebSockets are to live through a restart of the Hub.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import requests
import websocket

import churn_books
from far import Far
from house import House
from people import quote
from service import DEADLINES, Service, site, sites_config
from waiting import eventually, free_port

#: Asked for at once; the Hub hashes two secrets per start.
STARTS_AT_ONCE = 16


class Many:
    """A House with its proxy and service apart, and many servers."""

    def __init__(self, house: House, service: Service) -> None:
        self.house, self.service = house, service
        self.users: list[str] = []

    def start(self, count: int, site: str = "far", within_s: float = 60) -> None:
        """So many more servers, ready in the Hub."""
        new = [f"light-{number}" for number in range(len(self.users), len(self.users) + count)]
        with ThreadPoolExecutor(STARTS_AT_ONCE) as pool:
            list(pool.map(lambda user: self._ask_for(user, site), new))
        self.users += new
        self.wait_ready(within_s)

    def _ask_for(self, user: str, site: str) -> None:
        def look() -> bool:
            reply = self.house.ask_for(user, site=site, cores=1, memory_mb=128)
            assert reply.status_code in (201, 202, 429), reply.text
            return reply.status_code != 429

        eventually(f"{user} is on its way", look, 120, every_s=1)

    def wait_ready(self, within_s: float) -> float:
        """Until the Hub has all of them ready; the seconds that it took."""
        began = time.monotonic()
        eventually(f"{len(self.users)} are ready", lambda: self.ready() >= set(self.users), within_s, every_s=0.5)
        return time.monotonic() - began

    def ready(self) -> set[str]:
        return {user["name"] for page in self._pages("ready") for user in page if user["servers"][""]["ready"]}

    def _pages(self, state: str) -> Iterator[list[dict[str, Any]]]:
        for offset in range(0, 100_000, 200):
            page = self.house.api("GET", f"/users?state={state}&limit=200&offset={offset}").json()
            yield page
            if len(page) < 200:
                return

    def runs(self) -> dict[str, str]:
        """Key -> run of every server that the service has ready."""
        reply = self.service.ask("GET", "/servers").json()
        return {one["key"]: one["run"] for one in reply["servers"] if one["state"] == "ready"}

    def url(self, user: str, path: str = "api") -> str:
        return f"{self.house.url}user/{quote(user)}/{path}"

    def all_answer(self) -> bool:
        with ThreadPoolExecutor(16) as pool:
            return all(pool.map(self._answers, self.users))

    def _answers(self, user: str) -> bool:
        try:
            return requests.get(self.url(user), timeout=20).status_code == 200
        except requests.RequestException:
            return False

    def metric(self, name: str) -> float:
        text = requests.get(f"{self.service.facts['metrics']}/metrics", timeout=10).text
        return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(f"{name} ")))

    def memory_mb(self) -> dict[str, float]:
        """Of service and Hub, and of all agents and all servers together; what processes share is counted once."""
        jobs = churn_books.labelled(self.service.hub)
        return {
            "service": rss_mb(self.service.pid),
            "hub": rss_mb(self.house.process.pid if self.house.process else 0),
            "agents": sum(pss_mb(job.pid) for job in jobs if job.is_agent),
            "servers": sum(pss_mb(job.pid) for job in jobs if not job.is_agent),
        }


class Sockets:
    """A WebSocket to each server, pinged all the time: each ping is text that the server sends back."""

    def __init__(self, many: Many, every_s: float) -> None:
        self.every_s = every_s
        self.latencies_ms: list[float] = []
        #: Whose is lost, and by what.
        self.lost: dict[str, str] = {}
        self._selector = selectors.DefaultSelector()
        self._over = threading.Event()
        self._sent: dict[str, float] = {}
        #: When the last ping was sent that was answered.
        self._heard = dict.fromkeys(many.users, 0.0)
        with ThreadPoolExecutor(8) as pool:
            self._sockets = dict(zip(many.users, pool.map(lambda user: _dial(many.url(user)), many.users), strict=True))
        for user, one in self._sockets.items():
            self._selector.register(one, selectors.EVENT_READ, user)
        self._thread = threading.Thread(target=self._ping, daemon=True)

    def __enter__(self) -> Sockets:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(20)
        for one in self._sockets.values():
            one.close(timeout=0)

    def all_answer(self, within_s: float) -> float:
        """Until each has answered a ping that was sent from now on; the seconds that it took."""
        began = time.monotonic()

        def look() -> bool:
            waiting = [user for user, sent in self._heard.items() if sent < began]
            assert not self.lost, f"{len(self.lost)} WebSockets were lost: {list(self.lost.items())[:5]}"
            return not waiting

        eventually("each WebSocket answers", look, within_s)
        return time.monotonic() - began

    def _ping(self) -> None:
        users = list(self._sockets)
        due = {user: time.monotonic() + self.every_s * number / len(users) for number, user in enumerate(users)}
        while not self._over.is_set():
            now = time.monotonic()
            for user in users:
                if due[user] <= now and user not in self._sent and user not in self.lost:
                    self._send(user)
                    due[user] = now + self.every_s
            for key, _ in self._selector.select(0.01):
                self._receive(key.data)

    def _send(self, user: str) -> None:
        self._sent[user] = time.monotonic()
        try:
            self._sockets[user].send("ping")
        except (websocket.WebSocketException, OSError) as error:
            self._lose(user, error)

    def _receive(self, user: str) -> None:
        try:
            opcode, _ = self._sockets[user].recv_data()
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                raise ConnectionError("closed")
        except (websocket.WebSocketException, OSError) as error:
            self._lose(user, error)
            return
        sent = self._sent.pop(user, None)
        if sent is not None:
            self._heard[user] = sent
            self.latencies_ms.append((time.monotonic() - sent) * 1000)

    def _lose(self, user: str, error: Exception) -> None:
        self.lost[user] = f"{type(error).__name__}: {error}"
        self._selector.unregister(self._sockets[user])
        self._sent.pop(user, None)


@contextmanager
def many(folder: Path, far: Far, **hub_limits: Any) -> Iterator[Many]:
    """The House, before its first server."""
    hub, hub_port = f"many{os.getpid()}", free_port()
    hubs = [{"name": hub, "api_url": f"http://127.0.0.1:{hub_port}/hub/api"}]
    patient = DEADLINES | {"dialling_s": 120, "starting_s": 120, "doubt_s": 120}
    log = {"format": "text", "level": "info"}
    sites = [site("here", folder), site("far", folder, far)]
    service = Service(folder, sites_config(sites, far, deadlines=patient, log=log), hubs)
    service.start()
    limits = {"concurrent_spawn_limit": 64, "last_activity_interval": 30} | hub_limits
    house = House(
        folder / "hub",
        hub_name=hub,
        service=service,
        far=far,
        http_timeout=120,
        hub_settings={"JupyterHub": limits, "ConfigurableHTTPProxy": {"should_start": False}},
    )
    house.hub_port = house.settings["hub_port"] = hub_port
    proxy = proxy_process(house)
    try:
        with house:
            yield Many(house, service)
    finally:
        proxy.kill()
        proxy.wait(10)
        service.stop()


def _dial(url: str) -> websocket.WebSocket:
    return websocket.create_connection(url.replace("http://", "ws://", 1), timeout=30)


def rss_mb(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss) / 2**20 if pid else 0.0


def pss_mb(pid: int) -> float:
    try:
        return float(psutil.Process(pid).memory_full_info().pss) / 2**20
    except psutil.Error:
        return 0.0


def quantile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")


def proxy_process(house: House) -> subprocess.Popen[bytes]:
    """The Hub's proxy as a process of its own."""
    told = house.settings
    command = [told["proxy"], "--ip", "127.0.0.1", "--port", str(house.port)]
    command += ["--api-ip", "127.0.0.1", "--api-port", str(told["proxy_api_port"])]
    command += ["--error-target", f"http://127.0.0.1:{told['hub_port']}/hub/error", "--log-level", "warn"]
    with (house.folder / "proxy.log").open("ab") as log:
        return subprocess.Popen(
            command,
            env=os.environ | {"CONFIGPROXY_AUTH_TOKEN": told["proxy_secret"]},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
