"""A service for faults: keeps servers in memory, speaks the real wire, and misbehaves on demand."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

from aiohttp import web


class FakeService:
    """Counts what it was asked. ``refuse_with`` answers starts with a problem; ``broken`` answers 500 to everything."""

    def __init__(self, secret: str) -> None:
        self.secret = secret
        # Bound and never listened at: refused while the service is away, and nobody else's.
        self._kept = socket.socket()
        self._kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._kept.bind(("127.0.0.1", 0))
        self.port = int(self._kept.getsockname()[1])
        self.servers: dict[str, dict[str, Any]] = {}
        self.bodies: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.refuse_with: tuple[int, dict[str, Any], dict[str, str]] | None = None
        self.adopt: str | None = None
        #: A start is taken, and only then done, after so long.
        self.late_s = 0.0
        self.broken = False
        self.relay_status = 200
        self.form_html = "<p>the service's form</p>"
        #: Whether events carry their numbers; and after which one each stream was asked for.
        self.numbers = True
        self.continued_after: list[str] = []
        self._events: list[dict[str, Any]] = []
        self._more = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self._streams: set[asyncio.Task[Any]] = set()
        self._runs = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def up(self) -> None:
        app = web.Application(middlewares=[self._gate])
        hub = "/v1/hubs/hub"
        app.router.add_put(hub + "/servers/{key}", self._put)
        app.router.add_get(hub + "/servers/{key}", self._get)
        app.router.add_delete(hub + "/servers/{key}", self._delete)
        app.router.add_delete(hub + "/servers/{key}/home", self._forget_home)
        app.router.add_get(hub + "/servers", self._list)
        app.router.add_get(hub + "/events", self._stream)
        app.router.add_post(hub + "/form", self._form)
        app.router.add_post(hub + "/placement", self._placement)
        app.router.add_get("/user/{rest:.*}", self._relay)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()

    async def down(self) -> None:
        """Away, as after a kill: connections cut, the port kept for :meth:`up`."""
        for task in list(self._streams):
            task.cancel()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def close(self) -> None:
        """Lets go of the port."""
        self._kept.close()

    async def set(self, key: str, **fields: Any) -> dict[str, Any]:
        """Changes a server and tells everybody."""
        _, user, server = key.split(".")
        view = self.servers.setdefault(
            key,
            {
                "key": key, "user": user, "server": server, "run": None, "attempt": None, "state": "none",
                "life": "gone", "site": None, "message": "", "progress": 0, "queue_position": None,
                "predicted_wait_s": None, "url": None, "end": None, "verdicts": [], "requested_at": None,
                "since": None, "usage": None, "limits": None, "near_ends": [],
            },
        )  # fmt: skip
        view.update(fields)
        async with self._more:
            self._events.append(json.loads(json.dumps(view)))
            self._more.notify_all()
        return view

    async def ready(self, key: str) -> None:
        await self.set(key, state="ready", life="alive", url=self.url, message="ready", progress=100)

    async def end(self, key: str, reason: str = "exited", **end: Any) -> None:
        told = {
            "reason": reason, "message": "the server exited with code 3", "exit_code": 3, "signal": None,
            "last_lines": ["one", "<img src=x onerror=alert(1)>"], "at": "2026-11-20T00:00:00Z",
        } | end  # fmt: skip
        await self.set(key, state="ended", life="gone", url=None, end=told)

    def new_run(self) -> str:
        self._runs += 1
        return f"01JD{self._runs:022d}"

    @web.middleware
    async def _gate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.path}")
        if request.path.startswith("/user/"):
            return await handler(request)
        if self.broken:
            return web.Response(status=500, text="<html>broken</html>")
        if request.headers.get("Authorization") != f"Bearer {self.secret}":
            return _problem(401, "unauthorized", "this secret opens no hub here")
        return await handler(request)

    async def _put(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        if self.refuse_with is not None:
            status, problem, headers = self.refuse_with
            return web.json_response({"status": status, **problem}, status=status, headers=headers)
        await asyncio.sleep(self.late_s)
        key = request.match_info["key"]
        view = self.servers.get(key)
        if view is None or view["state"] in ("none", "ended"):
            view = await self.set(
                key, run=self.new_run(), attempt=1, state="queued", life="alive", site="far", end=None,
                message="waiting in the queue", progress=30,
            )  # fmt: skip
        reply = dict(view)
        if self.adopt:
            reply["adopted"] = {"hub_token": self.adopt}
        return web.json_response(reply)

    async def _get(self, request: web.Request) -> web.Response:
        key = request.match_info["key"]
        if key not in self.servers:
            return web.json_response({"key": key, "state": "none", "life": "gone"})
        return web.json_response(self.servers[key])

    async def _delete(self, request: web.Request) -> web.Response:
        key = request.match_info["key"]
        if key in self.servers:
            await self.end(key, "stopped", message="stopped", exit_code=None, last_lines=[])
        return await self._get(request)

    async def _forget_home(self, request: web.Request) -> web.Response:
        return web.Response(status=204)

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response({"servers": list(self.servers.values())})

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            after = request.headers.get("Last-Event-ID") or ""
            self.continued_after.append(after)
            at = int(after) if after else len(self._events)
            await reply.write(b": open\n\n")
            if not after:
                views = list(self.servers.values())
                for n, view in enumerate(views, 1):  # only the last of what is has an id
                    last = f"id: {at}\n" if n == len(views) else ""
                    await reply.write(f"{last}data: {json.dumps(view)}\n\n".encode())
            while True:
                for number, event in enumerate(self._events[at:], at + 1):
                    named = f"id: {number}\n" if self.numbers else ""
                    await reply.write(f"{named}data: {json.dumps(event)}\n\n".encode())
                at = len(self._events)
                async with self._more:
                    await self._more.wait_for(lambda at=at: len(self._events) > at)
        finally:
            self._streams.discard(task)

    async def _form(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        return web.json_response({"html": self.form_html})

    async def _placement(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        return web.json_response({"verdicts": [], "problems": [{"field": "options.cores", "message": "too many"}]})

    async def _relay(self, request: web.Request) -> web.Response:
        return web.Response(status=self.relay_status, text="{}")


def _problem(status: int, code: str, title: str) -> web.Response:
    return web.json_response(
        {"code": code, "title": title, "status": status}, status=status, content_type="application/problem+json"
    )
