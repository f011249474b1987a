"""The life of the embedded service: one per folder, found again, replaced, started again; what a wrong set-up says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import stat
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from conftest import until
from jupyterhub_glidepath import embedded as module
from jupyterhub_glidepath.client import Unreachable
from jupyterhub_glidepath.embedded import Embedded, EmbeddedProblem, HubFacts, find_binary, service_config

HUB = HubFacts("hub", "http://127.0.0.1:8081/hub/api", "/")
HERE = Path(__file__).parent


class House:
    """A folder, and Hubs that come and go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._hubs: list[tuple[Embedded, asyncio.Task[None]]] = []
        self.stops_with_hub = False

    def hub(self, **settings: Any) -> Embedded:
        log = logging.getLogger("embedded")
        embedded = Embedded(self.folder, HUB, {"log": {"level": "info"}, **settings}, log, lambda: self.stops_with_hub)
        self._hubs.append((embedded, asyncio.create_task(embedded.run())))
        return embedded

    async def hub_ends(self) -> None:
        _, task = self._hubs.pop()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    def attached(self) -> dict[str, Any]:
        return json.loads((self.folder / "service.json").read_text())

    def alive(self) -> bool:
        return module._alive(self.attached()["pid"])

    async def close(self) -> None:
        while self._hubs:
            await self.hub_ends()
        with contextlib.suppress(OSError, ValueError):
            os.kill(self.attached()["pid"], signal.SIGKILL)


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    program = tmp_path / "bin" / "glidepath-spawner"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -B {program}.py "$@"\n')
    Path(f"{program}.py").write_text((HERE / "stub_spawner.py").read_text())
    program.chmod(0o755)
    monkeypatch.setenv("GLIDEPATH_SPAWNER_BIN", str(program))
    monkeypatch.setenv("CONFIGPROXY_AUTH_TOKEN", "the-proxys-secret")
    house = House(tmp_path / "state")
    yield house
    await house.close()


async def test_a_hub_starts_the_service_and_its_secrets_are_its_owners(house):
    hub = house.hub()
    address = await hub.address()
    assert address == house.attached()["api"]
    for name in ("config.json", "hub-hub.secret", "service.log"):
        assert stat.S_IMODE((house.folder / name).stat().st_mode) == 0o600, name
    assert stat.S_IMODE(house.folder.stat().st_mode) == 0o700
    secret = (house.folder / "hub-hub.secret").read_text().strip()
    assert len(secret) > 40
    assert secret not in (house.folder / "config.json").read_text()
    environment = json.loads((house.folder / "environment.json").read_text())
    assert "CONFIGPROXY_AUTH_TOKEN" not in environment
    assert secret not in json.dumps(environment)


async def test_a_service_of_its_own_session_survives_its_hub_and_the_next_one_attaches(house):
    first = await house.hub().address()
    pid = house.attached()["pid"]
    assert os.getsid(pid) == pid
    await house.hub_ends()
    assert house.alive()
    assert await house.hub().address() == first
    assert house.attached()["pid"] == pid


async def test_a_service_that_dies_is_started_again_within_a_second(house):
    hub = house.hub()
    await hub.address()
    pid = house.attached()["pid"]
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    await until(lambda: house.attached()["pid"] != pid)
    assert time.monotonic() - began < 10, "a second, and a Python that starts three times on a busy machine"
    assert (await hub.address()) == house.attached()["api"]


async def test_a_service_that_dies_with_its_secret_gone_is_started_again_with_another(house):
    hub = house.hub()
    await hub.address()
    pid, secret = house.attached()["pid"], hub.secret_file.read_text()
    hub.secret_file.unlink()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: house.attached()["pid"] != pid)
    await hub.address()
    assert hub.secret_file.read_text() != secret


async def test_what_is_wrong_when_a_service_dies_is_told_and_tried_again(house, monkeypatch):
    monkeypatch.setattr(module, "RESTART_MOST_S", 0.2)
    hub = house.hub()
    await hub.address()
    pid, log = house.attached()["pid"], house.folder / "service.log"
    log.unlink()
    log.mkdir()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: hub.problem)
    with pytest.raises(Unreachable, match=r"service\.log"):
        await hub.address()
    log.rmdir()
    await until(lambda: hub.problem is None)
    assert await hub.address() == house.attached()["api"]


async def test_a_secret_that_cannot_be_read_is_told_and_ends_no_service(house):
    hub = house.hub()
    await hub.address()
    await house.hub_ends()
    hub.secret_file.write_bytes(b"\xff\xfe")
    problem = await asyncio.wait_for(house.hub().first_problem(), 10)
    assert str(hub.secret_file) in str(problem)
    assert house.alive()


async def test_an_error_that_nobody_foresaw_is_told_logged_and_tried_again(house, monkeypatch, caplog):
    started = module._spawn_detached

    def broken(*_: Any) -> None:
        raise RuntimeError("of the moon")

    monkeypatch.setattr(module, "_spawn_detached", broken)
    hub = house.hub()
    assert "of the moon" in str(await asyncio.wait_for(hub.first_problem(), 10))
    assert "Traceback" in caplog.text
    monkeypatch.setattr(module, "_spawn_detached", started)
    await until(lambda: hub.problem is None)


async def test_a_service_that_may_not_be_ended_is_told_with_the_remedy(house, monkeypatch):
    await house.hub().address()
    await house.hub_ends()

    def forbidden(pid: int, signum: int) -> None:
        if signum:
            raise PermissionError

    with monkeypatch.context() as patched:
        patched.setattr(module.os, "kill", forbidden)
        problem = str(await house.hub(log={"level": "debug"}).first_problem())
    assert "another account" in problem
    assert "c.GlidepathSpawner.state_dir" in problem


async def test_another_hubs_service_under_a_recycled_pid_is_left_alone(house, tmp_path):
    other = House(tmp_path / "other")
    await other.hub().address()
    house.folder.mkdir()
    (house.folder / "service.json").write_text((other.folder / "service.json").read_text())
    await house.hub().address()
    assert house.attached()["pid"] != other.attached()["pid"]
    assert other.alive()
    await other.close()


async def test_a_dead_attached_service_is_noticed_too(house):
    await house.hub().address()
    await house.hub_ends()
    hub = house.hub()
    await hub.address()
    pid = house.attached()["pid"]
    os.kill(pid, signal.SIGKILL)
    await until(lambda: house.attached()["pid"] != pid)
    await until(lambda: hub._attached is not None)


async def test_an_older_version_is_drained_and_replaced(house, monkeypatch):
    await house.hub().address()
    old = house.attached()["pid"]
    await house.hub_ends()
    monkeypatch.setenv("GLIDEPATH_STUB_VERSION", "0.2.0")
    await house.hub().address()
    assert house.attached()["version"] == "0.2.0"
    assert (house.folder / "drained").read_text() == str(old)


async def test_another_config_is_taken_by_a_drain(house):
    await house.hub().address()
    old = house.attached()["pid"]
    await house.hub_ends()
    await house.hub(log={"level": "debug"}).address()
    assert house.attached()["pid"] != old
    assert (house.folder / "drained").read_text() == str(old)
    assert json.loads((house.folder / "config.json").read_text())["log"] == {"level": "debug"}


async def test_a_wrong_config_tells_all_problems_and_leaves_the_running_service_alone(house):
    await house.hub().address()
    pid = house.attached()["pid"]
    await house.hub_ends()
    hub = house.hub(site=[{"title": "nameless"}], tpyo=1)
    problem = str(await hub.first_problem())
    assert "site[0].name: is missing" in problem
    assert "tpyo: no such key" in problem
    assert module._alive(pid)
    with pytest.raises(Unreachable, match="tpyo"):
        await hub.address()
    await house.hub_ends()
    await house.hub().address()
    assert house.attached()["pid"] == pid, "the good config still lay there"


async def test_a_stale_attach_file_is_no_service(house):
    house.folder.mkdir()
    stale = {"pid": os.getpid(), "version": "0.1.0", "api": "http://127.0.0.1:9"}
    (house.folder / "service.json").write_text(json.dumps(stale))
    await house.hub().address()
    assert house.attached()["pid"] != os.getpid()


async def test_a_service_that_cannot_start_is_told_with_its_last_words(house, monkeypatch):
    monkeypatch.setenv("GLIDEPATH_STUB_DIES", "1")
    problem = str(await house.hub().first_problem())
    assert "status 3" in problem
    assert "permission denied" in problem


async def test_a_clean_end_of_the_hub_takes_the_service_only_when_servers_go_too(house):
    await house.hub().address()
    await house.hub_ends()
    assert house.alive()
    house.stops_with_hub = True
    await house.hub().address()
    await house.hub_ends()
    assert not house.alive()
    assert (house.folder / "drained").exists()


@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5])
async def test_a_hub_that_ends_while_the_service_starts_leaves_no_process(house, after_s):
    house.stops_with_hub = True
    house.hub()
    await asyncio.sleep(after_s)
    await house.hub_ends()
    await until(lambda: not processes_of(house.folder.parent))


def processes_of(folder: Path) -> list[bytes]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes()
            if str(folder).encode() in words:
                found.append(words)
    return found


async def test_a_folder_that_cannot_be_made_is_told_with_the_remedy(house, tmp_path):
    (tmp_path / "file").write_text("")
    house.folder = tmp_path / "file" / "state"
    problem = str(await house.hub().first_problem())
    assert "cannot be written" in problem
    assert "c.GlidepathSpawner.state_dir" in problem


def test_the_hub_of_the_config_is_this_one_and_others_are_kept(tmp_path):
    settings = {"hub": [{"name": "other", "api_url": "x"}, {"name": "hub", "relay": "127.0.0.1:8101"}]}
    config = service_config(tmp_path, HUB, settings)
    assert [hub["name"] for hub in config["hub"]] == ["hub", "other"]
    assert config["hub"][0]["relay"] == "127.0.0.1:8101"
    assert config["hub"][0]["api_url"] == HUB.api_url
    assert config["site"][0]["backend"] == "process"
    assert not Path(config["site"][0]["process"]["work_root"]).is_relative_to(tmp_path)


def test_a_binary_that_is_not_there_is_told_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("GLIDEPATH_SPAWNER_BIN", str(tmp_path / "absent"))
    with pytest.raises(EmbeddedProblem, match="GLIDEPATH_SPAWNER_BIN"):
        find_binary()
    monkeypatch.delenv("GLIDEPATH_SPAWNER_BIN")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(module.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(EmbeddedProblem, match="service_url"):
        find_binary()
