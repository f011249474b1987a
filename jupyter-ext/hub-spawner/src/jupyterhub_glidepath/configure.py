"""One call that makes a JupyterHub a Glidepath Hub.

In: the config object of ``jupyterhub_config.py``. Out: the spawner, limits that leave bounding to the service, and
the Hub service with the page of servers. What the file sets on ``c.GlidepathSpawner`` counts, before the call or after.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import random
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jupyterhub_glidepath.connection import close_all

#: Who has it sees and cancels every server on the page. Administrators of the Hub do too.
OPERATE_SCOPE = "custom:glidepath:operate"

#: Below those that the kernel hands out by itself, here and on other systems.
_PORTS = range(18_000, 30_000)

_tasks: set[asyncio.Task[None]] = set()


def configure(
    c: Any, *, page: bool = True, page_name: str = "glidepath", page_port: int = 0, operators: Iterable[str] = ()
) -> None:
    """Sets up ``c`` for Glidepath.

    ``page``: register the Hub service ``/services/<page_name>/`` (my servers, where and why, cancel) and the live
    form. ``page_port``: its port on loopback; 0 takes a free one. ``operators``: users who may see and cancel every
    server, beside the Hub's administrators. Lists of ``c.JupyterHub`` that the file sets must be set before the call.
    """
    hub = c.JupyterHub
    hub.spawner_class = "glidepath"
    # The service queues and bounds; the Hub must neither refuse nor hold up what waits there.
    hub.concurrent_spawn_limit = 0
    # Servers that are still queued are looked for in the background.
    hub.init_spawners_timeout = 1
    _keep_time_limits(c)
    where_file: Path | None = None
    if page:
        where_file = _where_file()
        _register_page(c, page_name, page_port or _free_port(), where_file)
        _add_roles(c, page_name, list(operators))
        c.GlidepathSpawner.live_form = True
        c.GlidepathSpawner.page_name = page_name
    _begin_with_hub(where_file)


def _keep_time_limits(c: Any) -> None:
    """``c.Spawner``'s limits are meant for servers that start at once: they would end what waits in a queue."""
    from jupyterhub_glidepath.settings import HTTP_TIMEOUT_S, START_TIMEOUT_S

    ours = c.GlidepathSpawner
    for name, seconds in (("start_timeout", START_TIMEOUT_S), ("http_timeout", HTTP_TIMEOUT_S)):
        if name not in ours:
            ours[name] = seconds


def _register_page(c: Any, name: str, port: int, where_file: Path) -> None:
    _append(
        c.JupyterHub,
        "services",
        {
            "name": name,
            "url": f"http://127.0.0.1:{port}",
            "command": [
                *(sys.executable, "-m", "jupyterhub_glidepath.service"),
                *("--where", str(where_file), "--hub", str(os.getpid())),
            ],
            "oauth_no_confirm": True,
            "oauth_client_allowed_scopes": [OPERATE_SCOPE],
        },
    )


def _add_roles(c: Any, page_name: str, operators: list[str]) -> None:
    access = f"access:services!service={page_name}"
    roles = c.JupyterHub.load_roles if isinstance(c.JupyterHub.get("load_roles"), list) else []
    user_role = next((role for role in roles if role.get("name") == "user"), None)
    if user_role is None:
        _append(
            c.JupyterHub,
            "load_roles",
            {"name": "user", "description": "Standard user privileges", "scopes": ["self", access]},
        )
    else:
        user_role["scopes"] = [*user_role.get("scopes", []), access]
    if operators:
        role = {
            "name": "glidepath-operator",
            "description": "Sees and cancels every server on Glidepath's page",
            "scopes": [OPERATE_SCOPE, access],
            "users": operators,
        }
        _append(c.JupyterHub, "load_roles", role)
    scopes = c.JupyterHub.custom_scopes if isinstance(c.JupyterHub.get("custom_scopes"), dict) else {}
    c.JupyterHub.custom_scopes = {
        **scopes,
        OPERATE_SCOPE: {"description": "See and cancel every server on Glidepath's page"},
    }


def _append(section: Any, name: str, item: Any) -> None:
    known = section.get(name)
    setattr(section, name, [*known, item] if isinstance(known, list) else [item])


def _where_file() -> Path:
    """Where the Hub will write down, for the page, which service it uses: nothing secret, but nobody else's."""
    folder = Path(tempfile.mkdtemp(prefix="glidepath-hub-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder / "where.json"


def _free_port() -> int:
    """A free port on loopback. The Hub must know it before the page runs, so it cannot be held until then: it is one
    that the kernel gives to nobody who does not ask for it by number."""
    for port in random.sample(_PORTS, 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise OSError("no free port was found for Glidepath's page; name one: configure(c, page_port=...)")


def _begin_with_hub(where_file: Path | None) -> None:
    """Has the embedded service started, and the settings looked at, with the Hub and not with the first user, so that
    what is wrong is told then."""
    from jupyterhub.app import JupyterHub

    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return  # the file is read by something that is no Hub
    if JupyterHub.initialized():
        task = loop.create_task(_begin(JupyterHub.instance(), where_file), name="glidepath begins")
        _tasks.add(task)
        task.add_done_callback(_begun)


def _begun(task: asyncio.Task[None]) -> None:
    from jupyterhub.app import JupyterHub

    _tasks.discard(task)
    error = None if task.cancelled() else task.exception()
    if error is not None:
        JupyterHub.instance().log.critical("Glidepath did not begin with the Hub", exc_info=error)


async def _begin(app: Any, where_file: Path | None) -> None:
    from jupyterhub_glidepath.spawner import GlidepathSpawner

    while getattr(app, "hub", None) is None:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    if app.internal_ssl:
        await _give_up(app, "Glidepath does not support JupyterHub.internal_ssl yet: unset it.")
        return
    # A spawner of nobody: it has read the config, and knows how to connect.
    spawner = GlidepathSpawner(hub=app.hub, config=app.config)
    if where_file is not None:
        await asyncio.to_thread(where_file.write_text, json.dumps(spawner.where_for_page()), encoding="utf-8")
    slip = spawner.slip()
    if slip is not None:
        await _give_up(app, f"Glidepath cannot start: {slip}")
        return
    embedded = spawner.connection().embedded
    if embedded is not None:
        problem = await embedded.first_problem()
        if problem is not None:
            await _give_up(app, f"Glidepath cannot start: {problem}")


async def _give_up(app: Any, sentence: str) -> None:
    app.log.critical("%s", sentence)
    await close_all()
    app.cleanup_servers = False  # a slip in a config ends no server
    try:
        await app.cleanup()
    except Exception:
        app.log.debug("Half a Hub could not be cleaned up", exc_info=True)
    # From a callback, an exit is an exit; from a task it would be a traceback. The sentence is the last word, status 1.
    asyncio.get_running_loop().call_soon(sys.exit, sentence)
