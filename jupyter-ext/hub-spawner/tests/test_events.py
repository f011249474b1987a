"""What a Hub knows of its servers."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import pytest

from conftest import SECRET, until
from fake_service import FakeService
from jupyterhub_glidepath.client import Client
from jupyterhub_glidepath.events import Feed
from jupyterhub_glidepath.wire import ServerView

KEY = "hub.ada."


def view(**fields) -> ServerView:
    return ServerView.parse({"key": KEY, "run": "01A", "state": "queued", **fields})


@pytest.fixture
async def feed(service: FakeService):
    async def locate() -> str:
        return service.url

    client = Client("hub", locate, lambda: SECRET)
    feed = Feed(client, logging.getLogger("test"))
    task = asyncio.create_task(feed.run())
    yield feed
    task.cancel()
    await client.close()


def still() -> Feed:
    return Feed(SimpleNamespace(), logging.getLogger("test"))


async def test_an_event_wakes_who_waits_for_that_server(feed, service):
    assert await feed.synced(5)
    waiting = asyncio.create_task(feed.changed(KEY, None, 5))
    other = asyncio.create_task(feed.changed("hub.bob.", None, 0.5))
    await asyncio.sleep(0)
    await service.set(KEY, run="01A", state="queued")
    assert (await waiting).state == "queued"
    assert await other is None


async def test_an_end_is_told_once(feed, service):
    await service.set(KEY, run="01A", state="ready")
    assert await feed.synced(5)
    told = []
    feed.call_at_end(KEY, told.append)
    await service.end(KEY)
    await until(lambda: told)
    await asyncio.sleep(0.1)
    assert [one.end.reason for one in told] == ["exited"]


async def test_an_end_while_the_stream_was_cut_is_found(feed, service):
    await service.set(KEY, run="01A", state="ready")
    await until(lambda: feed.view(KEY))
    await service.down()
    await until(lambda: feed.silent_for_s > 0)
    assert feed.view(KEY).state == "ready", "a cut changes nothing that is known"
    await service.end(KEY)
    service._events.clear()  # the service no longer keeps what happened meanwhile
    await service.up()
    await until(lambda: feed.view(KEY).over)


async def test_a_server_that_the_service_forgot_is_asked_for_before_it_is_gone(feed, service):
    await service.set(KEY, run="01A", state="ready")
    await until(lambda: feed.view(KEY))
    await service.down()
    service.servers.clear()
    service._events.clear()
    await service.up()
    await until(lambda: feed.view(KEY).over)
    assert f"GET /v1/hubs/hub/servers/{KEY}" in service.asked


async def test_no_server_is_asked_for_one_by_one(feed, service):
    for number in range(50):
        await service.set(f"hub.user{number}.", run="01A", state="ready")
    await until(lambda: feed.view("hub.user49."))
    assert not [one for one in service.asked if "/servers/" in one]


def test_what_is_known_never_goes_backwards():
    feed = still()
    feed.take(view(state="ended", end={"reason": "exited"}))
    assert feed.take(view(state="ready")).over, "an end is final"
    assert feed.take(view(run="01B")).state == "queued", "a later run is news"
    assert feed.take(view(run="01A", state="ended")).run == "01B", "an earlier run is not"


#: What is known, what a reply that was long on its way tells, and whether that is news.
LATE = [
    ({"attempt": 1, "state": "ready"}, {"attempt": 1, "state": "queued"}, False),
    ({"attempt": 1, "state": "starting"}, {"attempt": 1, "state": "submitting"}, False),
    ({"attempt": 1, "state": "stopping"}, {"attempt": 1, "state": "ready"}, False),
    ({"attempt": 2, "state": "submitting"}, {"attempt": 1, "state": "starting"}, False),
    ({"attempt": 1, "state": "submitting"}, {"attempt": None, "state": "requested"}, False),
    ({"attempt": 1, "state": "starting"}, {"attempt": 2, "state": "submitting"}, True),
    ({"attempt": 1, "state": "dialling"}, {"attempt": 1, "state": "queued"}, True),
    ({"attempt": 1, "state": "queued"}, {"attempt": 1, "state": "queued", "queue_position": 2}, True),
    ({"attempt": 1, "state": "ready"}, {"attempt": 1, "state": "of a newer service"}, True),
    ({"attempt": 2, "state": "ready"}, {"attempt": 1, "state": "ended"}, True),
]


@pytest.mark.parametrize(("known", "told", "news"), LATE, ids=range(len(LATE)))
def test_a_late_reply_undoes_no_event(known, told, news):
    feed = still()
    feed.take(view(**known))
    assert (feed.take(view(**told)).state == told["state"]) is news


async def test_the_number_of_the_last_event_that_had_one_is_kept(feed, service):
    await feed.synced(5)
    await service.set(KEY, run="01A", state="queued")
    await until(lambda: feed.view(KEY))
    service.numbers = False
    await service.set(KEY, run="01A", state="ready")
    await until(lambda: feed.view(KEY) and feed.view(KEY).state == "ready")
    await service.down()
    await until(lambda: feed.silent_for_s > 0)
    await service.up()
    await until(lambda: feed.silent_for_s == 0)
    assert service.continued_after == ["", "1"]
    await service.set(KEY, run="01A", state="stopping")
    await until(lambda: feed.view(KEY).state == "stopping")


def test_what_is_equal_wakes_nobody():
    feed = still()
    first = feed.take(view())
    assert feed.take(view()) is first
