"""A service with another config than before, whose listeners were kept meanwhile."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from conftest import until
from hubs import free_port
from jupyterhub_glidepath.listeners import Listeners
from real_service import PROGRAM


class Unit:
    """One service as a service manager runs it: it keeps the listeners, and starts it again with any config."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.listeners = Listeners(folder, logging.getLogger("unit"))
        self.listeners.open()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def kept(self) -> set[str]:
        return set(self.listeners._kept)

    def start(self, hub: str, relay: int, metrics: int) -> None:
        secret = self._folder / "hub.secret"
        secret.touch(0o600)
        secret.write_text("the-hubs-secret-of-the-tests")
        config = self._folder / "config.json"
        process = {"work_root": str(self._folder / "jobs"), "allow_shared_account": True}
        site = {"name": "here", "title": "This machine", "backend": "process", "process": process}
        api_url = "http://127.0.0.1:8081/hub/api"
        one = {"name": hub, "secret_file": str(secret), "api_url": api_url, "relay": f"127.0.0.1:{relay}"}
        listen = {"metrics": f"127.0.0.1:{metrics}"}
        told = {"state_dir": str(self._folder / "state"), "listen": listen, "hub": [one], "site": [site]}
        config.write_text(json.dumps(told))
        with self.listeners.handed_over() as (environ, descriptors):
            self._process = subprocess.Popen(
                [PROGRAM, "--config", str(config)], env=os.environ | environ, pass_fds=descriptors
            )

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.kill()
        self.listeners.close()


@pytest.fixture
async def unit() -> AsyncIterator[Unit]:
    folder = Path(tempfile.mkdtemp(prefix="glidepath-test-", dir="/var/tmp"))
    folder.chmod(0o711)  # jobs' accounts must be able to pass it
    unit = Unit(folder)
    yield unit
    unit.close()
    shutil.rmtree(folder)


async def answers(port: int) -> bool:
    """Whether somebody serves there; a listener that nobody serves lets its callers wait, which fails the test."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return False
    writer.write(b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    told = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return told.startswith(b"HTTP/1.1 ")


async def test_a_moved_port_is_refused_and_a_renamed_hub_keeps_its_callers(unit: Unit) -> None:
    relay, old, new = free_port(), free_port(), free_port()
    unit.start("hub", relay, old)
    await until(lambda: unit.kept == {"listen.api", "listen.metrics", "hub hub.relay"}, 30)
    unit.kill()
    with socket.create_connection(("127.0.0.1", relay)) as waiting:  # nobody is refused in between
        waiting.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        unit.start("lab", relay, new)
        waiting.settimeout(30)
        assert (await asyncio.to_thread(waiting.recv, 64)).startswith(b"HTTP/1.1 ")
    await until(lambda: unit.kept == {"listen.api", "listen.metrics", "hub lab.relay"}, 30)
    assert not await answers(old), "it is kept though nobody serves it"
    assert await answers(new)
    assert await answers(relay)


async def test_two_listeners_may_change_places(unit: Unit) -> None:
    one, two = free_port(), free_port()
    unit.start("hub", one, two)
    await until(lambda: len(unit.kept) == 3, 30)
    unit.kill()
    unit.start("hub", two, one)
    assert await answers(one)
    assert await answers(two)
