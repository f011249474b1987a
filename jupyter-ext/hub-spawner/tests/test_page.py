"""The page of servers on a real Hub behind its real proxy, as a browser without scripts sees it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from html import unescape
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from fake_service import FakeService
from hubs import Hub

PROXY = os.environ.get("GLIDEPATH_PROXY") or shutil.which("configurable-http-proxy") or ""
HTML = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module", autouse=True)
def _there_is_a_proxy() -> None:
    assert PROXY, "GLIDEPATH_PROXY names no configurable-http-proxy: run scripts/shim-tests"


class Browser:
    """One person's browser: cookies, redirects, forms."""

    def __init__(self, hub: Hub, user: str) -> None:
        self.hub, self.user = hub, user
        self.session = aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))

    async def log_in(self) -> None:
        page = await self.get("/hub/login")
        form = {"username": self.user, "password": "demo", "_xsrf": _field(page, "_xsrf")}
        async with self.session.post(f"{self.hub.public_url}/hub/login", data=form) as reply:
            assert reply.status == 200, await reply.text()

    async def get(self, path: str, status: int = 200, **headers: str) -> str:
        headers = {"Sec-Fetch-Mode": "navigate"} | headers
        async with self.session.get(self.hub.public_url + path, headers=headers) as reply:
            text = await reply.text()
            assert reply.status == status, text
            return text

    async def post(self, path: str, form: dict[str, str]) -> tuple[int, str]:
        async with self.session.post(self.hub.public_url + path, data=form) as reply:
            return reply.status, await reply.text()

    async def ask(self, body: Any, **headers: str) -> tuple[int, Any]:
        """As the form's script does."""
        headers = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"} | headers
        url = f"{self.hub.public_url}/services/glidepath/placement"
        async with self.session.post(url, json=body, headers=headers) as reply:
            return reply.status, await reply.json(content_type=None)


async def _routed(hub: Hub) -> bool:
    """The Hub, and behind its login the page, can be reached through the proxy."""
    assert hub.session is not None
    for path in ("/hub/login", "/services/glidepath/"):
        async with hub.session.get(hub.public_url + path, allow_redirects=False) as reply:
            if reply.status not in (200, 302):
                return False
    return True


def _field(page: str, name: str) -> str:
    found = re.search(rf'name="{name}"\s+value="([^"]*)"', page)
    assert found, page
    return unescape(found[1])


@pytest.fixture
async def hub(tmp_path: Path, service: FakeService, secret_file: Path) -> AsyncIterator[Hub]:
    hub = Hub(tmp_path, service.url, secret_file, PROXY)
    await hub.up(HUB_TEST_CONFIGURE="1")
    await hub.until(lambda: _routed(hub))
    yield hub
    await hub.close()


async def test_two_logins_of_one_browser_at_the_same_moment_end_where_each_wanted_to_go(hub, service):
    await service.set("hub.bob.", run="01C", state="ready", life="alive", user="bob")
    op = Browser(hub, "op")
    await op.log_in()
    page = f"{hub.public_url}/services/glidepath/"
    as_page = {"Sec-Fetch-Mode": "navigate"}
    async with op.session.get(f"{page}?all=1", headers=as_page, allow_redirects=False) as first:
        # The other request was on its way before this one's cookie arrived.
        op.session.cookie_jar.clear(lambda cookie: cookie.key.startswith("service-glidepath-oauth-state"))
    async with op.session.get(page, headers=as_page, allow_redirects=False):
        pass
    assert "bob" in await op.get(first.headers["Location"])
    assert "bob" not in await op.get("/services/glidepath/")


async def test_people_see_and_cancel_their_servers_and_only_operators_those_of_others(hub, service):
    verdicts = [
        {"site": "far", "title": f"Far {HTML}", "fits": True, "chosen": True, "sentence": HTML},
        {"site": "here", "title": "Here", "fits": False, "chosen": False, "sentence": "has no GPU"},
    ]
    run = {"life": "alive", "site": "far", "verdicts": verdicts, "message": f"waiting {HTML}", "user": "ada"}
    await service.set("hub.ada.", run="01A", state="queued", **run)
    await service.set("hub.ada.lab", run="01B", state="ready", **run)
    await service.set("hub.bob.", **(run | {"user": "bob", "run": "01C", "state": "ready"}))
    await service.end("hub.bob.", exit_code=None, signal=9, message=f"killed {HTML}")
    ada, bob, op, grace = (Browser(hub, name) for name in ("ada", "bob", "op", "grace"))
    for browser in (ada, bob, op, grace):
        await browser.log_in()

    page = await ada.get("/services/glidepath/")
    assert "Default server" in page
    assert ">lab" in page
    assert "Here</strong>: has no GPU" in page
    assert "bob" not in page
    assert "<img" not in page

    page = await bob.get("/services/glidepath/")
    assert "signal 9 (SIGKILL)" in page
    assert "&lt;img src=x" in page
    assert "<img" not in page
    assert "Cancel" not in page

    # Others' servers: operators only, by scope or as administrators.
    assert "Cancel" not in await bob.get("/services/glidepath/?all=1")
    for operator in (op, grace):
        page = await operator.get("/services/glidepath/?all=1")
        assert "ada · lab" in page

    # Exactly the named server and run.
    page = await ada.get("/services/glidepath/")
    token = _field(page, "_xsrf")
    status, _ = await bob.post("/services/glidepath/cancel", {"key": "hub.ada.", "run": "01A", "_xsrf": "x"})
    assert status == 403
    bobs_token = (await bob.get("/services/glidepath/list")) and token
    status, _ = await bob.post("/services/glidepath/cancel", {"key": "hub.ada.", "run": "01A", "_xsrf": bobs_token})
    assert status == 403
    assert service.servers["hub.ada."]["state"] == "queued"
    status, _ = await ada.post("/services/glidepath/cancel", {"key": "hub.bob.", "run": "01C", "_xsrf": token})
    assert status == 404
    status, page = await ada.post("/services/glidepath/cancel", {"key": "hub.ada.", "run": "01A", "_xsrf": token})
    assert status == 200
    assert "told to end" in page
    assert service.servers["hub.ada."]["state"] == "ended"
    assert service.servers["hub.ada.lab"]["state"] == "ready"

    # The open page may look again; a page of the same origin that a user's server made may not.
    script = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"}
    assert "lab" in await ada.get("/services/glidepath/list", **script, **{"X-XSRFToken": token})
    assert "lab" not in await ada.get("/services/glidepath/list", status=403, **script)

    # Away: told, and back again.
    await service.down()
    assert "does not answer, for a few seconds now" in await ada.get("/services/glidepath/")
    await service.up()
    assert "lab" in await ada.get("/services/glidepath/")

    # The live form.
    status, _ = await Browser(hub, "x").ask({"options": {}})
    assert status == 403
    status, answer = await ada.ask({"user": "ada", "server": "", "options": {"cores": "99"}})
    assert status == 200
    assert answer["problems"] == [{"field": "options.cores", "message": "too many"}]
    assert service.bodies[-1] == {"user": "ada", "server": "", "groups": [], "options": {"cores": "99"}}
    assert (await ada.ask({"user": "bob"}))[0] == 403
    assert (await ada.ask({}, **{"Sec-Fetch-Site": "cross-site"}))[0] == 403
    assert (await ada.ask([]))[0] == 400
    for browser in (ada, bob, op, grace):
        await browser.session.close()


async def test_the_page_tells_when_a_server_ends_and_why(hub, service):
    in_an_hour = (datetime.now(timezone.utc) + timedelta(hours=1)).isoformat()
    in_ten_minutes = (datetime.now(timezone.utc) + timedelta(minutes=10)).isoformat()
    message = f"A server ends after 1 hour in which nothing is active (for members of {HTML})."
    limits = {"walltime_s": 28800, "lives_until": in_an_hour, "idle_s": 3600, "unattended_s": None, "message": message}
    near = [{"reason": "idle", "ends_at": in_ten_minutes, "before_s": 600}]
    run = {"run": "01A", "life": "alive", "site": "far", "user": "ada"}
    await service.set("hub.ada.", state="ready", limits=limits, near_ends=near, **run)
    ada = Browser(hub, "ada")
    await ada.log_in()
    page = await ada.get("/services/glidepath/")
    assert "in about 60 minutes, of 8 hours" in page
    assert "It ends in about 10 minutes: nothing goes on in it" in page
    assert "for members of &lt;img" in page
    assert "<img" not in page

    # The warning is taken back; the limits stay.
    await service.set("hub.ada.", near_ends=[])
    page = await ada.get("/services/glidepath/")
    assert "nothing goes on in it" not in page
    assert "of 8 hours" in page

    # An end is told by its limit, and the form says so too.
    await service.end("hub.ada.", reason="idle", message="nothing was active for 1 hour")
    page = await ada.get("/services/glidepath/")
    assert "Nothing was active for 1 hour" in page
    assert "of 8 hours" not in page
    assert "Your last server came to a limit." in await ada.get("/hub/spawn/ada")
    await ada.session.close()


async def test_a_form_logs_in_where_it_asks_by_itself(hub, service):
    ada = Browser(hub, "ada")
    await ada.log_in()
    assert (await ada.ask({"options": {}}))[0] == 403
    as_for_an_image = {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Site": "same-origin"}
    await ada.get("/services/glidepath/placement", status=204, **as_for_an_image)
    assert (await ada.ask({"options": {}}))[0] == 200
    await ada.session.close()
