"""Limits of a server's time with a real Lab in a real browser: what is told before, what ends, and what does not."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests
import websocket
from playwright.sync_api import BrowserContext

from browsers import login, open_notebook
from far import Far
from house import House
from people import Person, text_of
from service import DEADLINES, site
from test_browser import browser as browser
from test_browser import picture
from waiting import eventually, processes_of, stays

#: Hours in real life. `ada` is in the group `physics`, which this limit is for.
IDLE_S = 20
#: 30, 10 and 1 minute in real life.
WARN_BEFORE_S = [100, 40, 5]
NOTICE = "THIS SERVER ENDS SOON"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, far: Far) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("limits")
    folder.chmod(0o711)
    policy = [{"idle_s": 3600}, {"groups": ["physics"], "idle_s": IDLE_S}]
    sites = [site("timed", folder, far, preference=10), site("calm", folder, policy=policy)]
    more = {"warn_before_s": WARN_BEFORE_S, "deadlines": DEADLINES | {"starting_s": 110}}
    with House(folder, far=far, sites=sites, more_config=more) as house:
        yield house


def test_scenario_9_walltime_near_is_told_in_lab_and_kept_as_the_reason(house: House, browser: BrowserContext) -> None:
    first = house.started("bob", within_s=100, site="timed", walltime_min=2)
    assert first["limits"]["walltime_s"] == 120
    page = browser.pages[0]
    login(page, house, "bob")
    page.goto(house.url + "user/bob/lab?reset")
    page.wait_for_selector("#jp-main-dock-panel", timeout=60_000)
    notice = page.locator(".jp-DirListing-item", has_text=NOTICE).first
    notice.wait_for(timeout=60_000)
    # What changes no state is shown within moments, not at once.
    told = eventually("the service shows the warning", lambda: warned(house, "bob"))
    assert told["state"] == "ready", "it is told before the end"
    (near,) = told["near_ends"]
    assert near["reason"] == "walltime" and near["before_s"] in WARN_BEFORE_S, near
    picture(page, "ends-soon")
    bob = house.person("bob")
    bob.login()
    shown = text_of(bob.page("services/glidepath/").text)
    assert "its time is over then" in shown and "of 2 minutes" in shown, shown

    view = house.service.wait_state("bob", "ended", within_s=130)
    assert view["end"]["reason"] == "walltime", view["end"]
    assert view["end"]["message"] == "the server lived for the 2 minutes it was granted"
    assert view["near_ends"] == []
    house.wait_gone("bob")
    assert "Your last server came to a limit" in text_of(bob.form())
    assert not processes_of(first["run"])
    assert ends(house, "walltime", "timed") == 1, "one closed record"

    # Again at once; the notice of the one before is gone.
    second = house.started("bob", within_s=100, site="timed", walltime_min=5)
    assert second["run"] != first["run"] and second["near_ends"] == []
    listed = bob.ask("GET", "api/contents").json()["content"]
    assert not [one["name"] for one in listed if NOTICE in one["name"]]
    house.stopped("bob")
    assert ends(house, "walltime", "timed") == 1


def test_a_long_silent_computation_is_not_culled_while_an_open_tab_with_an_idle_kernel_is(
    house: House, browser: BrowserContext
) -> None:
    ada = house.person("ada")
    house.started("ada", "busy", within_s=120, site="calm")
    with ada.kernel("busy") as kernel:
        kernel.send(f"import time\ntime.sleep({20 * IDLE_S})")
        eventually("the kernel computes", lambda: kernels(ada, "busy")[0]["execution_state"] == "busy")
    computes_since = time.monotonic()
    house.started("ada", "term", within_s=120, site="calm")
    type_into_a_terminal(ada, "term", "while sleep 2; do date; done\r")
    house.started("ada", "tab", within_s=120, site="calm")
    page = browser.pages[0]
    login(page, house, "ada")
    with saving(ada, "tab"):  # Lab alone may take longer than the limit on a busy machine
        page.goto(house.url + "user/ada/tab/lab?reset")
        page.wait_for_selector("#jp-main-dock-panel", timeout=60_000)
        open_notebook(page)
    page.keyboard.type("print('6 x 7 =', 6 * 7)")
    page.keyboard.press("Shift+Enter")
    page.locator(".jp-OutputArea-output", has_text="6 x 7 = 42").first.wait_for(timeout=60_000)

    # From here on nobody touches the tab. It stays open, and asks its server again and again.
    view = house.service.wait_state("ada", "ended", server="tab", within_s=6 * IDLE_S)
    assert view["end"]["reason"] == "idle", view["end"]
    limit = f"was active for {IDLE_S} seconds, the limit of Calm (for members of physics)"
    assert limit in view["end"]["message"], view["end"]
    person = house.person("ada")
    person.login()
    assert limit in text_of(person.page("services/glidepath/").text)

    # A silent kernel that nobody watches, for many times the limit; and a terminal that writes.
    left_s = max(1.0, 4 * IDLE_S - (time.monotonic() - computes_since))
    others = [("busy", "ready"), ("term", "ready")]
    stays("they live", lambda: [(one, house.service.state("ada", one)) for one, _ in others] == others, left_s, 1)
    (still,) = kernels(ada, "busy")
    assert still["execution_state"] == "busy" and still["connections"] == 0, still
    for server in ("busy", "term"):
        house.stopped("ada", server)


@contextmanager
def saving(person: Person, server: str) -> Iterator[None]:
    """Somebody who saves a file again and again, and so keeps the server."""
    over = threading.Event()

    def save() -> None:
        while not over.wait(3):
            person.upload("notes.txt", b"still here", server)

    saver = threading.Thread(target=save)
    saver.start()
    try:
        yield
    finally:
        over.set()
        saver.join()


def kernels(person: Person, server: str) -> list[dict[str, Any]]:
    """As the server tells of them."""
    found: list[dict[str, Any]] = person.ask("GET", "api/kernels", server).json()
    return found


def type_into_a_terminal(person: Person, server: str, line: str) -> None:
    """Opens one, types, and goes away."""
    name = person.ask("POST", "api/terminals", server).json()["name"]
    url = person.url(f"terminals/websocket/{name}", server).replace("http://", "ws://", 1)
    socket = websocket.create_connection(url, header=[f"Authorization: token {person.token}"], timeout=20)
    socket.recv()
    socket.send(json.dumps(["stdin", line]))
    socket.recv()
    socket.close()


def warned(house: House, user: str) -> dict[str, Any] | None:
    """The service's view of a server once its near end is in it, and when it has come to its end."""
    view: dict[str, Any] = house.service.view(user)
    return view if view["near_ends"] or view["state"] == "ended" else None


def ends(house: House, reason: str, where: str) -> int:
    """How many runs the service counted that ended so."""
    metrics = requests.get(house.service.facts["metrics"] + "/metrics", timeout=10).text
    label = f'glidepath_ends_total{{reason="{reason}",site="{where}"}} '
    return sum(int(float(line.removeprefix(label))) for line in metrics.splitlines() if line.startswith(label))
