"""Stop and cancel, in every state that a run can be in: it ends, it says so, and nothing of it is left."""

from __future__ import annotations

import threading

import pytest

from far import Far
from house import House
from waiting import eventually, processes_of, server_of, stays


@pytest.mark.parametrize("by", ["the Hub", "the service"])
def test_a_queued_run_is_cancelled_at_once(house: House, by: str) -> None:
    house.ask_for("stub-well-queued", site="queue")
    run = house.service.wait_state("stub-well-queued", "queued")["run"]
    end(house, "stub-well-queued", by, run)
    stays("nothing of it starts", lambda: not processes_of(run), 2)


@pytest.mark.parametrize("by", ["the Hub", "the service"])
def test_a_run_whose_agent_cannot_dial_is_cancelled(house: House, plugged: Far, by: str) -> None:
    plugged.cut()
    house.ask_for("stub-well-dialling", site="far")
    run = house.service.wait_state("stub-well-dialling", "dialling")["run"]
    end(house, "stub-well-dialling", by, run)


@pytest.mark.parametrize("where", ["here", "far"])
@pytest.mark.parametrize("by", ["the Hub", "the service"])
def test_a_server_that_is_still_starting_is_cancelled(house: House, where: str, by: str) -> None:
    house.ask_for("stub-silent-starting", site=where)
    run = house.service.wait_state("stub-silent-starting", "starting")["run"]
    end(house, "stub-silent-starting", by, run)


@pytest.mark.parametrize("where", ["here", "far"])
@pytest.mark.parametrize("by", ["the Hub", "the service"])
def test_a_server_that_is_ready_is_stopped(house: House, where: str, by: str) -> None:
    run = house.started("stub-well-ready", site=where)["run"]
    end(house, "stub-well-ready", by, run)


def test_a_server_that_is_stopping_may_be_stopped_again(house: House) -> None:
    run = house.started("stub-well-twice", site="here")["run"]
    replies = []
    stops = [
        threading.Thread(target=lambda: replies.append(house.stop_server("stub-well-twice").status_code))
        for _ in range(4)
    ]
    for stop in stops:
        stop.start()
    for stop in stops:
        stop.join(60)
    assert all(status in (202, 204, 400, 404) for status in replies), replies
    house.wait_gone("stub-well-twice")
    eventually("nothing of it is left", lambda: not processes_of(run), 20)


def test_a_server_behind_a_cut_link_is_stopped(house: House, plugged: Far) -> None:
    """The batch system ends what the link cannot."""
    run = house.started("stub-well-cut", site="far")["run"]
    plugged.cut()
    end(house, "stub-well-cut", "the service", run)


def test_a_late_cancel_touches_no_newer_run(house: House) -> None:
    old = house.started("stub-well-late", site="here")["run"]
    house.stopped("stub-well-late")
    new = house.started("stub-well-late", site="here")["run"]
    server = server_of(new)
    key = house.service.view("stub-well-late")["key"]
    house.service.ask("DELETE", f"/servers/{key}?run={old}")
    stays("the newer one lives", lambda: house.service.state("stub-well-late") == "ready", 2)
    assert server_of(new) == server
    house.stopped("stub-well-late")


def test_a_cancelled_named_server_leaves_the_others_alone(house: House) -> None:
    first = house.started("stub-well-names", "first", site="here")["run"]
    second = house.started("stub-well-names", "second", site="far")["run"]
    house.stopped("stub-well-names", "first")
    assert not processes_of(first)
    assert house.service.view("stub-well-names", "second")["run"] == second
    assert house.person("stub-well-names").ask("GET", "api", server="second").status_code == 200
    house.stopped("stub-well-names", "second")


def end(house: House, user: str, by: str, run: str) -> None:
    """Ends a run by one of its doors, and looks that both know of it."""
    if by == "the Hub":
        reply = house.stop_server(user)
    else:
        reply = house.service.ask("DELETE", f"/servers/{house.service.view(user)['key']}?run={run}")
    assert reply.status_code < 300, reply.text
    view = house.service.wait_state(user, "ended", within_s=30)
    assert view["run"] == run
    assert view["end"]["reason"] in ("cancelled", "stopped"), view["end"]
    house.wait_gone(user)
    eventually("nothing of it is left", lambda: not processes_of(run), 20)
