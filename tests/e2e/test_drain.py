"""A service that is stopped in order: what is under way is finished first."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from house import House


@pytest.mark.parametrize("where", ["here", "far"])
def test_a_request_under_way_is_answered_before_the_service_ends(house: House, where: str) -> None:
    user = f"stub-well-drain-{where}"
    before = house.started(user, site=where)
    person, stopped = house.person(user), house.service.pid
    assert person.token
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(person.ask, "GET", "slow")
        time.sleep(1.5)
        assert not asked.done()
        os.kill(stopped, signal.SIGTERM)
        reply = asked.result(60)
    assert (reply.status_code, reply.json()["user"]) == (200, user)
    house.service.wait_up(other_than=stopped)
    assert house.service.wait_state(user, "ready")["run"] == before["run"]
    house.stopped(user)
