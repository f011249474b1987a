"""The service dies at each point that its sources name, by SIGKILL, in the middle of a server's life.

The points are read from the sources: before and after every write to the store and every act on the outside. The points
of one act are tried in one life, one death after the other. Whatever they are, the user's server starts once, works,
stops, and leaves nothing: store, jobs and Hub agree.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

import places
from far import Far
from house import House
from people import quote
from service import Service, site, sites_config
from test_tickets import TICKET_REFUSED, dial
from waiting import NotInTime, eventually, free_port, processes_of

#: The act that only a story with a second attempt comes by.
ANOTHER_ATTEMPT = "store.submitting"
#: Long enough to take a copy of the dial file while the job waits.
QUEUE_DELAY_S = 2


def crash_points() -> list[str]:
    """Every point that the sources of the service and of what is linked into it name."""
    found: list[str] = []
    for source in sorted((places.TOP / "crates").glob("*/src/**/*.rs")):
        for call in re.findall(r"(?:crash::point|fail_point!)\((.*?)\);", source.read_text(), re.DOTALL):
            found += re.findall(r'"((?:[a-z]+\.)+[a-z]+)"', call)
    return found


def acts() -> dict[str, list[str]]:
    """The points by the act that they stand around: what their names say before the last dot."""
    found: dict[str, list[str]] = {}
    for point in crash_points():
        found.setdefault(point.rpartition(".")[0], []).append(point)
    return found


def test_the_sources_name_points_and_none_twice() -> None:
    points = crash_points()
    assert len(points) > 20, points
    assert len(points) == len(set(points)), "two points of one name: the second one would never be tried"


class Operator:
    """Starts the service that is to die at these points, one after the other, and starts it again when it did."""

    def __init__(self, service: Service, points: list[str]) -> None:
        self.service = service
        self.points = list(points)
        self._over = threading.Event()
        self._looking = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Operator:
        self._start()
        self._looking.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._looking.join()
        self.service.stop()
        while error is None and self._died() and self.points:  # at its clean end, too
            self._start()
            self.service.stop()

    def _look(self) -> None:
        while not self._over.wait(0.05):
            if self.service.child is not None and self.service.child.poll() is not None:
                assert self._died(), f"the service ended by itself: {self.service.log[-2000:]}"
                self._start()

    def _start(self) -> None:
        """With the next point. One that dies before it is up is started again at once."""
        while True:
            try:
                armed = {"GLIDEPATH_DIE_AT": self.points[0]} if self.points else {}
                self.service.start(places.mortal_service(), **armed)
                return
            except NotInTime:
                if not self._died():
                    raise

    def _died(self) -> bool:
        """Whether the last one was killed, and then at the point that it was told."""
        child = self.service.child
        if child is None or child.poll() != -9:
            return False
        self.service.child = None
        del self.points[:1]
        return True


@contextmanager
def hub_and_service(folder: Path, far: Far, sites: list[dict[str, Any]]) -> Iterator[tuple[House, Service]]:
    """Each of them started and ended without the other."""
    folder.chmod(0o711)
    hub_port = free_port()
    hubs = [{"name": "hub", "api_url": f"http://127.0.0.1:{hub_port}/hub/api"}]
    service = Service(folder, sites_config(sites, far), hubs)
    service.start()
    house = House(folder / "hub", service=service, far=far)
    house.hub_port = house.settings["hub_port"] = hub_port
    try:
        with house:
            yield house, service
    finally:
        service.stop()


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory, far: Far) -> Iterator[tuple[House, Service]]:
    folder = tmp_path_factory.mktemp("crash")
    with hub_and_service(folder, far, [site("far", folder, far, process_queue_delay_s=QUEUE_DELAY_S)]) as apart:
        yield apart


@pytest.mark.parametrize("act", [act for act in acts() if act != ANOTHER_ATTEMPT])
def test_a_death_at_any_point_loses_nothing_and_doubles_nothing(
    apart: tuple[House, Service], act: str, tmp_path: Path
) -> None:
    house, service = apart
    user = f"stub-well-{act.replace('.', '-')}"
    service.stop()
    with Operator(service, acts()[act]) as operator:
        assert house.ask_for(user, site="far").status_code == 202
        copy = copied_dial_file(house, tmp_path)
        house.wait_ready(user)
        view = service.wait_state(user, "ready")
        run = view["run"]
        answer = eventually("it answers", lambda: answered(house, user), 30)
        assert answer["starts"] == 1, "its server was started more than once"
        assert view["attempt"] == 1
        assert len([process for process in processes_of(run) if process.is_agent]) == 1
        replayed = dial(copy, tmp_path)
        assert replayed.returncode == TICKET_REFUSED, replayed.stderr.decode()
        reply = house.stop_server(user)
        assert reply.status_code in (202, 204), reply.text
        house.wait_gone(user)
        assert house.api("DELETE", f"/users/{quote(user)}").status_code == 204
        eventually("nothing is left of it", lambda: not left_over(house, service, run), 20)
    assert not operator.points, "the service never passed these points: this story does not cover them"
    service.start()
    time.sleep(0.5)
    assert left_over(house, service, run) == []


def test_a_death_between_two_attempts_loses_nothing_and_doubles_nothing(
    tmp_path_factory: pytest.TempPathFactory, plugged: Far
) -> None:
    """Nobody dials from the far site, so that the next one is tried."""
    folder = tmp_path_factory.mktemp("crash2")
    sites = [site("far", folder, plugged, preference=10), site("here", folder)]
    with hub_and_service(folder, plugged, sites) as (house, service):
        service.stop()
        plugged.cut()
        with Operator(service, acts()[ANOTHER_ATTEMPT]) as operator:
            assert house.ask_for("stub-well-again").status_code == 202
            house.wait_ready("stub-well-again", within_s=90)
            view = service.wait_state("stub-well-again", "ready")
            assert (view["site"], view["attempt"]) == ("here", 2)
            assert len([process for process in processes_of(view["run"]) if process.attempt.endswith("-2")]) > 0
            answer = eventually("it answers", lambda: answered(house, "stub-well-again"), 30)
            assert answer["starts"] == 1, "its server was started more than once"
            plugged.restore()
            house.stopped("stub-well-again")
            eventually("nothing is left", lambda: not list(folder.glob("jobs-*/jobs/*")), 30)
            eventually("no process is left", lambda: not processes_of(view["run"]), 20)
        assert not operator.points, "the service never passed these points: this story does not cover them"


def copied_dial_file(house: House, folder: Path) -> Path:
    """A copy in the hands of somebody else, taken while the job waits for its turn."""
    jobs = house.folder.parent / "jobs-far" / "jobs"
    copy = folder / "stolen.json"

    def look() -> bool:
        found = list(jobs.glob("*/own/dial.json"))
        if not found:
            return False
        shutil.copyfile(found[0], copy)
        return True

    eventually("a dial file lies in a job's folder", look, 40, every_s=0.05)
    copy.chmod(0o600)
    return copy


def answered(house: House, user: str) -> dict[str, int] | None:
    reply = house.person(user).ask("GET", "api")
    return reply.json() if reply.status_code == 200 else None


def left_over(house: House, service: Service, run: str) -> list[str]:
    """What is still there of this run, and of any other, where nothing should be."""
    found = [f"process {process.pid}" for process in processes_of(run)]
    work = house.folder.parent / "jobs-far"
    found += [str(folder) for folder in [*(work / "jobs").iterdir(), *work.glob("homes/*/*")]]
    with sqlite3.connect(f"file:{service.state_dir / 'glidepath.db'}?mode=ro", uri=True) as books:
        found += [f"unsettled {row}" for row in books.execute("SELECT run, state FROM runs WHERE settled = 0")]
        found += [f"order of {row}" for row in books.execute("SELECT run FROM orders")]
    users = house.api("GET", "/users").json()
    found += [f"the Hub's {user['name']}" for user in users if user["servers"]]
    return found
