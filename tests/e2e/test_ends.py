"""Servers that go wrong, and what the user is told: reason, exit code, last lines; then a new start works."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from far import Far
from house import House
from people import text_of
from service import site
from waiting import agent_of, eventually, processes_of, server_of

#: The user is told of an end within so many seconds.
TOLD_WITHIN_S = 15
#: Short enough to wait for, long enough for a real server on a busy machine.
STARTING_S = 20
#: What a page must never hold as it is.
ATTACK = '<img src=x onerror="document.title=666">'


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, far: Far) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("ends")
    folder.chmod(0o711)
    sites = [
        site("here", folder, preference=10),
        site("far", folder, far),
        site("closed", folder, closed=f"No servers until Monday {ATTACK}", preference=-10),
        site("slow", folder, process_queue_delay_s=3000, preference=-20),
    ]
    deadlines = {"dialling_s": 12, "starting_s": STARTING_S, "doubt_s": 30, "grace_s": 3}
    with House(folder, far=far, sites=sites, more_config={"deadlines": deadlines}) as house:
        yield house


def failure(house: House, user: str, within_s: float = STARTING_S + 30) -> tuple[dict[str, Any], dict[str, Any]]:
    """Asks for a server that will not come up: the last word of the progress page, and how the service tells it."""
    person = house.person(user)
    house.ask_for(user, site="here")
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
    assert ATTACK in end["last_lines"], "the attack must have arrived, or nothing is shown here"
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


@pytest.mark.parametrize("where", ["here", "far"])
@pytest.mark.parametrize("victim", ["agent", "server"])
def test_a_killed_process_is_told_in_time_and_a_new_start_works_at_once(house: House, victim: str, where: str) -> None:
    user = f"stub-well-{victim}-{where}"
    first = house.started(user, site=where)
    process = agent_of(first["run"]) if victim == "agent" else server_of(first["run"])
    if victim == "agent":
        told_of_its_end(house, user, lambda: os.kill(process.pid, signal.SIGKILL), "agent_lost", "signal 9")
    else:
        told_of_its_end(house, user, lambda: os.kill(process.pid, signal.SIGKILL), "killed", "signal 9", "stub: up")
    starts_again(house, user, first["run"])


def test_a_killed_jupyter_is_told_in_time_with_its_last_line(house: House) -> None:
    first = house.started("ada", site="far")
    end = told_of_its_end(
        house, "ada", lambda: os.kill(server_of(first["run"]).pid, signal.SIGKILL), "killed", "signal 9"
    )
    assert end["signal"] == signal.SIGKILL and end["last_lines"], end
    ada = house.person("ada")
    ada.login()
    last_line = " ".join(end["last_lines"][-1].split())[:60]  # the page shows long lines in part
    assert last_line in text_of(ada.page("services/glidepath/").text)
    starts_again(house, "ada", first["run"])


@pytest.mark.parametrize("where", ["here", "far"])
def test_a_ready_server_that_exits_is_told_in_time_with_code_and_last_line(house: House, where: str) -> None:
    user = f"stub-well-quits-{where}"
    first = house.started(user, site=where)
    person = house.person(user)
    end = told_of_its_end(house, user, lambda: person.ask("GET", "quit"), "exited", "exit code 7", "the moon has set")
    assert end["exit_code"] == 7, end
    starts_again(house, user, first["run"])


def told_of_its_end(
    house: House, user: str, bring_about: Callable[[], object], reason: str, *words: str
) -> dict[str, Any]:
    """Brings the end of a ready server about; its user reads the words on the page of servers in time."""
    person = house.person(user)
    person.login()
    assert person.page("services/glidepath/").status_code == 200
    bring_about()
    began = time.monotonic()

    def reads() -> bool:
        shown = text_of(person.page("services/glidepath/").text)
        return all(word in shown for word in words)

    eventually(f"{user} reads {words}", reads, TOLD_WITHIN_S, every_s=0.5)
    house.wait_gone(user, within_s=max(1.0, TOLD_WITHIN_S - (time.monotonic() - began)))
    assert "Your last server ended by itself" in text_of(person.form())
    end: dict[str, Any] = house.service.view(user)["end"]
    assert end["reason"] == reason, end
    return end


def starts_again(house: House, user: str, first: str) -> None:
    assert not processes_of(first), "something of the first server is left"
    assert house.started(user, site="here")["run"] != first
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
        {"site": ATTACK},
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


def test_what_others_chose_and_wrote_stays_text_on_every_page(house: House) -> None:
    """The markup comes as an option, and as an operator's sentence that is a reason."""
    user = "stub-well-markup"
    person = house.person(user)
    person.login()
    seen = []
    seen.append(("the answer", person.choose(site=ATTACK).text))
    house.wait_gone(user)
    last = person.progress()[-1]
    assert last.get("failed") and "666" in last["message"], "the attack must have arrived, or nothing is shown here"
    assert "<img" not in last["html_message"], last
    seen.append(("the waiting page", person.page(f"hub/spawn-pending/{user}").text))
    seen.append(("home", person.page("hub/home").text))
    form = person.form()
    assert "No servers until Monday" in text_of(form), text_of(form)[:2000]
    seen.append(("the form, with the last choice and the reason", form))
    seen.append(("the page of servers", person.page("services/glidepath/").text))
    # The reason again, where a run has it among its verdicts.
    assert person.choose(site="closed").status_code < 500
    house.wait_gone(user)
    assert "<img" not in person.progress()[-1]["html_message"]
    house.ask_for(user, site="slow")
    house.service.wait_state(user, "queued")
    seen.append(("the waiting page with a run", person.page(f"hub/spawn-pending/{user}").text))
    seen.append(("the page of servers with a run", person.page("services/glidepath/").text))
    house.stop_server(user)
    for where, page in seen:
        assert "<img src=x" not in page, where
