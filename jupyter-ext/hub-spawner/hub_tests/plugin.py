"""Runs JupyterHub's own tests, as the installed release has them, with our spawner in place of its mocks.

    pytest -p plugin --pyargs jupyterhub.tests.test_spawner ...

Before anything is collected the mock spawners are replaced (`standins`); one real service lives for the session. What
is run and what cannot hold is in `table`.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import jupyterhub
import pytest
from jupyterhub.tests import mocking
from traitlets import default

import standins
import table
from hubs import free_port
from jupyterhub_glidepath.connection import close_all
from real_service import RealService

#: Entries of the table that name no test.
GONE = pytest.StashKey[list[str]]()
#: No test of JupyterHub takes half as long.
TEST_MOST_S = 90
#: One that is listed may wait for what never comes.
LISTED_MOST_S = 15
#: For a start or a stop that a request waits for.
PATIENCE_S = 60
#: What JupyterHub's mock of itself has.
BASE_URL = "/@/space%20word/"


#: Each module's Hub has it in its turn.
hub_port = free_port()


class Hub(mocking.MockHub):
    """The mock of JupyterHub, at a port that the service can be told beforehand, and patient on a busy machine."""

    @default("tornado_settings")
    def _tornado_settings_default(self) -> dict[str, Any]:
        return {"slow_spawn_timeout": PATIENCE_S, "slow_stop_timeout": PATIENCE_S}

    @default("hub_port")
    def _hub_port_default(self) -> int:
        return hub_port


# Their conftest.py takes the names from there as soon as it is read.
mocking.MockHub = Hub
for name, standin in standins.IN_PLACE_OF.items():
    setattr(mocking, name, standin)


@pytest.fixture(scope="session", autouse=True)
def _service(request: pytest.FixtureRequest) -> Iterator[RealService]:
    gone = request.config.stash[GONE]
    assert not gone, f"table.py lists what JupyterHub {jupyterhub.__version__} has no test for: {gone}"
    bin_folder = Path(sys.executable).parent
    service = RealService(f"http://127.0.0.1:{hub_port}{BASE_URL}hub/api", BASE_URL, f"{bin_folder}:{os.defpath}")
    standins.StandIn.service = service
    # Some releases leave files where they are started, and end the proxy of whoever left such a file there before.
    before = Path.cwd()
    os.chdir(service.folder)
    yield service
    os.chdir(before)
    service.close()


@pytest.fixture(scope="module", autouse=True)
async def _connection(app: mocking.MockHub) -> AsyncIterator[None]:
    """A connection belongs to an event loop, and each module has one of its own. A Hub that ends cancels what is left
    in it, so this comes before."""
    yield
    await close_all()


@pytest.fixture(autouse=True)
def _no_server_is_left(_service: RealService) -> Iterator[None]:
    yield
    _service.end_servers()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    meant = [item for item in items if table.is_meant(item.module.__name__, item.function)]
    config.hook.pytest_deselected(items=[item for item in items if item not in meant])
    items[:] = meant
    listed = table.CANNOT_APPLY
    for item in items:
        reasons = [listed[name] for name in _names(item) if name in listed]
        for why in reasons:
            item.add_marker(pytest.mark.xfail(reason=why, strict=True))
        item.obj = _bounded(item.obj, LISTED_MOST_S if reasons else TEST_MOST_S)
        item.add_marker(pytest.mark.xdist_group(item.module.__name__))  # a module has one Hub
        if hasattr(item.module, "SimpleLocalProcessSpawner"):
            item.module.SimpleLocalProcessSpawner = standins.WithoutHub
            item.module._echo_sleep = item.module._uninterruptible = standins.ANSWERING
    config.stash[GONE] = sorted(listed.keys() - {name for item in items for name in _names(item)})


def _names(item: pytest.Function) -> tuple[str, str]:
    """As the table may name it: one case, or all cases of a test."""
    module = item.module.__name__.rpartition(".")[2]
    return f"{module}::{item.name}", f"{module}::{item.originalname}"


def _bounded(test: Callable[..., Any], most_s: float) -> Callable[..., Any]:
    """Some of these tests wait for ever for what does not come."""
    if not asyncio.iscoroutinefunction(test):
        return test

    @functools.wraps(test)
    async def bounded(**fixtures: Any) -> None:
        await asyncio.wait_for(test(**fixtures), most_s)

    return bounded


def pytest_terminal_summary(terminalreporter: Any) -> None:
    stats = terminalreporter.stats
    passed, listed = len(stats.get("passed", ())), len(stats.get("xfailed", ()))
    terminalreporter.line(
        f"JupyterHub {jupyterhub.__version__}'s own tests with Glidepath's spawner: {passed} hold, "
        f"{listed} cannot apply and are listed with the reason in hub_tests/table.py"
    )
