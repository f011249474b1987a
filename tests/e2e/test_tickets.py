"""Who holds a ticket that is not theirs: nobody but the agent of the current attempt gets in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import places
from far import Far
from house import House
from service import site
from waiting import agent_of, alive, eventually, server_of

#: What an agent says at its end when home refused its ticket.
TICKET_REFUSED = 77


def started_and_robbed(house: House, user: str, folder: Path) -> tuple[dict[str, Any], Path]:
    """A server that is ready, and a copy of its agent's dial file."""
    house.ask_for(user, site="late")
    view = house.service.wait_state(user, "queued")
    copy = stolen(house, view, folder)
    house.service.wait_state(user, "ready")
    return view, copy


def stolen(house: House, view: dict[str, Any], folder: Path) -> Path:
    """A copy of the dial file in the hands of somebody else. The agent removes the file as soon as it has read it, so
    it must be taken while the job waits."""
    job = house.folder / f"jobs-{view['site']}" / "jobs" / f"{view['run']}-{view['attempt']}"
    copy = folder / f"stolen-{view['run']}.json"
    shutil.copyfile(job / "own" / "dial.json", copy)
    copy.chmod(0o600)
    return copy


def dial(dial_file: Path, folder: Path, within_s: float = 40) -> subprocess.CompletedProcess[bytes]:
    """Another agent, with another key of its own, tries it. Where the far site is, the link is in reach."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    folder.chmod(0o755)
    if os.geteuid() == 0:  # an agent never runs as root
        shutil.chown(folder, 65534, 65534)
        shutil.chown(home, 65534, 65534)
        shutil.chown(dial_file, 65534, 65534)
    account = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"] if os.geteuid() == 0 else []
    return subprocess.run(
        [*account, places.agent(), "run", "--dial-file", str(dial_file), "--home", str(home)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=within_s,
        check=False,
        cwd="/",
    )


def test_a_replayed_ticket_is_refused_told_and_harmless(house: House, tmp_path: Path) -> None:
    view, copy = started_and_robbed(house, "stub-well-robbed", tmp_path)
    done = dial(copy, tmp_path)
    assert done.returncode == TICKET_REFUSED, done.stderr.decode()
    warnings = [line for line in house.service.log.splitlines() if " WARN " in line and view["run"] in line]
    assert warnings, "the operator is told"
    assert house.service.view("stub-well-robbed")["state"] == "ready"
    assert house.person("stub-well-robbed").ask("GET", "api").status_code == 200
    house.stopped("stub-well-robbed")


def test_a_ticket_of_another_run_opens_nothing(house: House, tmp_path: Path) -> None:
    one, copy = started_and_robbed(house, "stub-well-one", tmp_path)
    two = house.started("stub-well-two", site="far")
    mixed = json.loads(copy.read_text())
    mixed["attempt"] = f"{two['run']}-{two['attempt']}"
    copy.write_text(json.dumps(mixed))
    done = dial(copy, tmp_path)
    assert done.returncode == TICKET_REFUSED, done.stderr.decode()
    for user, view in (("stub-well-one", one), ("stub-well-two", two)):
        assert house.person(user).ask("GET", "api").json()["user"] == user
        assert house.service.view(user)["run"] == view["run"]
        house.stopped(user)


def test_a_forged_ticket_opens_nothing(house: House, tmp_path: Path) -> None:
    """It names an attempt that is expected at that moment."""
    house.ask_for("stub-well-forged", site="late")
    view = house.service.wait_state("stub-well-forged", "queued")
    copy = stolen(house, view, tmp_path)
    forged = json.loads(copy.read_text())
    head, body, _ = forged["ticket"].split(".")
    forged["ticket"] = f"{head}.{body}.{'A' * 86}"
    copy.write_text(json.dumps(forged))
    done = dial(copy, tmp_path)
    assert done.returncode == TICKET_REFUSED, done.stderr.decode()
    assert house.service.wait_state("stub-well-forged", "ready")["run"] == view["run"]
    house.stopped("stub-well-forged")


def test_a_ticket_of_a_run_that_ended_opens_nothing(house: House, tmp_path: Path) -> None:
    _, copy = started_and_robbed(house, "stub-well-ended", tmp_path)
    house.stopped("stub-well-ended")
    done = dial(copy, tmp_path)
    assert done.returncode == TICKET_REFUSED, done.stderr.decode()
    assert house.service.view("stub-well-ended")["state"] == "ended"


def test_a_late_agent_of_an_older_attempt_is_refused_and_the_newer_one_serves(
    tmp_path_factory: pytest.TempPathFactory, plugged: Far, tmp_path: Path
) -> None:
    """The far site is cut off, so its attempt never dials home; the next site is tried; then the first one arrives."""
    folder = tmp_path_factory.mktemp("late")
    sites = [
        site("far", folder, plugged, preference=10, process_queue_delay_s=3),
        site("here", folder, process_queue_delay_s=3),
    ]
    with House(folder, far=plugged, sites=sites) as house:
        plugged.cut()
        house.ask_for("stub-well-older")
        view = house.service.wait_state("stub-well-older", "queued")
        assert view["site"] == "far"
        copy = stolen(house, view, tmp_path)
        house.service.wait_state("stub-well-older", "dialling")
        first = agent_of(view["run"])
        ready = house.service.wait_state("stub-well-older", "ready", within_s=60)
        assert (ready["run"], ready["attempt"], ready["site"]) == (view["run"], 2, "here")
        plugged.restore()
        done = dial(copy, tmp_path)
        assert done.returncode == TICKET_REFUSED, done.stderr.decode()
        assert house.service.view("stub-well-older")["attempt"] == 2
        eventually("the older attempt's agent is gone", lambda: not alive(first.pid), 30)
        assert server_of(view["run"]).attempt.endswith("-2")
        house.stopped("stub-well-older")
