"""Our spawner in the place of JupyterHub's mock spawners.

Each has the real shim start a server through the real service. What a mock plays in the Hub's process, such as being
slow, is what the *server* does here. All that is added to the shim is what those tests set on a mock or read from it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import requests
from jupyterhub import orm
from jupyterhub.objects import Server
from jupyterhub.tests import mocking
from traitlets import Integer, default

from jupyterhub_glidepath.form import OPTIONS
from jupyterhub_glidepath.spawner import GlidepathSpawner
from real_service import SERVER, RealService

#: As the argument of `python -c`, for commands that answer nobody: a start of ours is over when the server answers.
ANSWERING = SERVER.read_text()
#: As the tests of JupyterHub expect a failure to be worded.
FAILURE = "I don't work!"
#: From the start of a server until its program runs.
BEGIN_WITHIN_S = 20


class StandIn(GlidepathSpawner):
    """What all of them have."""

    service: ClassVar[RealService]

    #: Set by tests: the server is to hold this token, as one that is resumed does.
    use_this_api_token: str | None = None

    @default("service_url")
    def _service_url_default(self) -> str:
        return self.service.url

    @default("secret_file")
    def _secret_file_default(self) -> str:
        return str(self.service.secret_file)

    @default("cmd")
    def _cmd_default(self) -> list[str]:
        return [sys.executable, str(SERVER)]

    async def start(self) -> Any:
        if self.use_this_api_token:
            self.api_token = self.use_this_api_token
        elif self.will_resume:
            self.use_this_api_token = self.api_token
        return await super().start()

    def get_env(self) -> dict[str, Any]:
        env: dict[str, Any] = super().get_env()
        if self.handler:
            env["HANDLER_ARGS"] = self.handler.request.query
        return env

    async def _start_body(self) -> dict[str, Any]:
        """The tests make up options, which the service would refuse."""
        body = await super()._start_body()
        return body | {"options": {name: value for name, value in body["options"].items() if name in OPTIONS}}

    def get_state(self) -> dict[str, Any]:
        """The tests know a server's record by its `pid`; ours has a run and the user's name."""
        state = super().get_state()
        state.pop("user", None)
        if state.pop("run", None):
            state["pid"] = 1
        return state


class Slow(StandIn):
    """Its server comes when it is let, or after a while, and goes after a while."""

    delay: float = 2
    _start_future: asyncio.Future[None] | None = None
    _made: ClassVar[int] = 0

    async def start(self) -> Any:
        Slow._made += 1
        folder = self.service.folder / f"slow-{Slow._made}"
        folder.mkdir()
        folder.chmod(0o777)  # the server's account is another
        self._folder = folder
        self.cmd = [sys.executable, str(SERVER), str(folder)]
        self._tell_delay()
        letting = asyncio.create_task(self._let())
        try:
            return await super().start()
        finally:
            letting.cancel()

    async def stop(self, now: bool = False) -> None:
        """A server can only be slow to go when it has come."""
        self._tell_delay()
        deadline = time.monotonic() + BEGIN_WITHIN_S
        while not (self._folder / "begun").exists():
            assert time.monotonic() < deadline, "the server did not begin"
            await asyncio.sleep(0.02)
        await super().stop(now)

    def _tell_delay(self) -> None:
        (self._folder / "delay").write_text(str(self.delay))

    async def _let(self) -> None:
        await (self._start_future if self._start_future is not None else asyncio.sleep(self.delay))
        (self._folder / "go").touch()


class Never(StandIn):
    """Its server never answers."""

    @default("start_timeout")
    def _start_timeout_default(self) -> int:
        return 1

    @default("cmd")
    def _cmd_default(self) -> list[str]:
        return ["sleep", "600"]


class Bad(StandIn):
    """Its start breaks on a fault in the operator's configuration."""

    @default("environment")
    def _environment_default(self) -> dict[str, Any]:
        def broken(_spawner: Any) -> str:
            raise RuntimeError(FAILURE)

        return {"BROKEN": broken}


class SlowBad(StandIn):
    """Its server fails after a short while."""

    @default("cmd")
    def _cmd_default(self) -> list[str]:
        return ["sh", "-c", f'sleep 0.5; echo "{FAILURE}"; exit 1']


class Form(StandIn):
    """The operator has written the form."""

    options_form = mocking.FormSpawner.options_form
    options_from_form = mocking.FormSpawner.options_from_form


class WithoutHub(StandIn):
    """In place of `SimpleLocalProcessSpawner` where tests use a spawner that no Hub has prepared."""

    term_timeout = Integer(1)
    interrupt_timeout = Integer(1)
    kill_timeout = Integer(1)

    async def start(self) -> tuple[str, int]:
        if self.server is None:
            address = orm.Server(base_url=self.user.base_url)
            self.user.db.add(address)
            self.user.db.commit()
            self.server = Server(orm_server=address)
        url = urlsplit(await super().start())
        self._address = (url.hostname or "", url.port or 0)
        return self._address

    @property
    def proc(self) -> ServerProcess:
        """The server's process, wherever it runs: it tells its own number."""
        env = requests.get("http://{}:{}".format(*self._address) + self.server.base_url + "env", timeout=10).json()
        return ServerProcess(int(env["MOCK_PID"]))


class ServerProcess:
    """What the tests do with a `Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def poll(self) -> int | None:
        return None if Path(f"/proc/{self.pid}").exists() else 0


#: By the names that they have in `jupyterhub.tests.mocking`.
IN_PLACE_OF = {
    "MockSpawner": StandIn,
    "SlowSpawner": Slow,
    "NeverSpawner": Never,
    "BadSpawner": Bad,
    "SlowBadSpawner": SlowBad,
    "FormSpawner": Form,
}
