"""Shared by all tests: a service with switchable faults, and a spawner as the Hub makes one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
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


async def until(true: Callable[[], Any], timeout_s: float = 10.0) -> None:
    """Waits for something to become true; a test that waits in vain fails."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.02)


class HubServer(SimpleNamespace):
    """As ``jupyterhub.objects.Server`` in what a spawner touches."""

    @property
    def url(self) -> str:
        return f"{self.proto}://{self.ip}:{self.port}{self.base_url}"


def make_spawner(service: FakeService, secret_file: Path, user: str = "ada", name: str = "", **traits: Any) -> Any:
    """A spawner whose Hub is only as real as the spawner can see."""
    settings = {"failure_count": 0}

    async def no_auth_state() -> None:
        return None

    hub_user = SimpleNamespace(
        name=user,
        escaped_name=user,
        url=f"/user/{user}/",
        settings=settings,
        groups=[SimpleNamespace(name="physics")],
        get_auth_state=no_auth_state,
    )
    hub = SimpleNamespace(base_url="/hub/", api_url="http://127.0.0.1:8081/hub/api", public_host="")
    orm_spawner = None
    spawner = GlidepathSpawner(
        hub=hub,
        user=hub_user,
        orm_spawner=orm_spawner,
        service_url=service.url,
        secret_file=str(secret_file),
        **traits,
    )
    spawner.__dict__["name_for_test"] = name
    spawner.api_token = "new-token"
    spawner._server = HubServer(proto="http", ip="127.0.0.1", port=1, base_url=f"/user/{user}/")
    return spawner


@pytest.fixture
def spawner(service: FakeService, secret_file: Path) -> Any:
    return make_spawner(service, secret_file)
