"""Fifty servers and their open WebSockets, through the deaths of the Hub and of the service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from far import Far
from many import Many, Sockets, many
from waiting import eventually

SERVERS = 50


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory, far: Far) -> Iterator[Many]:
    folder: Path = tmp_path_factory.mktemp("many")
    folder.chmod(0o711)
    with many(folder, far) as crowd:
        crowd.start(SERVERS, within_s=180)
        yield crowd


def test_a_hub_restart_keeps_every_server_and_every_socket(crowd: Many) -> None:
    before = crowd.runs()
    assert len(before) == SERVERS
    with Sockets(crowd, every_s=1) as sockets:
        sockets.all_answer(within_s=30)
        crowd.house.kill_hub()
        sockets.all_answer(within_s=30)
        crowd.house.start()
        crowd.wait_ready(within_s=90)
        sockets.all_answer(within_s=30)
        assert not sockets.lost
    assert crowd.runs() == before
    assert crowd.all_answer()


def test_a_service_restart_keeps_every_server_and_every_link_comes_back(crowd: Many) -> None:
    before = crowd.runs()
    crowd.service.kill()
    crowd.service.start()
    eventually("every server answers", crowd.all_answer, 90)
    assert crowd.runs() == before
    assert crowd.metric("glidepath_links") == SERVERS
    assert crowd.ready() == set(crowd.users), "the Hub was to notice nothing"
