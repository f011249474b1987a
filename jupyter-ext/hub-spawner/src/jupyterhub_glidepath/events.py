"""What one Hub knows of its servers: one event stream for all of them.

In: the hub's event stream. Out: the latest :class:`~jupyterhub_glidepath.wire.ServerView` of every server, wake-ups
for whoever waits for one, and a call for every end. Nothing is asked per server. A cut stream changes nothing that is
known: it is opened again, with the number of the last event, and the whole list is read beside it, so that an end
that fell between two streams is found too. What is known of a run never goes backwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable

from jupyterhub_glidepath.client import Client, Refused, Unreachable
from jupyterhub_glidepath.waiting import is_set_within
from jupyterhub_glidepath.wire import ServerView

#: Between two tries to open the stream: the first, and the most.
RETRY_FIRST_S = 0.25
RETRY_MOST_S = 10.0
#: A cut is logged when it lasts so long.
TELL_AFTER_S = 2.0
#: Ended servers that are kept in memory.
KEPT_ENDED = 20_000

EndCall = Callable[[ServerView], None]


class Feed:
    """The cache that one stream keeps. :meth:`run` is its task; whoever makes the feed owns it."""

    def __init__(self, client: Client, log: logging.Logger | logging.LoggerAdapter[logging.Logger]) -> None:
        self._client = client
        self._log = log
        self._views: dict[str, ServerView] = {}
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._on_end: dict[str, EndCall] = {}
        self._last_event: str | None = None
        self._synced = asyncio.Event()
        self._silent_since: float | None = time.monotonic()

    @property
    def silent_for_s(self) -> float:
        """Seconds since the service was last heard; 0 while the stream is open."""
        return 0.0 if self._silent_since is None else time.monotonic() - self._silent_since

    async def synced(self, timeout_s: float) -> bool:
        """Waits until everything was heard once. ``False`` when it was not in time."""
        return await is_set_within(self._synced, timeout_s)

    def view(self, key: str) -> ServerView | None:
        """The server as it was last heard of; ``None`` when it never was."""
        return self._views.get(key)

    def call_at_end(self, key: str, call: EndCall | None) -> None:
        """Has ``call`` called, at once and not later, when this server ends; ``None`` takes it back."""
        if call is None:
            self._on_end.pop(key, None)
        else:
            self._on_end[key] = call

    async def changed(self, key: str, than: ServerView | None, timeout_s: float) -> ServerView | None:
        """The server as soon as it differs from ``than``; after the timeout, as it stands. May be dropped half way."""
        if self._views.get(key) is not than:
            return self._views.get(key)
        woken = asyncio.Event()
        self._waiting[key].add(woken)
        try:
            await is_set_within(woken, timeout_s)
        finally:
            self._waiting[key].discard(woken)
            if not self._waiting[key]:
                del self._waiting[key]
        return self._views.get(key)

    def take(self, view: ServerView) -> ServerView:
        """Takes what a call or an event told, unless more is known; gives what is known then."""
        known = self._views.get(view.key)
        if known is not None and not _newer(view, known):
            return known
        if view == known:
            return known
        self._views.pop(view.key, None)  # the latest change stands last
        self._views[view.key] = view
        for woken in self._waiting.get(view.key, ()):
            woken.set()
        if view.over:
            self._tell_end(view)
            self._shrink()
        return view

    async def run(self) -> None:
        """Keeps the stream open for ever. Ends only by being cancelled."""
        wait_s, told = RETRY_FIRST_S, False
        while True:
            try:
                await self._listen()
            except (Unreachable, Refused) as error:
                reason = str(error)
            except Exception as error:  # the stream must live: everything else stands on it
                self._log.exception("Glidepath's event stream failed; opening it again")
                reason = str(error)
            if self._silent_since is None:
                self._silent_since, wait_s, told = time.monotonic(), RETRY_FIRST_S, False
            if not told and self.silent_for_s > TELL_AFTER_S:
                told = True
                self._log.warning("Glidepath's events are cut (%s); servers keep their last known state", reason)
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311
            wait_s = min(wait_s * 2, RETRY_MOST_S)

    async def _listen(self) -> None:
        stream = self._client.events(self._last_event)
        async with contextlib.aclosing(stream):
            async for event in stream:
                if event is not None:
                    self.take(event.view)
                    # Only the last event of a snapshot has a number: one that was cut short is told anew.
                    self._last_event = event.id or self._last_event
                elif self._silent_since is not None:
                    await self._read_all()
                    self._silent_since = None
                    self._synced.set()

    async def _read_all(self) -> None:
        """Reads the whole list beside the stream that just opened."""
        listed = {view.key: view for view in await self._client.servers()}
        for view in listed.values():
            self.take(view)
        for key in [key for key, view in self._views.items() if not view.over and key not in listed]:
            # A server that lives is always listed; ask once more before it is believed to be gone.
            self.take(await self._client.view(key))

    def _tell_end(self, view: ServerView) -> None:
        call = self._on_end.get(view.key)
        if call is not None:
            try:
                call(view)
            except Exception:
                self._log.exception("Telling the end of %s failed", view.key)

    def _shrink(self) -> None:
        if len(self._views) > KEPT_ENDED:
            oldest = next((key for key, view in self._views.items() if view.over), None)
            if oldest is not None:
                del self._views[oldest]


def _newer(view: ServerView, known: ServerView) -> bool:
    """Runs are ULIDs, so that a later one sorts behind an earlier one; within a run attempts are numbered; within an
    attempt states have an order, and an end is final. So a reply that was long on its way undoes no event."""
    if view.run is None or known.run is None:
        return True
    if view.run != known.run:
        return view.run > known.run
    if known.over or view.over:
        return view.over
    if view.attempt != known.attempt and view.attempt is not None and known.attempt is not None:
        return view.attempt > known.attempt
    rank, known_rank = _RANKS.get(view.state), _RANKS.get(known.state)
    return rank is None or known_rank is None or rank >= known_rank


#: How far a server has come. A job may lose its slot again, so these two are one. A newer service may know others.
_RANKS = {
    "requested": 0,
    "placed": 1,
    "submitting": 2,
    "queued": 3,
    "dialling": 3,
    "starting": 4,
    "ready": 5,
    "stopping": 6,
}
