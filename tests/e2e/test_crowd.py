"""Many at once: nobody is lost, nobody is started twice, and a full site holds up nobody who can go elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from house import House
from service import site
from waiting import eventually, processes_of

ODD_NAMES = ["ada@example.org", "ünïcode", "o'brien & söhne", "a" * 255, "dots.and_under-scores"]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder: Path = tmp_path_factory.mktemp("crowd")
    folder.chmod(0o711)
    sites = [
        site("here", folder),
        site("slow", folder, process_slots=1, process_queue_delay_s=600),
    ]
    with House(folder, sites=sites, http_timeout=120) as house:
        yield house


def agents_of(run: str) -> int:
    return sum(process.is_agent for process in processes_of(run))


def test_64_spawns_at_once_become_64_servers(house: House) -> None:
    users = [f"stub-well-crowd{number}" for number in range(64)]
    with ThreadPoolExecutor(64) as pool:
        replies = list(pool.map(lambda user: house.ask_for(user, site="here"), users))
    assert {reply.status_code for reply in replies} <= {201, 202}, Counter(r.status_code for r in replies)
    for user in users:
        house.wait_ready(user, within_s=180)
    runs = {user: house.service.view(user)["run"] for user in users}
    assert len(set(runs.values())) == 64
    assert {user: agents_of(run) for user, run in runs.items()} == dict.fromkeys(users, 1)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(house.stop_server, users))
    for user in users:
        house.wait_gone(user, within_s=120)
    eventually("no process is left", lambda: not any(processes_of(run) for run in runs.values()), 60)


def test_150_queued_runs_do_not_hold_up_the_next_on_a_free_site(house: House) -> None:
    users = [f"stub-well-queue{number}" for number in range(150)]
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda user: house.ask_for(user, site="slow"), users))
    assert {reply.status_code for reply in replies} == {202}, Counter(r.status_code for r in replies)
    for user in users:
        house.service.wait_state(user, "queued", within_s=60)

    def each_has_a_place() -> bool:
        return sorted(house.service.view(user)["queue_position"] or 0 for user in users) == list(range(1, 151))

    eventually("everybody is told their place in the queue", each_has_a_place, 30, every_s=2)
    house.started("stub-well-next", site="here", within_s=60)
    assert {house.service.state(user) for user in users} == {"queued"}
    house.stopped("stub-well-next")
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(house.stop_server, users))
    for user in users:
        house.service.wait_state(user, "ended", within_s=60)
    assert {house.service.view(user)["end"]["reason"] for user in users} == {"cancelled"}


@pytest.mark.parametrize("user", ODD_NAMES, ids=lambda name: name[:24])
def test_odd_names_get_a_server_of_their_own(house: House, user: str) -> None:
    view = house.started(user, site="here")
    assert view["user"] == user
    person = house.person(user)
    person.login()
    lab = person.lab()
    assert lab.status_code == 200 and "jupyter-config-data" in lab.text, f"{lab.url}: {lab.text[:500]}"
    with person.kernel() as kernel:
        assert kernel.run("print(6 * 7)") == "42"
    house.stopped(user)


def test_named_servers_stand_beside_the_default_one(house: House) -> None:
    """A queued server named `lab` must not capture the default server's own `/lab`."""
    default = house.started("ada", site="here")
    assert house.ask_for("ada", "lab", site="slow").status_code == 202
    house.service.wait_state("ada", "queued", server="lab")
    person = house.person("ada")
    assert person.ask("GET", "lab").status_code == 200, "the default server's own page"
    named = house.started("ada", "second", site="here")
    assert named["run"] != default["run"]
    assert person.ask("GET", "api/status", server="second").status_code == 200
    house.stopped("ada", "second")
    assert person.ask("GET", "api/status").status_code == 200
    house.stop_server("ada", "lab")
    house.service.wait_state("ada", "ended", server="lab")
    house.stopped("ada")
