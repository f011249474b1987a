"""Shared by all tests: a service with switchable faults, and a spawner as the Hub makes one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jupyterhub.orm import new_session_factory

from fake_service import FakeService
from jupyterhub_glidepath.connection import close_all
from jupyterhub_glidepath.spawner import GlidepathSpawner

SECRET = "the-hubs-secret-of-the-tests"


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "hub.secret"
    path.write_text(SECRET + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture
async def service() -> AsyncIterator[FakeService]:
    service = FakeService(SECRET)
    await service.up()
    yield service
    await close_all()
    await service.down()
    service.close()


@pytest.fixture
def spawner(service: FakeService, secret_file: Path) -> Any:
    return make_spawner(service.url, secret_file)


def make_spawner(service_url: str, secret_file: Path, user: str = "ada", name: str = "", **traits: Any) -> Any:
    """A spawner whose Hub is as real as the spawner can see."""

    async def no_auth_state() -> None:
        return None

    hub_user = SimpleNamespace(
        name=user,
        escaped_name=user,
        url=f"/user/{user}/",
        settings={"failure_count": 0},
        groups=[SimpleNamespace(name="physics")],
        db=new_session_factory()(),
        get_auth_state=no_auth_state,
    )
    hub = SimpleNamespace(base_url="/hub/", api_url="http://127.0.0.1:8081/hub/api", public_host="")
    spawner = GlidepathSpawner(
        hub=hub,
        user=hub_user,
        orm_spawner=OrmSpawner(name=name),
        service_url=service_url,
        secret_file=str(secret_file),
        cmd=["jupyterhub-singleuser"],
        **traits,
    )
    spawner.api_token = "new-token"
    return spawner


class OrmServer(SimpleNamespace):
    """As ``jupyterhub.orm.Server`` in what a spawner touches."""


class OrmSpawner(SimpleNamespace):
    """As ``jupyterhub.orm.Spawner`` in what a spawner touches."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, user_id=1, user_options=None, oauth_client=None, server=None, state={})


class HubServer(SimpleNamespace):
    """As ``jupyterhub.objects.Server`` in what a spawner touches."""

    proto, ip, port, base_url = "http", "127.0.0.1", 1, "/user/ada/"

    @property
    def url(self) -> str:
        return f"{self.proto}://{self.ip}:{self.port}{self.base_url}"


@pytest.fixture(autouse=True)
def _hub_server(monkeypatch: pytest.MonkeyPatch) -> None:
    servers: dict[int, HubServer] = {}

    def server(spawner: Any) -> HubServer:
        return servers.setdefault(id(spawner), HubServer())

    monkeypatch.setattr(GlidepathSpawner, "server", property(server))


async def until(true: Callable[[], Any], timeout_s: float = 10.0) -> None:
    """Waits for something to become true; a test that waits in vain fails."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.02)
