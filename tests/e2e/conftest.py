"""Folders that users' accounts can enter, a far site, and logs that stay when a test fails."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from far import Far
from house import House
from places import TOP
from service import site


def pytest_configure() -> None:
    """Whoever ends the tests by SIGTERM has their Hubs ended in order, too."""

    def end(_signum: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)


@pytest.fixture(scope="session", autouse=True)
def _open_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """pytest closes its folders for other accounts, and users' servers run under other accounts."""
    base = tmp_path_factory.getbasetemp()
    base.chmod(0o711)
    if "PYTEST_XDIST_WORKER" in os.environ:
        base.parent.chmod(0o711)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Nothing is left in /tmp; logs of failures are in test-results/."""
    base = config.getoption("basetemp")
    if base and "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(Path(base).parent, ignore_errors=True)


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """As pytest's own, but open as `_open_folders` says."""
    tmp_path.chmod(0o711)
    return tmp_path


@pytest.fixture(scope="session", autouse=True)
def _names_below_localhost() -> Iterator[None]:
    """`*.localhost` is this machine, as browsers take it; the C library does not."""
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **more: Any) -> Any:
        if isinstance(host, str) and host.endswith(".localhost"):
            host = "127.0.0.1"
        return real(host, *args, **more)

    socket.getaddrinfo = getaddrinfo
    yield
    socket.getaddrinfo = real


@pytest.fixture(scope="module")
def far() -> Iterator[Far]:
    """A far site with its cable."""
    far = Far()
    far.build()
    yield far
    far.remove()


@pytest.fixture
def plugged(far: Far) -> Iterator[Far]:
    """The cable is in, before and after."""
    yield far
    far.restore()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, far: Far) -> Iterator[House]:
    """A Hub with the sites `here` and `far`, `queue`, where everything waits, and `late`, far too, where all wait for a
    moment; its service is embedded."""
    folder = tmp_path_factory.mktemp("house")
    sites = [
        site("here", folder, preference=10),
        site("far", folder, far),
        site("queue", folder, process_queue_delay_s=3000, preference=-50),
        site("late", folder, far, process_queue_delay_s=4, preference=-50),
    ]
    with House(folder, far=far, sites=sites) as house:
        yield house


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.failed:
        keep_logs(item, TOP / "test-results" / item.nodeid.rpartition("/")[2].replace("::", "--")[:150])


def keep_logs(item: pytest.Item, to: Path) -> None:
    """Copies the logs of every house that this test could see, and those of its service and jobs."""
    seen = set()
    for value in getattr(item, "funcargs", {}).values():
        for one in value if isinstance(value, tuple) else (value,):
            folder = one.folder if isinstance(one, House) else one if isinstance(one, Path) else None
            if folder is not None and folder.is_dir():
                seen.add(folder)
    for folder in seen:
        for log in [*folder.rglob("*.log"), *folder.rglob("log"), *folder.rglob("*.png")]:
            if log.is_file() and not log.is_symlink():
                target = to / log.relative_to(folder.parent)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(log, target)
