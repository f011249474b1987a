"""Who holds a ticket that is not theirs: nobody but the agent of the current attempt gets in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import places
from far import Far
from house import House
from waiting import agent_of, eventually, processes_of, server_of

#: What an agent says at its end when home refused its ticket.
TICKET_REFUSED = 77


def dial_file_of(run: str) -> Path:
    """The file of this run's agent."""
    argv = agent_of(run).argv
    return Path(argv[argv.index("--dial-file") + 1])


def stolen(file: Path, folder: Path) -> Path:
    """A copy in the hands of somebody else."""
    copy = folder / "stolen.json"
    shutil.copyfile(file, copy)
    copy.chmod(0o600)
    return copy


def dial(house: House, dial_file: Path, folder: Path, within_s: float = 40) -> subprocess.CompletedProcess[bytes]:
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
    view = house.started("stub-well-robbed", site="far")
    try:
        copy = stolen(dial_file_of(view["run"]), tmp_path)
    except FileNotFoundError:
        # Once the link is up the file may go; then there is nothing to steal.
        house.stopped("stub-well-robbed")
        raise
    done = dial(house, copy, tmp_path)
    assert done.returncode == TICKET_REFUSED, done.stderr.decode()
    assert "WARN" in house.service.log and view["run"] in house.service.log
    assert house.service.view("stub-well-robbed")["state"] == "ready"
    assert house.person("stub-well-robbed").ask("GET", "api").status_code == 200
    house.stopped("stub-well-robbed")


def test_a_ticket_of_another_run_opens_nothing(house: House, tmp_path: Path) -> None:
    one = house.started("stub-well-one", site="far")
    two = house.started("stub-well-two", site="far")
    mixed = json.loads(dial_file_of(one["run"]).read_text())
    mixed["attempt"] = f"{two['run']}-{two['attempt']}"
    file = tmp_path / "mixed.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps(mixed))
    done = dial(house, file, tmp_path)
    assert done.returncode == TICKET_REFUSED, done.stderr.decode()
    for user, view in (("stub-well-one", one), ("stub-well-two", two)):
        assert house.person(user).ask("GET", "api").json()["user"] == user
        assert house.service.view(user)["run"] == view["run"]
        house.stopped(user)


def test_a_forged_ticket_opens_nothing(house: House, tmp_path: Path) -> None:
    view = house.started("stub-well-forged", site="far")
    forged = json.loads(dial_file_of(view["run"]).read_text())
    head, body, _ = forged["ticket"].split(".")
    forged["ticket"] = f"{head}.{body}.{'A' * 86}"
    file = tmp_path / "forged.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps(forged))
    done = dial(house, file, tmp_path)
    assert done.returncode == TICKET_REFUSED, done.stderr.decode()
    house.stopped("stub-well-forged")


def test_a_ticket_of_a_run_that_ended_opens_nothing(house: House, tmp_path: Path) -> None:
    view = house.started("stub-well-ended", site="far")
    copy = stolen(dial_file_of(view["run"]), tmp_path)
    house.stopped("stub-well-ended")
    done = dial(house, copy, tmp_path)
    assert done.returncode == TICKET_REFUSED, done.stderr.decode()
    assert house.service.view("stub-well-ended")["state"] == "ended"


def test_a_late_agent_of_an_older_attempt_is_refused_and_the_newer_one_serves(
    house: House, plugged: Far, tmp_path: Path
) -> None:
    """The far site is cut off, so its attempt never dials home; the next site is tried; then the first one arrives."""
    plugged.cut()
    # "Let Glidepath choose", but where the first choice is far.
    house.ask_for("stub-well-older", memory_mb=7000)
    view = house.service.wait_state("stub-well-older", "dialling", "ready", within_s=30)
    if view["site"] != "far":
        raise AssertionError(f"this test wants the far site to be tried first, not {view['site']}")
    copy = stolen(dial_file_of(view["run"]), tmp_path)
    first = agent_of(view["run"])
    ready = house.service.wait_state("stub-well-older", "ready", within_s=60)
    assert (ready["run"], ready["attempt"], ready["site"]) == (view["run"], 2, "here")
    plugged.restore()
    done = dial(house, copy, tmp_path)
    assert done.returncode == TICKET_REFUSED, done.stderr.decode()
    assert house.service.view("stub-well-older")["attempt"] == 2
    eventually(
        "the older attempt's agent is gone",
        lambda: first.pid not in [process.pid for process in processes_of(view["run"])],
        30,
    )
    assert server_of(view["run"]).attempt.endswith("-2")
    house.stopped("stub-well-older")
