"""Servers that go wrong, and what the user is told: reason, exit code, last lines; then a new start works."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from house import House
from people import text_of
from waiting import agent_of, eventually, processes_of, server_of

#: The user is told of an end within so many seconds.
TOLD_WITHIN_S = 15


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("ends")
    folder.chmod(0o711)
    with House(
        folder, more_config={"deadlines": {"dialling_s": 12, "starting_s": 6, "doubt_s": 30, "grace_s": 3}}
    ) as house:
        yield house


def failure(house: House, user: str, within_s: float = 40) -> tuple[dict[str, Any], dict[str, Any]]:
    """Asks for a server that will not come up: the last word of the progress page, and how the service tells it."""
    person = house.person(user)
    house.ask_for(user)
    events = person.progress(within_s=within_s)
    assert events[-1].get("failed"), events[-1]
    return events[-1], house.service.view(user)["end"]


def test_a_server_that_exits_before_it_listens_is_told_with_code_and_last_lines(house: House) -> None:
    event, end = failure(house, "stub-exits-1")
    assert end["reason"] == "exited" and end["exit_code"] == 3
    assert "cannot open the configuration of the moon" in end["last_lines"]
    assert "3" in event["message"], event
    assert "configuration of the moon" in event["message"] + event.get("html_message", ""), event


def test_what_a_server_wrote_stays_text_on_every_page(house: House) -> None:
    event, end = failure(house, "stub-exits-2")
    attack = '<img src=x onerror="document.title=666">'
    assert attack in end["last_lines"], "the attack must have arrived, or nothing is shown here"
    assert "<img" not in event.get("html_message", "")
    person = house.person("stub-exits-2")
    person.login()
    for path in ("hub/spawn-pending/stub-exits-2", "hub/home", "hub/spawn/stub-exits-2", "services/glidepath/"):
        page = person.page(path)
        assert "<img src=x" not in page.text, path
    shown = text_of(person.page("services/glidepath/").text)
    assert "configuration of the moon" in shown, shown[:2000]


def test_a_server_that_never_listens_ends_at_its_deadline(house: House) -> None:
    event, end = failure(house, "stub-silent-1")
    assert end["reason"] == "start_deadline", end
    assert event["message"]
    eventually("nothing of it is left", lambda: not processes_of(house.service.view("stub-silent-1")["run"]), 20)


def test_a_server_that_answers_500_ends_at_its_deadline_and_says_so(house: House) -> None:
    _, end = failure(house, "stub-fails-1")
    assert end["reason"] == "start_deadline", end
    assert "500" in end["message"], end


@pytest.mark.parametrize("victim", ["agent", "server"])
def test_a_killed_process_is_told_in_time_and_a_new_start_works_at_once(house: House, victim: str) -> None:
    user = f"stub-well-{victim}"
    first = house.started(user)
    process = agent_of(first["run"]) if victim == "agent" else server_of(first["run"])
    os.kill(process.pid, signal.SIGKILL)
    killed_at = time.monotonic()

    def ended() -> dict[str, Any] | None:
        view = house.service.view(user)
        return view if view["state"] == "ended" else None

    end = eventually("the service says that it ended", ended, TOLD_WITHIN_S)["end"]
    if victim == "agent":
        assert end["reason"] == "agent_lost", end
    else:
        assert end["reason"] == "killed" and end["signal"] == signal.SIGKILL, end
        assert any("stub: up" in line for line in end["last_lines"]), end
    house.wait_gone(user, within_s=max(1.0, TOLD_WITHIN_S - (time.monotonic() - killed_at)))
    assert not processes_of(first["run"]), "something of the first server is left"
    second = house.started(user)
    assert second["run"] != first["run"]
    house.stopped(user)


def test_failures_never_count_against_the_hub(house: House) -> None:
    """The Hub stops itself after so many failures in a row, unless they are told as refusals."""
    for number in range(7):
        failure(house, f"stub-exits-again{number}")
    assert house.process is not None and house.process.poll() is None
    assert "consecutive" not in house.hub_log.lower()
    house.started("stub-well-after")
    house.stopped("stub-well-after")


@pytest.mark.parametrize(
    "options",
    [
        {"cores": 0},
        {"memory_mb": "lots"},
        {"site": "moon"},
        {"colour": "red"},
        {"site": '<img src=x onerror="document.title=667">'},
        {"gpus": 1},
        {"cores": 1000},
    ],
    ids=lambda options: str(options)[:30],
)
def test_a_request_that_cannot_be_met_is_refused_in_words(house: House, options: dict[str, Any]) -> None:
    user = "stub-well-refused"
    reply = house.ask_for(user, **options)
    if reply.status_code in (201, 202):
        event = house.person(user).progress()[-1]
        assert event.get("failed"), event
        said, markup = event["message"], event.get("html_message", "")
    else:
        assert 400 <= reply.status_code < 500, f"{reply.status_code} {reply.text}"
        said, markup = reply.json()["message"], ""
    (name,) = options
    assert name.partition("_")[0].rstrip("s") in said.lower() or "no site" in said.lower() or "GPU" in said, said
    assert "<img" not in markup
    house.wait_gone(user)
