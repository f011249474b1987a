"""The oldest JupyterHub that is supported: spawn, refuse, adopt, crash."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from far import Far
from house import House
from people import text_of
from service import site
from test_survival import HTTP_TIMEOUT_S, lost_track, queued_through_a_kill_of_the_hub
from waiting import agent_of, eventually, server_of


@pytest.fixture(scope="module")
def house5(tmp_path_factory: pytest.TempPathFactory, far: Far) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("hub5")
    sites = [
        site("here", folder, preference=10),
        site("far", folder, far),
        site("full", folder, process_slots=1, preference=-50),
    ]
    with House(folder, hub="5", far=far, sites=sites, http_timeout=HTTP_TIMEOUT_S) as house:
        assert house.api("GET", "/info").json()["version"].startswith("5.4.")
        yield house


def test_a_person_works_far_away(house5: House) -> None:
    ada = house5.person("ada")
    ada.login()
    assert "The far site" in text_of(ada.form())
    ada.choose(site="far", cores=1)
    assert ada.progress()[-1].get("ready")
    assert "jupyter-config-data" in ada.lab().text
    with ada.kernel() as kernel:
        assert kernel.run("print(6 * 7)") == "42"
    house5.stopped("ada")


def test_a_refusal_is_told_in_words_and_does_not_count_against_the_hub(house5: House) -> None:
    for _ in range(6):
        house5.ask_for("bob", cores=1000)
        eventually("the refusal is over", lambda: not (house5.model("bob") or {}).get("pending"), 20)
    bob = house5.person("bob")
    bob.login()
    page = bob.choose(cores=1000)
    said = str(bob.progress()[-1]) if "spawn-pending" in page.url else text_of(page.text)
    assert "This machine" in said and "The far site" in said, said[:1500]
    assert house5.process is not None and house5.process.poll() is None
    house5.started("bob", site="here")
    house5.stopped("bob")


def test_a_server_that_the_hub_lost_is_found_and_a_fresh_login_works(house5: House) -> None:
    before = house5.started("ada", site="far")
    with house5.person("ada").kernel() as kernel:
        kernel.run("mark = 'the old kernel'")
        lost_track(house5, "ada")
        after = house5.started("ada", site="far")
        assert after["run"] == before["run"]
        kernel.connect()
        assert kernel.run("print(mark)") == "the old kernel"
    fresh = house5.person("ada")
    fresh.login()
    assert "jupyter-config-data" in fresh.lab().text
    house5.stopped("ada")


def test_a_queued_run_survives_the_hubs_sigkill(house5: House) -> None:
    queued_through_a_kill_of_the_hub(house5)


@pytest.mark.parametrize("victim", ["agent", "server"])
def test_a_killed_process_is_told_in_time(house5: House, victim: str) -> None:
    view = house5.started("stub-well-victim", site="here")
    process = agent_of(view["run"]) if victim == "agent" else server_of(view["run"])
    os.kill(process.pid, signal.SIGKILL)
    house5.wait_gone("stub-well-victim", within_s=15)
    assert house5.service.view("stub-well-victim")["end"]["reason"] in ("agent_lost", "killed")
    house5.started("stub-well-victim", site="here")
    house5.stopped("stub-well-victim")
