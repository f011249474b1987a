"""A real JupyterHub with the spawner: refusals, adoption, restarts. The service is the one with faults."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fake_service import FakeService
from hubs import Hub
from jupyterhub_glidepath.refusal import SpawnException

KEY = "hub.ada."
HERE = Path(__file__).parent


@pytest.fixture
async def hub(tmp_path: Path, service: FakeService, secret_file: Path) -> AsyncIterator[Hub]:
    folder = tmp_path / "hub"
    folder.mkdir()
    hub = Hub(folder, service.url, secret_file)
    yield hub
    await hub.close()


async def test_a_server_lives_through_hubs_and_outages(hub, service):
    await hub.up()
    await hub.api("POST", "/users/ada")
    assert await hub.start(options={"cores": 1, "site": "far"}) == 202
    await hub.until(lambda: KEY in service.servers)
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
    await hub.until(hub.is_ready)
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
    await hub.until(hub.is_ready)

    # It ends: the Hub learns of it at once, not at its next poll in 30 s.
    await service.end(KEY)
    await hub.until(hub.is_gone, timeout_s=5)
    assert not [asked for asked in service.asked if asked.startswith("DELETE")]

    # A new start works at once, and a stop.
    assert await hub.start() == 202
    await hub.until(lambda: service.servers[KEY]["state"] == "queued")
    await service.ready(KEY)
    await hub.until(hub.is_ready)
    status, _ = await hub.api("DELETE", "/users/ada/server")
    assert status in (202, 204)
    await hub.until(hub.is_gone)
    assert service.servers[KEY]["state"] == "ended"

    # The user is deleted, and with the user what the sites keep.
    status, _ = await hub.api("DELETE", "/users/ada")
    assert status == 204
    await hub.until(lambda: f"DELETE /v1/hubs/hub/servers/{KEY}/home" in service.asked)


#: A page that shows the state asks at the worst moment: after a start, before what the Hub does with its token.
CURIOUS_PAGE = """
from jupyterhub_glidepath.spawner import GlidepathSpawner
class Watched(GlidepathSpawner):
    async def start(self):
        url = await super().start()
        self.get_state()
        return url
c.JupyterHub.spawner_class = Watched
"""


@pytest.mark.parametrize("more", ["", CURIOUS_PAGE], ids=["quiet", "while a page shows the state"])
async def test_a_server_that_the_hub_lost_is_taken_back_with_its_token(hub, service, more):
    await hub.up(HUB_TEST_MORE=more)
    await hub.api("POST", "/users/ada")
    await hub.start()
    await hub.until(lambda: service.bodies)
    old = service.bodies[0]["env"]["JUPYTERHUB_API_TOKEN"]
    await service.ready(KEY)
    await hub.until(hub.is_ready)
    await hub.down(signal.SIGKILL)
    with sqlite3.connect(hub.folder / "hub.sqlite") as db:  # the Hub loses track, token and all
        db.execute("delete from servers")
        db.execute("update spawners set server_id = null, state = '{}'")
        db.execute("delete from oauth_clients where identifier = 'jupyterhub-user-ada'")
        db.execute("delete from api_tokens where note like 'Server at%'")
    await hub.up(HUB_TEST_MORE=more)
    assert (await hub.api("GET", "/user", token=old))[0] == 403
    service.adopt = old
    await hub.start()
    await hub.until(hub.is_ready)
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


async def test_the_server_of_a_renamed_user_stays_that_users(hub, service):
    await hub.up()
    await hub.api("POST", "/users/ada")
    await hub.start()
    await hub.until(lambda: service.bodies)
    token = service.bodies[0]["env"]["JUPYTERHUB_API_TOKEN"]
    await service.ready(KEY)
    await hub.until(hub.is_ready)
    assert (await hub.api("PATCH", "/users/ada", json={"name": "eve"}))[0] == 200
    await hub.down(signal.SIGKILL)
    await hub.up()
    await hub.until(lambda: hub.is_ready("eve"))

    # Somebody new gets the old name, and neither that server nor its end.
    await hub.api("POST", "/users/ada")
    service.adopt = token
    await hub.start()
    await hub.until(hub.is_gone)
    assert "who had this name before" in await hub.progress()
    service.adopt = None
    assert await hub.is_ready("eve")
    assert service.servers[KEY]["state"] == "ready"
    assert (await hub.api("GET", "/user", token=token))[1]["name"] == "eve", "its Hub token still works"

    status, _ = await hub.api("DELETE", "/users/eve/server")
    assert status in (202, 204)
    await hub.until(lambda: hub.is_gone("eve"))
    assert service.servers[KEY]["state"] == "ended"
    assert await hub.start("eve") == 202
    await hub.until(lambda: "hub.eve." in service.servers)


#: A Hub that is so busy that its interruption of a start takes longer than it waits for it.
BUSY_HUB = """
import asyncio
from jupyterhub_glidepath.spawner import GlidepathSpawner
class Busy(GlidepathSpawner):
    async def start(self):
        try:
            return await super().start()
        except asyncio.CancelledError:
            await asyncio.sleep(2)
            raise
c.JupyterHub.spawner_class = Busy
"""


@pytest.mark.parametrize("more", ["", BUSY_HUB], ids=["idle", "busy"])
async def test_a_start_that_is_stopped_leaves_nothing(hub, service, more):
    await hub.up(HUB_TEST_MORE=more)
    await hub.api("POST", "/users/ada")
    await hub.start()
    await hub.until(lambda: KEY in service.servers)
    status, _ = await hub.api("DELETE", "/users/ada/server")
    # The Hub answers 500 where ending the start takes it more than a second.
    assert status in ((500,) if more else (202, 204, 500))
    await hub.until(hub.is_gone)
    assert service.servers[KEY]["state"] == "ended"
    assert await hub.start() == 202, "a new start works"
    await hub.until(lambda: service.servers[KEY]["state"] == "queued")


async def test_refusals_deadlines_and_outages_are_told_and_never_counted(hub, service):
    await hub.up()
    await hub.api("POST", "/users/ada")
    problems = [{"field": "options.cores", "message": "must be a number <img src=x>"}]
    service.refuse_with = (422, {"code": "invalid", "title": "the options are wrong", "problems": problems}, {})
    for _ in range(3):
        await hub.start(options={"cores": "<img>"})
        await hub.until(hub.is_gone)
    assert "The options are wrong" in await hub.progress()
    assert "&lt;img" in await hub.progress()
    service.refuse_with = None
    for _ in range(3):
        await hub.start()
        await hub.until(lambda: service.servers.get(KEY, {}).get("state") == "queued")
        await service.end(KEY, "queue_deadline", message="no site had room in time")
        await hub.until(hub.is_gone)
    assert "No site had room in time" in await hub.progress()
    # Ready, but the Hub never gets an answer within http_timeout.
    service.relay_status = 503
    for _ in range(3):
        await hub.start()
        await hub.until(lambda: service.servers[KEY]["state"] == "queued")
        await service.ready(KEY)
        await hub.until(hub.is_gone)
    await service.down()
    for _ in range(3):
        await hub.start()
        await hub.until(hub.is_gone)
    assert "does not answer" in await hub.progress()
    await asyncio.sleep(3)
    assert hub.process.poll() is None, "consecutive_failure_limit = 2 was not reached"
    if SpawnException is not None:
        assert "Traceback" not in hub.log()


async def test_the_user_cancels_a_start(hub, service):
    await hub.up()
    await hub.api("POST", "/users/ada")
    await hub.start()
    await hub.until(lambda: KEY in service.servers)
    await hub.api("DELETE", "/users/ada/server")
    await hub.until(lambda: service.servers[KEY]["state"] == "ended")
    await hub.until(hub.is_gone)


async def test_a_cancel_at_the_service_while_the_hub_looks_for_the_server_frees_it(hub, service):
    await hub.up()
    await hub.api("POST", "/users/ada")
    await hub.start()
    await hub.until(lambda: KEY in service.servers)
    await hub.down(signal.SIGKILL)
    await hub.up()
    await service.end(KEY, "cancelled", exit_code=None)
    await hub.until(hub.is_gone, timeout_s=10)
    assert await hub.start() == 202


async def test_named_servers_start_and_end_apart(hub, service):
    await hub.up()
    await hub.api("POST", "/users/ada@example.org")
    for server in ("", "lab"):
        assert await hub.start("ada@example.org", server) == 202
    await hub.until(lambda: len(service.servers) == 2)
    assert set(service.servers) == {"hub.ada_40example_2eorg.", "hub.ada_40example_2eorg.lab"}
    for key in list(service.servers):
        await service.ready(key)
    await hub.until(lambda: hub.is_ready("ada@example.org", "lab"))
    await hub.until(lambda: hub.is_ready("ada@example.org"))
    await hub.api("DELETE", "/users/ada@example.org/servers/lab", json={"remove": True})
    await hub.until(lambda: service.servers["hub.ada_40example_2eorg.lab"]["state"] == "ended")
    assert await hub.is_ready("ada@example.org")


SLIPS = {
    "no scheme": ("c.GlidepathSpawner.service_url = '127.0.0.1:8090'", "must begin with http://"),
    "no secret file": ("c.GlidepathSpawner.secret_file = ''", "secret_file is not set"),
    "a missing secret": ("c.GlidepathSpawner.secret_file = '/nowhere/secret'", "/nowhere/secret"),
    "an open secret": ("import os; os.chmod(c.GlidepathSpawner.secret_file, 0o644)", "chmod 600"),
}


@pytest.mark.parametrize(("more", "told"), SLIPS.values(), ids=SLIPS)
async def test_a_slip_in_the_way_to_a_service_elsewhere_is_one_sentence_at_the_start(hub, more, told):
    hub.spawn(HUB_TEST_CONFIGURE="1", HUB_TEST_MORE=more)
    assert await asyncio.to_thread(hub.process.wait, 30) == 1
    sentence = next(line for line in hub.log().splitlines() if "Glidepath cannot start" in line)
    assert told in sentence
    assert "Traceback" not in hub.log()


async def test_what_else_goes_wrong_at_the_start_is_logged(hub):
    await hub.up(HUB_TEST_CONFIGURE="1", HUB_TEST_MORE="c.GlidepathSpawner.outage_patience = 'much'")
    await hub.until(lambda: "Glidepath did not begin with the Hub" in hub.log())
    assert "outage_patience" in hub.log()


async def test_a_wrong_config_is_one_readable_error_and_an_exit_code(tmp_path, secret_file, monkeypatch):
    program = tmp_path / "glidepath-spawner"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -B {HERE / "stub_spawner.py"} "$@"\n')
    program.chmod(0o755)
    hub = Hub(tmp_path, "", secret_file)
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
