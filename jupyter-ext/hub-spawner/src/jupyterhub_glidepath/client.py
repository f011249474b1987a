"""Speaks to the service; knows no JupyterHub.

In: where the service is, the hub's name, where its secret lies. Out: values of :mod:`~jupyterhub_glidepath.wire`, or
one of two errors: :class:`Refused` (the service said no, and why) and :class:`Unreachable` (nobody can tell what is:
repeating is right, ending anything is not). Every call has a timeout over the whole of it. Nothing is retried here but
a call on a kept connection that turns out closed: every call may be repeated.
"""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from jupyterhub_glidepath.waiting import within
from jupyterhub_glidepath.wire import Adopted, Problem, ServerView, Started, Verdict

#: A start may wait in the service for the end of the run before.
START_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 15.0
#: An event stream that says nothing for so long, not even a comment, is dead.
SILENCE_S = 45.0
#: The longest single event that is taken.
EVENT_MAX_BYTES = 4 * 1024 * 1024


class Unreachable(Exception):
    """The service gave no answer that can be used: it may be down, starting, or behind a cut line."""


class Refused(Exception):
    """The service said no."""

    def __init__(self, problem: Problem, retry_after_s: float | None = None) -> None:
        super().__init__(f"{problem.status} {problem.code}: {problem.title}")
        self.problem = problem
        self.retry_after_s = retry_after_s


class BadSecretFile(Exception):
    """The file with the hub's secret cannot be used; the sentence names the remedy."""


@dataclass(frozen=True)
class Event:
    """One event of a hub's stream: its number and the whole server as it stood then."""

    id: str
    view: ServerView


@dataclass(frozen=True)
class Placement:
    """What placement says of a choice."""

    verdicts: tuple[Verdict, ...]
    problems: tuple[tuple[str, str], ...]
    raw: dict[str, Any]


def read_secret(path: Path) -> str:
    """Reads a hub's secret. The file must be readable by its owner alone."""
    try:
        mode = path.stat().st_mode
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadSecretFile(f"the hub's secret cannot be read from {path}: {error}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise BadSecretFile(f"{path} can be read by others; run: chmod 600 {path}")
    if not secret:
        raise BadSecretFile(f"{path} is empty; it must hold the hub's secret")
    return secret


class Client:
    """One hub's way to the service. Bound to the event loop that first uses it; :meth:`close` it."""

    def __init__(self, hub: str, locate: Callable[[], Awaitable[str]], secret: Callable[[], str]) -> None:
        """``locate`` gives the base URL at every call, or raises :class:`Unreachable`; ``secret`` likewise."""
        self._hub = quote(hub, safe="")
        self._locate = locate
        self._secret = secret
        self._session: aiohttp.ClientSession | None = None

    async def start(self, key: str, body: dict[str, Any]) -> Started:
        """Starts a server, or finds it alive. May be repeated with the same ``spawn_id``."""
        raw = await self._call("PUT", self._server(key), body=body, timeout_s=START_TIMEOUT_S)
        view, adopted = _view(raw), raw.get("adopted") if isinstance(raw, dict) else None
        if isinstance(adopted, dict) and isinstance(adopted.get("hub_token"), str):
            return Started(view, Adopted(adopted["hub_token"]))
        return Started(view, None)

    async def view(self, key: str) -> ServerView:
        """The server as it stands; its state is ``none`` when the service never had one."""
        return _view(await self._call("GET", self._server(key)))

    async def servers(self) -> list[ServerView]:
        """Every server that lives or whose last end is kept."""
        raw = await self._call("GET", "servers")
        listed = raw.get("servers") if isinstance(raw, dict) else raw
        if not isinstance(listed, list):
            raise Unreachable("the service's list of servers is no list")
        return [_view(one) for one in listed]

    async def stop(self, key: str, *, run: str | None = None, now: bool = False, wait_s: int = 0) -> ServerView | None:
        """Ends a server, or only the named run of it. ``None`` when there is none."""
        query = {"now": "true" if now else "false", "wait_s": str(wait_s)} | ({"run": run} if run else {})
        try:
            raw = await self._call("DELETE", self._server(key), query=query, timeout_s=CALL_TIMEOUT_S + wait_s)
        except Refused as refused:
            if refused.problem.status == 404 and refused.problem.code == "no_server":
                return None
            raise
        return _view(raw) if raw else None

    async def forget_home(self, key: str) -> None:
        """Removes what the server's user keeps at every site."""
        await self._call("DELETE", f"{self._server(key)}/home", timeout_s=START_TIMEOUT_S)

    async def form(self, who: dict[str, Any], timeout_s: float = CALL_TIMEOUT_S) -> str:
        """The rendered options form; all text in it is escaped by the service."""
        raw = await self._call("POST", "form", body=who, timeout_s=timeout_s)
        if not isinstance(raw, dict) or not isinstance(raw.get("html"), str):
            raise Unreachable("the service's form is no form")
        return str(raw["html"])

    async def placement(self, who: dict[str, Any]) -> Placement:
        """What placement says of a choice, best site first."""
        raw = await self._call("POST", "placement", body=who)
        if not isinstance(raw, dict):
            raise Unreachable("the service's verdicts are no verdicts")
        problem = Problem.parse(200, raw)
        verdicts = tuple(Verdict.parse(one) for one in raw.get("verdicts") or [] if isinstance(one, dict))
        return Placement(verdicts, problem.fields, raw)

    async def events(self, after: str | None) -> AsyncGenerator[Event | None, None]:
        """The hub's events after a number, for ever. The first ``None`` says that the stream is open, later ones that
        it is alive. Without a number, or with one that the service no longer keeps: every server as it stands first.
        Ends only by an error."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CALL_TIMEOUT_S, sock_read=SILENCE_S)
        try:
            async with await self._request(
                "GET", f"hubs/{self._hub}/events", headers=headers, timeout=timeout
            ) as reply:
                if reply.status != 200:
                    await self._answer(reply)
                    raise Unreachable(f"the event stream answered {reply.status}")
                yield None
                async for event in _read_events(reply.content):
                    yield event
            raise Unreachable("the event stream ended")
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
            raise Unreachable(_reason(error)) from error

    async def answers(self, url: str, timeout_s: float = CALL_TIMEOUT_S) -> bool:
        """True when a server behind ``url`` answers, by the Hub's own measure: any status below 500."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._open().get(url, allow_redirects=False, timeout=timeout) as reply:
                return reply.status < 500
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError):
            return False

    async def close(self) -> None:
        """Lets go of all connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _server(self, key: str) -> str:
        return f"servers/{quote(key, safe='')}"

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            # No proxy from the environment, no cookies: the service is named by its operator. A start may wait, so
            # the number of connections is not what bounds the Hub.
            connector = aiohttp.TCPConnector(limit=512, keepalive_timeout=10)
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        return self._session

    async def _request(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str],
        timeout: aiohttp.ClientTimeout,
        query: dict[str, str] | None = None,
        body: str | None = None,
    ) -> aiohttp.ClientResponse:
        base = await self._locate()
        try:
            secret = self._secret()
        except BadSecretFile as error:
            raise Unreachable(str(error)) from error
        headers = {**headers, "Authorization": f"Bearer {secret}", "User-Agent": "jupyterhub-glidepath/0.1.0"}
        return await self._open().request(
            method,
            f"{base.rstrip('/')}/v1/{path}",
            params=query,
            data=body,
            headers=headers,
            timeout=timeout,
            allow_redirects=False,
        )

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Any:
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if body else {})

        async def once() -> Any:
            async with await self._request(
                method,
                f"hubs/{self._hub}/{path}",
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                query=query,
                body=json.dumps(body) if body is not None else None,
            ) as reply:
                return await self._answer(reply)

        async def whole() -> Any:
            try:
                return await once()
            except (aiohttp.ServerDisconnectedError, ConnectionResetError):
                return await once()

        try:
            return await within(whole(), timeout_s)  # finding the service counts, too
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
            raise Unreachable(_reason(error)) from error

    async def _answer(self, reply: aiohttp.ClientResponse) -> Any:
        text = await reply.text()
        if reply.status >= 500 or 300 <= reply.status < 400:
            problem = Problem.parse(reply.status, _json_or_none(text))
            raise Unreachable(f"the service answered {reply.status}: {problem.title}")
        if reply.status >= 400:
            retry_after = reply.headers.get("Retry-After", "")
            raise Refused(
                Problem.parse(reply.status, _json_or_none(text)),
                float(retry_after) if retry_after.isdecimal() else None,
            )
        return json.loads(text) if text else None


async def _read_events(content: aiohttp.StreamReader) -> AsyncIterator[Event | None]:
    number, buffer = "", b""
    data: list[str] = []
    async for chunk in content.iter_any():
        yield None
        buffer += chunk
        if len(buffer) > EVENT_MAX_BYTES:
            raise ValueError("an event is too long")
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "replace").rstrip("\r")
            field, _, value = text.partition(":")
            value = value.removeprefix(" ")
            if not text:
                if data:
                    yield Event(number, ServerView.parse(json.loads("\n".join(data))))
                data = []
            elif field == "data":
                data.append(value)
            elif field == "id":
                number = value


def _view(raw: object) -> ServerView:
    try:
        return ServerView.parse(raw)
    except ValueError as error:
        raise Unreachable(str(error)) from error


def _json_or_none(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _reason(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "the service did not answer in time"
    return f"the service cannot be reached: {error or type(error).__name__}"
