"""Against the service's own program: the wire, and the embedded life cycle. Starting servers is tested end to end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tornado import web

from conftest import make_spawner, until
from jupyterhub_glidepath import spawner as module
from jupyterhub_glidepath.client import Client, Refused, read_secret
from jupyterhub_glidepath.connection import close_all
from jupyterhub_glidepath.embedded import Embedded, HubFacts
from jupyterhub_glidepath.events import Feed
from jupyterhub_glidepath.form import OPTIONS

BUILT = Path(__file__).resolve().parents[3] / "target" / "debug" / "glidepath-spawner"
PROGRAM = os.environ.get("GLIDEPATH_SPAWNER_BIN") or str(BUILT)
HUB = HubFacts("hub", "http://127.0.0.1:8081/hub/api", "/")


@pytest.fixture(scope="module", autouse=True)
def _the_service_is_built() -> None:
    assert os.access(PROGRAM, os.X_OK), f"{PROGRAM} is not there: run scripts/shim-tests"


class House:
    """A folder with the real service in it, and Hubs that come and go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "state"
        self.site = {
            "name": "here",
            "title": "This machine",
            "backend": "process",
            "process": {"work_root": str(folder / "jobs"), "allow_shared_account": True},
        }
        self._hubs: list[tuple[Embedded, asyncio.Task[None]]] = []
        self.stops_with_hub = False

    def hub(self, **settings: Any) -> Embedded:
        log = logging.getLogger("embedded")
        embedded = Embedded(self.folder, HUB, {"site": [self.site], **settings}, log, lambda: self.stops_with_hub)
        self._hubs.append((embedded, asyncio.create_task(embedded.run())))
        return embedded

    async def hub_ends(self) -> None:
        _, task = self._hubs.pop()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    def attached(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads((self.folder / "service.json").read_text())
            return found
        return {"pid": 0}

    async def close(self) -> None:
        self.stops_with_hub = True
        if not self._hubs and self.attached()["pid"]:
            await self.hub().address()
        while self._hubs:
            await self.hub_ends()


@pytest.fixture
async def house(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setenv("GLIDEPATH_SPAWNER_BIN", PROGRAM)
    folder = Path(tempfile.mkdtemp(prefix="glidepath-test-", dir="/var/tmp"))
    folder.chmod(0o711)  # jobs' accounts must be able to pass it
    house = House(folder)
    yield house
    await close_all()
    await house.close()
    shutil.rmtree(folder)


@pytest.fixture
async def client(house: House) -> AsyncIterator[Client]:
    hub = house.hub()
    client = Client("hub", hub.address, lambda: read_secret(hub.secret_file))
    yield client
    await client.close()


async def test_attach_restart_and_replace_keep_the_addresses(house):
    assert await house.hub().first_problem() is None
    first = house.attached()
    await house.hub_ends()
    await house.hub().address()
    assert house.attached()["pid"] == first["pid"], "attached"
    os.kill(first["pid"], signal.SIGKILL)
    await until(lambda: house.attached()["pid"] not in (0, first["pid"]))
    second = house.attached()
    await house.hub_ends()
    await house.hub(log={"level": "debug"}).address()
    third = house.attached()
    assert len({first["pid"], second["pid"], third["pid"]}) == 3
    for each in (second, third):
        assert each["relays"] == first["relays"], "the Hub's proxy has its routes there"
        assert each["api"] == first["api"]


@pytest.mark.parametrize("hub", ["that started it", "that found it"])
async def test_nobody_is_refused_while_the_service_is_started_again(house, hub):
    embedded = house.hub()
    await embedded.address()
    if hub == "that found it":
        await house.hub_ends()
        embedded = house.hub()
        await embedded.address()
    await until(lambda: len(embedded._listeners._kept) == 3, 20)
    first = house.attached()
    doors = [urlsplit(url) for url in (first["api"], first["metrics"], *first["relays"].values())]
    os.kill(first["pid"], signal.SIGKILL)
    answered = 0
    while answered < 3 or house.attached()["pid"] in (0, first["pid"]):
        for door in doors:
            reader, writer = await asyncio.open_connection(door.hostname, door.port)  # refused: the test fails
            writer.write(b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert (await asyncio.wait_for(reader.read(), 30)).startswith(b"HTTP/1.1 "), door
            writer.close()
        answered += 1
    assert house.attached()["api"] == first["api"]


async def test_who_connects_to_a_service_that_cannot_start_again_is_refused(house, monkeypatch):
    embedded = house.hub()
    await embedded.address()
    await until(lambda: len(embedded._listeners._kept) == 3, 20)
    first = house.attached()
    door = urlsplit(first["api"])
    (house.folder / "ports.json").write_text("{")
    os.kill(first["pid"], signal.SIGKILL)

    async def refused() -> bool:
        try:
            _, writer = await asyncio.open_connection(door.hostname, door.port)
        except ConnectionRefusedError:
            return True
        writer.close()
        return False

    for _ in range(300):
        if await refused():
            break
        await asyncio.sleep(0.1)
    assert await refused()
    assert "ports.json" in str(embedded.problem)


async def test_all_problems_of_a_config_are_told(house):
    problem = await house.hub(tpyo=1, site=[{"name": "Bad Name", "backend": "process"}]).first_problem()
    for words in ("tpyo", "Bad Name"):
        assert words in str(problem)
    assert not house.attached()["pid"]


async def test_the_wire_is_what_the_client_reads(client):
    assert await client.servers() == []
    assert (await client.view("hub.ada.")).over
    assert (await client.stop("hub.ada.")).over
    html = await client.form({"user": "ada", "live_url": "/services/glidepath/placement"})
    assert 'name="cores"' in html
    assert "/services/glidepath/placement" in unescape(html)
    placement = await client.placement({"user": "ada", "options": {"cores": 1}})
    assert [verdict.title for verdict in placement.verdicts] == ["This machine"]
    assert (await client.placement({"user": "ada", "options": {"cores": "x"}})).problems
    body = {"spawn_id": "1", "argv": ["x"], "env": {}, "prefix": "/user/ada/", "options": {"cores": "x", "tpyo": 1}}
    with pytest.raises(Refused) as refused:
        await client.start("hub.ada.", body)
    assert refused.value.problem.status == 422
    assert len(refused.value.problem.fields) >= 2
    with pytest.raises(Refused) as refused:
        await client.view("other.ada.")
    assert refused.value.problem.status == 404


async def test_the_options_are_those_that_the_service_knows(client):
    options = dict.fromkeys(OPTIONS, "x")
    problems = (await client.placement({"user": "ada", "options": options})).problems
    assert not [said for _, said in problems if "no such option" in said]


async def test_the_feed_follows_the_real_stream(client):
    feed = Feed(client, logging.getLogger("feed"))
    task = asyncio.create_task(feed.run())
    assert await feed.synced(30)
    assert feed.silent_for_s == 0
    task.cancel()


async def test_wrong_options_reach_the_user_with_every_field(house, monkeypatch):
    monkeypatch.setattr(module, "FIRST_LOOK_S", 30)
    hub = house.hub()
    spawner = make_spawner(await hub.address(), hub.secret_file)
    spawner.user_options = {"cores": "many", "memory_mb": -1, "site": "nowhere"}
    with pytest.raises(web.HTTPError) as raised:
        await spawner.start()
    assert raised.value.status_code == 400
    for name in ("cores", "memory_mb", "site"):
        assert f"- {name}: " in raised.value.jupyterhub_message
    assert await spawner.poll() == 0
