"""A service that stands apart from its Hub, and is really away for a while: nobody starts it again but its operator."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from urllib.parse import urljoin

import pytest

from house import House
from people import Person
from service import Service, site, sites_config
from waiting import alive, eventually, free_port, processes_of, server_of, stays

#: Short, so that outages longer than it can be waited for.
HTTP_TIMEOUT_S = 5
LONGER_S = HTTP_TIMEOUT_S + 4


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[House, Service]]:
    folder = tmp_path_factory.mktemp("apart")
    folder.chmod(0o711)
    hub_port = free_port()
    sites = [
        site("here", folder),
        site("queue", folder, process_queue_delay_s=3000, preference=-50),
    ]
    hubs = [{"name": "hub", "api_url": f"http://127.0.0.1:{hub_port}/hub/api"}]
    service = Service(folder, sites_config(sites, None), hubs)
    service.start()
    house = House(folder / "hub", service=service, http_timeout=HTTP_TIMEOUT_S)
    house.hub_port = house.settings["hub_port"] = hub_port
    try:
        with house:
            yield house, service
    finally:
        service.stop()


def test_the_user_cancels_a_queued_run_after_the_hub_was_killed(apart: tuple[House, Service]) -> None:
    house, service = apart
    assert house.ask_for("bob", site="queue").status_code == 202
    run = service.wait_state("bob", "queued")["run"]
    house.kill_hub()
    house.restart_hub()
    bob = house.person("bob")
    bob.login()
    stays("it is still queued", lambda: service.state("bob") == "queued", LONGER_S)
    assert (house.model("bob") or {}).get("pending") == "check", "the Hub looks for it"
    page = bob.page("services/glidepath/")
    assert page.status_code == 200 and "busy site" in page.text, page.text[:1000]
    assert cancel_on_page(bob, page.text, run) < 400
    view = service.wait_state("bob", "ended")
    assert view["run"] == run and view["end"]["reason"] in ("cancelled", "stopped")
    house.wait_gone("bob")
    stays("nothing of it starts", lambda: not processes_of(run), 3)
    assert house.started("bob", site="here")["run"] != run
    house.stopped("bob")


def cancel_on_page(person: Person, page: str, run: str) -> int:
    """Presses the cancel button of that run."""
    form = next(form for form in re.findall(r"<form\b.*?</form>", page, re.DOTALL) if run in form)
    action = re.search(r'action="([^"]*)"', form)
    fields = dict(re.findall(r'<input[^>]*name="([^"]*)"[^>]*value="([^"]*)"', form))
    here = person.house.url + "services/glidepath/"
    where = urljoin(here, action.group(1) if action else "")
    return person.session.post(where, data=fields, headers={"Referer": here}, timeout=60).status_code


def test_a_hub_restarted_with_the_service_down_stops_nothing(apart: tuple[House, Service]) -> None:
    house, service = apart
    view = house.started("ada", site="here")
    server = server_of(view["run"])
    with house.person("ada").kernel() as kernel:
        kernel.run("mark = 'still me'")
        service.kill()
        house.stop_hub()
        house.start()
        stays("the server lives", lambda: alive(server.pid), LONGER_S)
        service.start()
        house.wait_ready("ada")
        kernel.connect()
        assert kernel.run("print(mark)") == "still me"
    assert service.view("ada")["run"] == view["run"]
    house.stopped("ada")


def test_a_start_asked_for_while_the_service_is_away_begins_when_it_is_back(apart: tuple[House, Service]) -> None:
    house, service = apart
    service.kill()
    assert house.ask_for("bob", site="here").status_code == 202
    time.sleep(2)
    service.start()
    house.wait_ready("bob")
    house.stopped("bob")


def test_polls_of_a_silent_service_end_no_server(apart: tuple[House, Service]) -> None:
    house, service = apart
    view = house.started("bob", site="here")
    service.kill()
    stays("the Hub keeps it", lambda: (house.model("bob") or {}).get("ready"), 8, every_s=1)
    service.start()
    eventually("it answers again", lambda: house.person("bob").ask("GET", "api/status").status_code == 200, 20)
    assert service.view("bob")["run"] == view["run"]
    house.stopped("bob")
