"""A real Hub as a process, and what people and scripts do with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp

HERE = Path(__file__).parent
TOKEN = "test-token-0123456789abcdef"
#: Until the end of this process.
_held: list[socket.socket] = []


class Hub:
    """One Hub; ``proxy`` names configurable-http-proxy, without it the Hub keeps routes to itself."""

    def __init__(self, folder: Path, service_url: str, secret_file: Path, proxy: str = "") -> None:
        self.folder = folder
        self.port, self.public_port, proxy_api_port = (free_port() for _ in range(3))
        _write_package_info(folder / "packages")
        self.env = {
            **os.environ,
            "PYTHONPATH": f"{HERE.parent / 'src'}:{folder / 'packages'}",
            "HUB_TEST_FOLDER": str(folder),
            "HUB_TEST_PORT": str(self.port),
            "HUB_TEST_PUBLIC_PORT": str(self.public_port),
            "HUB_TEST_PROXY_API_PORT": str(proxy_api_port),
            "HUB_TEST_PROXY": proxy,
            "HUB_TEST_SECRET": str(secret_file),
            "HUB_TEST_SERVICE": service_url,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.session: aiohttp.ClientSession | None = None

    @property
    def public_url(self) -> str:
        return f"http://127.0.0.1:{self.public_port}"

    async def up(self, **env: str) -> None:
        self.spawn(**env)
        for _ in range(600):
            assert self.process is not None
            assert self.process.poll() is None, self.log()
            try:
                status, _ = await self.api("GET", "/")
                if status == 200:
                    return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
        raise AssertionError(self.log())

    def spawn(self, **env: str) -> None:
        with (self.folder / "hub.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub", "-f", str(HERE / "hub_config.py"), "--debug"],
                cwd=self.folder,
                env=self.env | env,
                stdout=log,
                stderr=log,
            )

    async def down(self, signum: int = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return await asyncio.to_thread(self.process.wait, 30)

    async def close(self) -> None:
        if self.session:
            await self.session.close()
        if self.process:
            await self.down()

    def log(self) -> str:
        return (self.folder / "hub.log").read_text(errors="replace")[-8000:]

    async def api(self, method: str, path: str, token: str = TOKEN, **kwargs: Any) -> Any:
        if self.session is None:
            self.session = aiohttp.ClientSession()
        async with self.session.request(
            method, f"http://127.0.0.1:{self.port}/hub/api{path}", headers={"Authorization": f"token {token}"}, **kwargs
        ) as reply:
            return reply.status, await reply.json() if reply.content_type == "application/json" else await reply.text()

    async def start(self, user: str = "ada", server: str = "", options: dict[str, Any] | None = None) -> int:
        path = f"/users/{user}/servers/{server}" if server else f"/users/{user}/server"
        status, _ = await self.api("POST", path, json=options or {})
        return int(status)

    async def state(self, user: str = "ada", server: str = "") -> dict[str, Any] | None:
        _, model = await self.api("GET", f"/users/{user}")
        found: dict[str, Any] | None = model["servers"].get(server)
        return found

    async def is_ready(self, user: str = "ada", server: str = "") -> bool:
        state = await self.state(user, server)
        return bool(state and state["ready"])

    async def is_gone(self, user: str = "ada", server: str = "") -> bool:
        state = await self.state(user, server)
        return state is None or (not state["ready"] and not state["pending"])

    async def progress(self, user: str = "ada") -> str:
        _, text = await self.api("GET", f"/users/{user}/server/progress")
        return str(text)

    def client_secret(self, user: str = "ada") -> tuple[str, str]:
        """The OAuth client of the user's server: the hash of its secret, and what it is allowed."""
        with sqlite3.connect(self.folder / "hub.sqlite") as db:
            rows = db.execute(
                "select secret, allowed_scopes from oauth_clients where identifier = ?", (f"jupyterhub-user-{user}",)
            )
            secret, scopes = next(iter(rows))
            return secret, scopes

    async def until(self, true: Any, timeout_s: float = 30.0) -> None:
        for _ in range(int(timeout_s / 0.1)):
            result = true()
            if await result if asyncio.iscoroutine(result) else result:
                return
            await asyncio.sleep(0.1)
        raise AssertionError("waited in vain\n" + self.log())


def free_port() -> int:
    """Below those that the kernel hands out by itself, and held, so that it is still free when the Hub binds it: who
    asks for an address to be used again may bind it beside us, and the next who looks for a free one may not."""
    while True:
        port, held = random.randrange(18_000, 30_000), socket.socket()
        with contextlib.suppress(OSError):
            held.bind(("127.0.0.1", port))
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _held.append(held)
            return port
        held.close()


def _write_package_info(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", "import sys; from pathlib import Path; from dev_install import write_info; "]
    command[-1] += "write_info(Path(sys.argv[1]))"
    subprocess.run([*command, str(folder)], cwd=HERE.parent, check=True, env=os.environ | {"PYTHONPATH": "."})
