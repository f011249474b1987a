"""A real JupyterHub with the spawner: refusals, adoption, restarts. The service is the one with faults."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from fake_service import FakeService
from jupyterhub_glidepath.refusal import SpawnException

KEY = "hub.ada."
HERE = Path(__file__).parent


class Hub:
    """The process, and what a user's script does with it."""

    def __init__(self, folder: Path, service: FakeService | None, secret_file: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.env = {
            **os.environ,
            "HUB_TEST_FOLDER": str(folder),
            "HUB_TEST_PORT": str(self.port),
            "HUB_TEST_SECRET": str(secret_file),
            "HUB_TEST_SERVICE": service.url if service else "",
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.session: aiohttp.ClientSession | None = None

    async def up(self, **env: str) -> None:
        self.spawn(**env)
        for _ in range(600):
            assert self.process.poll() is None, self.log()
            try:
                status, _ = await self.api("GET", "/")
                if status == 200:
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)
        raise AssertionError(self.log())

    def spawn(self, **env: str) -> None:
        with (self.folder / "hub.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub", "-f", str(HERE / "hub_config.py"), "--debug"],
                cwd=self.folder,
                env=self.env | env,
                stdout=log,
                stderr=log,
            )

    async def down(self, signum: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return await asyncio.to_thread(self.process.wait, 30)

    def log(self) -> str:
        return (self.folder / "hub.log").read_text(errors="replace")[-8000:]

    async def api(self, method: str, path: str, token: str = "test-token-0123456789abcdef", **kwargs: Any) -> Any:
        if self.session is None:
            self.session = aiohttp.ClientSession()
        async with self.session.request(
            method, f"http://127.0.0.1:{self.port}/hub/api{path}", headers={"Authorization": f"token {token}"}, **kwargs
        ) as reply:
            return reply.status, await reply.json() if reply.content_type == "application/json" else await reply.text()

    async def start(self, user: str = "ada", server: str = "", options: dict[str, Any] | None = None) -> int:
        path = f"/users/{user}/servers/{server}" if server else f"/users/{user}/server"
        status, _ = await self.api("POST", path, json=options or {})
        return status

    async def state(self, user: str = "ada", server: str = "") -> dict[str, Any] | None:
        _, model = await self.api("GET", f"/users/{user}")
        return model["servers"].get(server)

    async def is_ready(self, user: str = "ada", server: str = "") -> bool:
        state = await self.state(user, server)
        return bool(state and state["ready"])

    async def is_gone(self, user: str = "ada", server: str = "") -> bool:
        state = await self.state(user, server)
        return state is None or (not state["ready"] and not state["pending"])

    async def progress(self, user: str = "ada") -> str:
        _, text = await self.api("GET", f"/users/{user}/server/progress")
        return text

    def client_secret(self, user: str = "ada") -> tuple[str, str]:
        with sqlite3.connect(self.folder / "hub.sqlite") as db:
            rows = db.execute(
                "select secret, allowed_scopes from oauth_clients where identifier = ?", (f"jupyterhub-user-{user}",)
            )
            return next(iter(rows))


@pytest.fixture
async def hub(tmp_path: Path, service: FakeService, secret_file: Path) -> AsyncIterator[Hub]:
    folder = tmp_path / "hub"
    folder.mkdir()
    hub = Hub(folder, service, secret_file)
    yield hub
    if hub.session:
        await hub.session.close()
    if hub.process:
        await hub.down(signal.SIGKILL)


async def until(true: Any, timeout_s: float = 30.0, hub: Hub | None = None) -> None:
    for _ in range(int(timeout_s / 0.1)):
        result = true()
        if await result if asyncio.iscoroutine(result) else result:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("waited in vain\n" + (hub.log() if hub else ""))


async def test_a_server_lives_through_hubs_and_outages(hub, service):
    await hub.up()
    await hub.api("POST", "/users/ada")
    assert await hub.start(options={"cores": 1, "site": "far"}) == 202
    await until(lambda: KEY in service.servers, hub=hub)
    assert service.bodies[0]["options"] == {"cores": 1, "site": "far"}
    assert service.bodies[0]["prefix"] == "/user/ada/"
    run = service.servers[KEY]["run"]

    # The Hub is killed while the run is queued, for longer than http_timeout.
    await hub.down(signal.SIGKILL)
    await hub.up()
    await asyncio.sleep(4)
    state = await hub.state()
    assert state["pending"] == "check"
    await service.ready(KEY)
    await until(hub.is_ready, hub=hub)
    assert service.servers[KEY]["run"] == run
    assert len(service.bodies) == 1, "submitted once"

    # The link is cut, and the service away, while the Hub restarts.
    await hub.down()
    service.relay_status = 503
    await hub.up()
    await asyncio.sleep(4)
    await service.down()
    await asyncio.sleep(4)
    service.relay_status = 200
    await service.up()
    await until(hub.is_ready, hub=hub)

    # It ends: the Hub learns of it at once, not at its next poll in 30 s.
    await service.end(KEY)
    await until(hub.is_gone, timeout_s=5, hub=hub)
    assert not [asked for asked in service.asked if asked.startswith("DELETE")]

    # A new start works at once, and a stop.
    assert await hub.start() == 202
    await until(lambda: service.servers[KEY]["state"] == "queued", hub=hub)
    await service.ready(KEY)
    await until(hub.is_ready, hub=hub)
    status, _ = await hub.api("DELETE", "/users/ada/server")
    assert status in (202, 204)
    await until(hub.is_gone, hub=hub)
    assert service.servers[KEY]["state"] == "ended"


async def test_a_server_that_the_hub_lost_is_taken_back_with_its_token(hub, service):
    await hub.up()
    await hub.api("POST", "/users/ada")
    await hub.start()
    await until(lambda: service.bodies, hub=hub)
    old = service.bodies[0]["env"]["JUPYTERHUB_API_TOKEN"]
    await service.ready(KEY)
    await until(hub.is_ready, hub=hub)
    await hub.down(signal.SIGKILL)
    with sqlite3.connect(hub.folder / "hub.sqlite") as db:  # the Hub loses track, token and all
        db.execute("delete from servers")
        db.execute("update spawners set server_id = null, state = '{}'")
        db.execute("delete from oauth_clients where identifier = 'jupyterhub-user-ada'")
        db.execute("delete from api_tokens where note like 'Server at%'")
    await hub.up()
    assert (await hub.api("GET", "/user", token=old))[0] == 403
    service.adopt = old
    await hub.start()
    await until(hub.is_ready, hub=hub)
    status, user = await hub.api("GET", "/user", token=old)
    assert (status, user["name"]) == (200, "ada"), "the server's Hub token works again"
    new = service.bodies[1]["env"]["JUPYTERHUB_API_TOKEN"]
    assert new != old
    assert (await hub.api("GET", "/user", token=new))[0] == 403, "the unused one does not"
    secret, scopes = hub.client_secret()
    from jupyterhub.utils import compare_token

    compare_token(secret, old)  # raises when the OAuth client's secret is another
    assert "access:servers!server=ada/" in scopes
    assert "read:users:name" in scopes, "what the operator allows it is not lost"


async def test_refusals_deadlines_and_outages_are_told_and_never_counted(hub, service):
    await hub.up()
    await hub.api("POST", "/users/ada")
    problems = [{"field": "options.cores", "message": "must be a number <img src=x>"}]
    service.refuse_with = (422, {"code": "invalid", "title": "the options are wrong", "problems": problems}, {})
    for _ in range(3):
        await hub.start(options={"cores": "<img>"})
        await until(hub.is_gone, hub=hub)
    assert "the options are wrong" in await hub.progress()
    assert "&lt;img" in await hub.progress()
    service.refuse_with = None
    for _ in range(3):
        await hub.start()
        await until(lambda: service.servers.get(KEY, {}).get("state") == "queued", hub=hub)
        await service.end(KEY, "queue_deadline", message="no site had room in time")
        await until(hub.is_gone, hub=hub)
    assert "no site had room in time" in await hub.progress()
    # Ready, but the Hub never gets an answer within http_timeout.
    service.relay_status = 503
    for _ in range(3):
        await hub.start()
        await until(lambda: service.servers[KEY]["state"] == "queued", hub=hub)
        await service.ready(KEY)
        await until(hub.is_gone, hub=hub)
    await service.down()
    for _ in range(3):
        await hub.start()
        await until(hub.is_gone, hub=hub)
    assert "does not answer" in await hub.progress()
    await asyncio.sleep(3)
    assert hub.process.poll() is None, "consecutive_failure_limit = 2 was not reached"
    if SpawnException is not None:
        assert "Traceback" not in hub.log()


async def test_the_user_cancels_a_start(hub, service):
    await hub.up()
    await hub.api("POST", "/users/ada")
    await hub.start()
    await until(lambda: KEY in service.servers, hub=hub)
    await hub.api("DELETE", "/users/ada/server")
    await until(lambda: service.servers[KEY]["state"] == "ended", hub=hub)
    await until(hub.is_gone, hub=hub)


async def test_a_cancel_at_the_service_while_the_hub_looks_for_the_server_frees_it(hub, service):
    await hub.up()
    await hub.api("POST", "/users/ada")
    await hub.start()
    await until(lambda: KEY in service.servers, hub=hub)
    await hub.down(signal.SIGKILL)
    await hub.up()
    await service.end(KEY, "cancelled", exit_code=None)
    await until(hub.is_gone, hub=hub, timeout_s=10)
    assert await hub.start() == 202


async def test_named_servers_start_and_end_apart(hub, service):
    await hub.up()
    await hub.api("POST", "/users/ada@example.org")
    for server in ("", "lab"):
        assert await hub.start("ada@example.org", server) == 202
    await until(lambda: len(service.servers) == 2, hub=hub)
    assert set(service.servers) == {"hub.ada_40example_2eorg.", "hub.ada_40example_2eorg.lab"}
    for key in list(service.servers):
        await service.ready(key)
    await until(lambda: hub.is_ready("ada@example.org", "lab"), hub=hub)
    await until(lambda: hub.is_ready("ada@example.org"), hub=hub)
    await hub.api("DELETE", "/users/ada@example.org/servers/lab", json={"remove": True})
    await until(lambda: service.servers["hub.ada_40example_2eorg.lab"]["state"] == "ended", hub=hub)
    assert await hub.is_ready("ada@example.org")


async def test_a_wrong_config_is_one_readable_error_and_an_exit_code(tmp_path, secret_file, monkeypatch):
    program = tmp_path / "glidepath-spawner"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -B {HERE / "stub_spawner.py"} "$@"\n')
    program.chmod(0o755)
    hub = Hub(tmp_path, None, secret_file)
    hub.spawn(
        HUB_TEST_CONFIGURE="1",
        GLIDEPATH_SPAWNER_BIN=str(program),
        HUB_TEST_MORE="c.GlidepathSpawner.service_config = {'site': [{'title': 'nameless'}], 'tpyo': 1}",
    )
    assert await asyncio.to_thread(hub.process.wait, 30) == 1
    log = hub.log()
    assert "Glidepath cannot start" in log
    assert "site[0].name: is missing" in log
    assert "tpyo: no such key" in log
    assert "Traceback" not in log
