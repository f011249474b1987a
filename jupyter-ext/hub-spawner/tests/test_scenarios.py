"""A server's life as a Hub sees it, from start to end, with the service's own program and a real server."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from tornado import web

from conftest import make_spawner, until
from jupyterhub_glidepath.connection import close_all
from jupyterhub_glidepath.progress import MOST
from real_service import SERVER, RealService

#: Each test has a user of its own, as what is known of the last run stays.
users = (f"ada-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def real_service() -> Iterator[RealService]:
    with contextlib.closing(RealService("http://127.0.0.1:8081/hub/api")) as service:
        yield service


@pytest.fixture
async def new_spawner(real_service: RealService) -> AsyncIterator[Any]:
    """Makes spawners of one and the same server, as a Hub does each time that it has forgotten the last one."""
    user = next(users)

    def new(*command: str) -> Any:
        spawner = make_spawner(real_service.url, real_service.secret_file, user)
        spawner.cmd = list(command) or [sys.executable, str(SERVER)]
        return spawner

    yield new
    await close_all()
    await asyncio.to_thread(real_service.end_servers)


async def seen(spawner: Any) -> list[dict[str, Any]]:
    return [event async for event in spawner.progress()]


def assert_never_back(events: list[dict[str, Any]]) -> None:
    told = [event["progress"] for event in events if "progress" in event]
    assert told == sorted(told), events
    assert told[-1] <= MOST, "only the Hub says that a server can be used"


async def test_a_second_start_takes_the_live_server_back(new_spawner):
    first, second = new_spawner(), new_spawner()
    first.api_token = "the-token-that-the-server-holds"
    url = await first.start()
    assert await second.start() == url
    assert second.get_state() == first.get_state(), "the same run"
    assert second.api_token == first.api_token


async def test_a_stopped_server_is_gone_and_stopping_it_again_is_no_error(new_spawner):
    spawner = new_spawner()
    await spawner.start()
    assert await spawner.poll() is None
    await spawner.stop()
    assert await spawner.poll() == 0
    await spawner.stop()
    assert await spawner.poll() == 0


async def test_a_poll_tells_alive_until_the_end_and_then_how_it_ended(new_spawner):
    spawner = new_spawner("sh", "-c", "sleep 1; exit 3")
    assert await new_spawner().poll() == 0, "nothing was started yet"
    starting = asyncio.create_task(spawner.start())
    await until(lambda: "run" in spawner.get_state())  # from here on the service knows of it
    assert await spawner.poll() is None, "on its way"
    assert await new_spawner().poll() is None, "also to a Hub that knows nothing of it"
    with pytest.raises(web.HTTPError):
        await starting
    assert await spawner.poll() == 3


async def test_the_url_of_a_ready_server_is_the_one_that_its_start_gave(new_spawner):
    spawner = new_spawner()
    url = await spawner.start()
    found = await new_spawner().get_url()
    assert found == f"{url}/user/ada/"


async def test_progress_after_a_start_tells_what_came_of_it(new_spawner):
    spawner = new_spawner()
    await spawner.start()
    events = await seen(spawner)
    assert_never_back(events)
    assert events[-1]["message"] == "The server runs at This machine"


async def test_progress_of_a_server_that_was_taken_back_tells_that_it_runs(new_spawner):
    await new_spawner().start()
    again = new_spawner()
    await again.start()
    events = await seen(again)
    assert_never_back(events)
    assert events[-1]["message"] == "The server runs at This machine"


async def test_all_who_watch_one_start_see_it_through(new_spawner):
    spawner = new_spawner("sh", "-c", f"sleep 0.7; exec {sys.executable} {SERVER}")
    url, *watched = await asyncio.gather(spawner.start(), seen(spawner), seen(spawner), seen(spawner))
    assert url.startswith("http://")
    for events in watched:
        assert_never_back(events)
        assert len(events) > 1
        assert events[-1]["message"] == "The server runs at This machine"


async def test_a_start_that_fails_is_told_to_who_started_it_and_to_who_watches(new_spawner):
    spawner = new_spawner("sh", "-c", "sleep 0.7; echo no room on the disk; exit 3")
    failed, events = await asyncio.gather(spawner.start(), seen(spawner), return_exceptions=True)
    assert isinstance(failed, web.HTTPError)
    for words in ("3", "no room on the disk"):
        assert words in failed.jupyterhub_message
    assert isinstance(events, list), events
    assert "3" in events[-1]["message"], events
    assert await spawner.poll() == 3
